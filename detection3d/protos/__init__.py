"""Waymo's wire formats, as far as they are used here; `waymo.proto` says how `waymo_pb2` is generated."""
