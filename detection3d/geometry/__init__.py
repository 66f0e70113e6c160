"""Boxes, overlaps and poses: `host` in numpy and numba, `device` in torch; each tests the other."""
