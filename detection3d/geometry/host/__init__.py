"""Geometry on the host, in numpy and numba: data and evaluation use it. It imports no torch."""
