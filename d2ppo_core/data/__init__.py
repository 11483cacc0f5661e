"""Demonstrations: robomimic's HDF5 format, and the windows a policy trains on."""
