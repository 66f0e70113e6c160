"""The Waymo Open Dataset, read without TensorFlow.

`read_segment` is the short way from a file of Waymo v1 to frames; the parts it is made of serve those who want one
record at a time. `read_component_segment` reads the parquet components of v2 to the same frames.
"""

from detection3d.data.waymo.component_frames import component_files, read_component_segment
from detection3d.data.waymo.frames import decode_frame, read_segment, segment_has_labels
from detection3d.data.waymo.records import RecordIndex, RecordWriter, index_records, read_record, read_records

__all__ = [
    "RecordIndex",
    "RecordWriter",
    "component_files",
    "decode_frame",
    "index_records",
    "read_component_segment",
    "read_record",
    "read_records",
    "read_segment",
    "segment_has_labels",
]
