"""robosuite's tasks, stepped in compiled code: many environments, whole action chunks, no Python in between."""
