"""The compiled decoder and encoder against protobuf's own."""

import dataclasses

import numpy as np
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError

from detection3d.evaluation.files.wire import BAD_GROUP, BAD_TAG, BAD_VARINT, INCOMPLETE, TRUNCATED
from detection3d.evaluation.files.wire_encode import encode_frame
from detection3d.evaluation.files.wire_objects import (
    BOX,
    CAMERA,
    HAS_BOX,
    HAS_NAME,
    HAS_POINTS,
    HAS_SCORE,
    HAS_SPEED,
    HAS_TIME,
    IN_ZONE,
    LEVEL,
    POINTS,
    SCORE,
    TYPE,
    VELOCITY,
    Decoded,
    decode_objects,
)
from detection3d.protos import waymo_pb2
from tests.data.fuzz_changes import change_bytes
from tests.evaluation.builders import box, found, truth
from tests.evaluation.made_objects import random_objects

# Messages that the decoder skips, as they don't matter to the metrics: it doesn't see what is damaged in them.
SKIPPED = ("camera_synced_box", "association")


def oracle():
    """`Objects` of protobuf, without the messages that the decoder skips."""
    file = descriptor_pb2.FileDescriptorProto()
    waymo_pb2.DESCRIPTOR.CopyToProto(file)
    label = next(message for message in file.message_type if message.name == "Label")
    for field in [field for field in label.field if field.name in SKIPPED]:
        label.field.remove(field)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("detection3d.waymo.Objects"))


Objects = oracle()


def decoded(content: bytes, capacity: int = 100) -> Decoded:
    return decode_objects(np.frombuffer(content, np.uint8), capacity)


def assert_as_protobuf(content: bytes, result: Decoded) -> None:
    entries = Objects.FromString(content).objects
    rows = result.rows
    assert (result.status, result.position, len(rows.present)) == (0, len(content), len(entries))
    for index, entry in enumerate(entries):
        label, present = entry.object, int(rows.present[index])
        fields = waymo_pb2.Label.Box.DESCRIPTOR.fields
        assert [bool(present >> field.number & 1) for field in fields] == [label.box.HasField(f.name) for f in fields]
        b = label.box
        speed = (label.metadata.speed_x, label.metadata.speed_y, label.metadata.speed_z)
        numbers = (b.center_x, b.center_y, b.center_z, b.length, b.width, b.height, b.heading, entry.score, *speed)
        with np.errstate(over="ignore", invalid="ignore"):
            expected = np.array(numbers).astype(np.float32)
        np.testing.assert_array_equal(
            [*rows.floats[index, BOX], rows.floats[index, SCORE], *rows.floats[index, VELOCITY]], expected
        )
        assert rows.integers[index, POINTS] == label.num_lidar_points_in_box
        assert bool(rows.integers[index, IN_ZONE]) == entry.overlap_with_nlz
        # protobuf hides the values of an enum that it doesn't know; here they are seen and refused.
        for column, value, known in (
            (TYPE, label.type, range(5)),
            (LEVEL, label.detection_difficulty_level, range(3)),
            (CAMERA, entry.camera_name, range(6)),
        ):
            assert rows.integers[index, column] == value or rows.integers[index, column] not in known
        flags = {
            HAS_BOX: label.HasField("box"),
            HAS_SCORE: entry.HasField("score"),
            HAS_NAME: entry.HasField("context_name"),
            HAS_TIME: entry.HasField("frame_timestamp_micros"),
            HAS_POINTS: label.HasField("num_lidar_points_in_box"),
            HAS_SPEED: label.metadata.HasField("speed_x"),
        }
        assert {flag: bool(present & flag) for flag in flags} == flags
        begin, length = result.names[index]
        name: str | bytes = entry.context_name  # bytes where they aren't UTF-8
        assert content[begin : begin + length] == (name if isinstance(name, bytes) else name.encode())
        assert result.timestamps[index] == entry.frame_timestamp_micros
        before = entries[index - 1]
        same = index > 0 and (entry.context_name, entry.frame_timestamp_micros) == (
            before.context_name,
            before.frame_timestamp_micros,
        )
        assert result.new_frame[index] != same


@pytest.mark.parametrize("seed", range(20))
def test_objects_are_read_as_protobuf_reads_them(seed):
    rng = np.random.default_rng(seed)
    content = random_objects(rng, 40).SerializeToString()
    assert_as_protobuf(content, decoded(content))
    # Messages that come twice are merged, and of numbers the last one counts.
    twice = waymo_pb2.Objects()
    for one, other in zip(random_objects(rng, 20).objects, random_objects(rng, 20).objects, strict=True):
        twice.objects.add().MergeFromString(one.SerializeToString() + other.SerializeToString())
    content = twice.SerializeToString()
    assert_as_protobuf(content, decoded(content))


def test_official_files_are_read_as_protobuf_reads_them(shared):
    for name in ("fake_predictions.bin", "fake_ground_truths.bin"):
        content = (shared / "waymo/metrics" / name).read_bytes()
        assert_as_protobuf(content, decoded(content, 3000))


def check_changed(seed: int) -> bool:
    """Read one changed message both ways; return whether it was sound all the same."""
    rng = np.random.default_rng(seed)
    content = change_bytes(rng, random_objects(rng, int(rng.integers(1, 8))).SerializeToString())
    result = decoded(content)
    try:
        Objects.FromString(content)
    except DecodeError:
        assert result.status < 0, content.hex()
        return False
    if result.status == BAD_TAG:  # upb lets a field 0 pass in a group that it skips; the specification doesn't
        return False
    assert_as_protobuf(content, result)
    return True


def test_changed_bytes_are_damage_where_they_are_to_protobuf():
    sound = [check_changed(seed) for seed in range(1500)]
    assert 100 < sum(sound) < 1400


@pytest.mark.slow
def test_many_changed_bytes():
    for seed in range(10_000, 110_000):
        check_changed(seed)


@pytest.mark.parametrize(
    ("content", "status"),
    [
        (b"\x0a\x04\x22\x02a", INCOMPLETE),  # the last byte is yet to come
        (b"\x0a\x03\x0a\x02\x0a\x05", TRUNCATED),  # a message is larger than the one that it is in
        (b"\x0a\x02\x10\xff", TRUNCATED),
        (b"\x0a\x0b\x28" + b"\xff" * 10, BAD_VARINT),
        (b"\x0a\x01\x00", BAD_TAG),
        (b"\x0a\x01\x0f", BAD_TAG),
        (b"\x0a\x06\x8a\x80\x80\x80\x80\x00", BAD_TAG),
        (b"\x0a\x02\x53\x5c", BAD_GROUP),  # opened as 10, closed as 11
        (b"\x0a\x01\x54", BAD_GROUP),
        (b"\x0a\xc8\x01" + b"\x53" * 100 + b"\x54" * 100, 0),
        (b"\x0a\xca\x01" + b"\x53" * 101 + b"\x54" * 101, BAD_GROUP),  # deeper than protobuf goes
    ],
)
def test_damage_is_told(content, status):
    assert decoded(content).status == status


def test_a_full_table_ends_the_reading_between_two_objects():
    content = random_objects(np.random.default_rng(0), 5, strange=False).SerializeToString()
    first = decoded(content, 2)
    assert (len(first.rows.present), first.status) == (2, 0)
    rest = decoded(content[first.position :], 3)
    assert (len(rest.rows.present), rest.status, first.position + rest.position) == (3, 0, len(content))


def written_by_protobuf(item) -> bytes:
    objects = waymo_pb2.Objects()
    for index, numbers in enumerate(item.boxes.tolist()):
        entry = objects.objects.add(context_name=item.context_name, frame_timestamp_micros=item.timestamp_micros)
        b, label = entry.object.box, entry.object
        b.center_x, b.center_y, b.center_z, b.length, b.width, b.height, b.heading = numbers
        label.type = int(item.types[index])
        if hasattr(item, "scores"):
            entry.score, entry.overlap_with_nlz = item.scores[index], bool(item.overlaps_no_label_zone[index])
            continue
        label.detection_difficulty_level = int(item.levels[index])
        label.num_lidar_points_in_box = int(item.num_points[index])
        if item.velocity is not None:
            m = label.metadata
            m.speed_x, m.speed_y, m.speed_z = item.velocity[index].tolist()
    return objects.SerializeToString()


@pytest.mark.parametrize("key", [("a", 1), ("é" * 100, -1), ("x" * 40_000, 1550083467346370)])
def test_frames_are_written_as_protobuf_writes_them(key):
    rng = np.random.default_rng(0)
    boxes = rng.normal(0, 30, (300, 7)).astype(np.float32)
    types = rng.integers(0, 5, 300)
    detections = found(boxes, rng.random(300), types, rng.random(300) < 0.5, key)
    assert encode_frame(detections) == written_by_protobuf(detections)
    labels = dataclasses.replace(
        truth(boxes, rng.integers(1, 3, 300), types, key),
        num_points=rng.choice([1, 127, 128, 2**31 - 1], 300).astype(np.int32),
        velocity=rng.normal(0, 5, (300, 3)).astype(np.float32),
    )
    assert encode_frame(labels) == written_by_protobuf(labels)
    unmoving = dataclasses.replace(labels, velocity=None)
    assert encode_frame(unmoving) == written_by_protobuf(unmoving)
    assert encode_frame(found([])) == b""
    # Boxes that are part of a larger array, as those of a file are.
    strided = dataclasses.replace(found([box()] * 2), boxes=np.ones((2, 11), np.float32)[:, :7])
    assert encode_frame(strided) == written_by_protobuf(strided)
