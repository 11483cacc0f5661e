"""Work spread over several processes and machines by Ray, which is imported when it is asked for and not before."""
