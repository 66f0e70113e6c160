"""A synthetic world, recorded by a ray-cast Waymo rig into genuine v1 TFRecords.

`street`, `layout` and `scene` build the world, `motion` moves it, `sweep`, `raycast` and `sensor` look at it, `labels`
and `encode` put down what was seen, `generate` drives through it frame by frame, and `write` makes files of that.
"""

from detection3d.data.synthetic.generate import generate_segment
from detection3d.data.synthetic.rigs import LidarConfig, RigConfig, full_rig, tiny_rig
from detection3d.data.synthetic.scene import SceneConfig, waymo_streets
from detection3d.data.synthetic.write import SegmentReport, write_segments

__all__ = [
    "LidarConfig",
    "RigConfig",
    "SceneConfig",
    "SegmentReport",
    "full_rig",
    "generate_segment",
    "tiny_rig",
    "waymo_streets",
    "write_segments",
]
