"""Studies: many runs from one file, resumable, with one table and one report."""
