"""Random `Objects` messages, with what real files may hold besides what the metrics read."""

import numpy as np

from detection3d.protos import waymo_pb2

# What isn't declared, of every wire type, with a group in a group; and known fields with another wire type.
_STRANGE = (
    b"\xf0\x01\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",  # field 30, the largest varint
    b"\xf1\x0112345678",
    b"\xf2\x01\x03abc",
    b"\xf3\x01\x08\x01\x13\x0d1234\x12\x02ab\x14\xf4\x01",
    b"\xf5\x011234",
    b"\x18\x80\x80\x00",  # field 3, a number with needless bytes
    b"\xf2\x81\x00\x02ab",  # field 30 with needless bytes
)


def random_objects(rng: np.random.Generator, count: int, frames: int = 3, strange: bool = True) -> waymo_pb2.Objects:
    """Return objects of a few frames; every field of each is there or not."""
    objects = waymo_pb2.Objects()
    for _ in range(count):
        entry = objects.objects.add()
        frame = int(rng.integers(frames))
        label = entry.object
        numbers = rng.normal(0, 10.0 ** rng.integers(-3, 6), 20)
        for k, field in enumerate(waymo_pb2.Label.Box.DESCRIPTOR.fields):
            if rng.random() < 0.97:
                setattr(label.box, field.name, numbers[k])
        if rng.random() < 0.5:
            for k, field in enumerate(waymo_pb2.Label.Metadata.DESCRIPTOR.fields):
                if rng.random() < 0.8:
                    setattr(label.metadata, field.name, numbers[k + 8])
        _sometimes(rng, label, "type", int(rng.integers(5)))
        _sometimes(rng, label, "id", "ab" * int(rng.integers(100)))
        _sometimes(rng, label, "detection_difficulty_level", int(rng.integers(3)))
        _sometimes(rng, label, "num_lidar_points_in_box", int(rng.choice([-1, 0, 1, 5, 6, 300, 2**31 - 1])))
        _sometimes(rng, entry, "score", float(rng.random()))
        _sometimes(rng, entry, "overlap_with_nlz", bool(rng.integers(2)))
        _sometimes(rng, entry, "context_name", f"segment-{frame % 2}" * (1 + frame % 2))
        _sometimes(rng, entry, "frame_timestamp_micros", int(rng.choice([frame, -1, 2**63 - 1, 1550083467346370])))
        if rng.random() < 0.1:
            entry.camera_name = int(rng.integers(6))
        if rng.random() < 0.2:
            label.camera_synced_box.heading = 1.0
        if strange:
            for message in (entry, label, label.box, objects):
                while rng.random() < 0.1:
                    message.MergeFromString(_STRANGE[rng.integers(len(_STRANGE))])
    return objects


def _sometimes(rng: np.random.Generator, message: waymo_pb2.Object | waymo_pb2.Label, name: str, value: object) -> None:
    if rng.random() < 0.9:
        setattr(message, name, value)
