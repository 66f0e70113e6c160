from pathlib import Path

from detection3d.protos import waymo_pb2

LABEL_KEYPOINTS = b"\x42\x03\x0a\x01\x00"  # field 8 of Label, which isn't declared
FRAME_IMAGES = b"\x22\x04abcd"  # field 4 of Frame, likewise


def test_what_is_not_declared_survives_a_round_trip() -> None:
    frame = waymo_pb2.Frame(timestamp_micros=5)
    frame.laser_labels.add(id="a").MergeFromString(LABEL_KEYPOINTS)
    frame.MergeFromString(FRAME_IMAGES)
    again = waymo_pb2.Frame.FromString(frame.SerializeToString())
    again.timestamp_micros = 6
    serialised = again.SerializeToString()
    assert LABEL_KEYPOINTS in serialised
    assert FRAME_IMAGES in serialised


def test_package_is_our_own() -> None:
    assert waymo_pb2.DESCRIPTOR.package == "detection3d.waymo"
    assert waymo_pb2.DESCRIPTOR.name == "detection3d/protos/waymo.proto"


def test_numbers_on_the_wire_are_waymos() -> None:
    box = waymo_pb2.Label.Box(width=1.0, length=2.0, height=3.0, heading=4.0)
    assert [box.SerializeToString()[i] for i in (0, 9, 18, 27)] == [4 << 3 | 1, 5 << 3 | 1, 6 << 3 | 1, 7 << 3 | 1]
    matrix = waymo_pb2.MatrixFloat(data=[1.0, 2.0])
    assert matrix.SerializeToString()[:2] == b"\x0a\x08"  # packed
    numbers = {
        ("Frame", "no_label_zones"): 7,
        ("Context", "laser_calibrations"): 3,
        ("RangeImage", "range_image_pose_compressed"): 4,
        ("Label", "num_top_lidar_points_in_box"): 13,
        ("Object", "frame_timestamp_micros"): 5,
    }
    for (message, field), number in numbers.items():
        assert waymo_pb2.DESCRIPTOR.message_types_by_name[message].fields_by_name[field].number == number


def test_official_predictions_and_ground_truth_parse(shared: Path) -> None:
    predictions = waymo_pb2.Objects.FromString((shared / "waymo" / "metrics" / "fake_predictions.bin").read_bytes())
    truths = waymo_pb2.Objects.FromString((shared / "waymo" / "metrics" / "fake_ground_truths.bin").read_bytes())
    assert (len(predictions.objects), len(truths.objects)) == (2263, 1010)
    assert len({(item.context_name, item.frame_timestamp_micros) for item in truths.objects}) == 20
    assert any(item.object.num_lidar_points_in_box > 0 for item in truths.objects)
