"""Boxes, metrics and submissions on disk: what is read, what is written, and what is refused."""
