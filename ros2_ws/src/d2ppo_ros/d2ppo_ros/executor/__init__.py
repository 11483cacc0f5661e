"""The executor: action chunks onto the time line, and from there one command for each tick."""
