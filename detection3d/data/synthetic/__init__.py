"""A synthetic world, recorded by a ray-cast Waymo rig into genuine v1 TFRecords.

`street` and `scene` build the world, `motion` moves it, `raycast` and `sensor` look at it, `encode` writes what was
seen, and `generate` puts them together.
"""
