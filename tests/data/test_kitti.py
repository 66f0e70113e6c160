import os
import re
from pathlib import Path

import numpy as np
import pytest

from detection3d.cli import prepare_kitti
from detection3d.cli.run import run
from detection3d.data import kitti
from detection3d.data.store import Store
from detection3d.errors import DataError
from detection3d.geometry.host.boxes import corners_bev, count_points_in_boxes
from detection3d.types.scene import ObjectType

# The camera 0.27 m ahead of the lidar and 0.08 m below it, looking ahead: x right, y down, z forward.
CALIBRATION = """P2: 700 0 600 0 0 700 180 0 0 0 1 0
R0_rect: 1 0 0 0 1 0 0 0 1
Tr_velo_to_cam: 0 -1 0 0 0 0 -1 -0.08 1 0 0 -0.27
"""
LABELS = """Car 0.00 0 -1.57 500 150 700 250 1.50 1.80 4.00 2.00 1.60 20.00 -1.5707963
Pedestrian 0.00 0 0 1 2 3 4 1.70 0.60 0.80 -3.00 1.50 10.00 0.00
DontCare -1 -1 -10 100 100 200 200 -1 -1 -1 -1000 -1000 -1000 -10
"""


def write_scan(root: Path, number: str = "000007", labels: str | None = LABELS, calibration: str = CALIBRATION) -> Path:
    for folder in ("velodyne", "calib", *(() if labels is None else ("label_2",))):
        (root / folder).mkdir(parents=True, exist_ok=True)
    points = [
        (20.27, -2.0, -0.8, 0.5),  # in the car
        (20.27, 30.0, 0.0, 0.1),  # beyond the image's left edge
        (-5.0, 0.0, 0.0, 0.2),  # behind the camera
        (20.27, 12.0, 0.9, 1.0),  # in the region without labels
    ]
    np.array(points, "<f4").tofile(root / "velodyne" / f"{number}.bin")
    (root / "calib" / f"{number}.txt").write_text(calibration)
    if labels is not None:
        (root / "label_2" / f"{number}.txt").write_text(labels)
    return root


def test_a_scan_becomes_a_frame(tmp_path: Path) -> None:
    frame = kitti.read_scan(write_scan(tmp_path), "000007", "training-000000")
    assert frame.key == ("training-000000", 7)
    np.testing.assert_allclose(frame.points[:, 3], (0.5, 0.1, 0.2, 1.0))
    assert not frame.points[:, 4].any()
    assert frame.in_no_label_zone.tolist() == [False, True, True, True]
    labels = frame.labels
    assert labels is not None
    # The bottom's centre in the camera's frame, at (right, down, ahead), is the box's centre half its height lower.
    np.testing.assert_allclose(labels.boxes[0], (20.27, -2.0, -1.6 - 0.08 + 0.75, 4.0, 1.8, 1.5, 0.0), atol=1e-6)
    np.testing.assert_allclose(labels.boxes[1, :3], (10.27, 3.0, -1.5 - 0.08 + 0.85), atol=1e-6)
    assert labels.boxes[1, 6] == pytest.approx(-np.pi / 2)  # towards the camera's x, which is the right
    assert labels.types.tolist() == [ObjectType.VEHICLE, ObjectType.PEDESTRIAN]
    assert labels.ids == ("000007-0", "000007-1")
    assert labels.num_points.tolist() == [1, 0]


def test_without_labels(tmp_path: Path) -> None:
    frame = kitti.read_scan(write_scan(tmp_path, labels=None), "000007", "testing-000000")
    assert frame.labels is None
    assert frame.in_no_label_zone.tolist() == [False, True, True, False]
    (tmp_path / "label_2").mkdir()
    with pytest.raises(DataError, match=r"label_2/000007\.txt: there is no such file"):
        kitti.read_scan(tmp_path, "000007", "training-000000")


def test_without_objects(tmp_path: Path) -> None:
    labels = kitti.read_scan(write_scan(tmp_path, labels=""), "000007", "training-000000").labels
    assert labels is not None
    assert labels.boxes.shape == (0, 7)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": "Bus" + LABELS[3:]}, r"label_2/000007.txt: line 1 is of the category 'Bus'; KITTI's are Car, Cycl"),
        ({"labels": LABELS.replace(" 20.00 -1.57", "")}, "line 1 isn't a category and 14 numbers"),
        ({"labels": LABELS.replace("1.50 10.00", "1.50 nan")}, "line 2 isn't a category and 14 numbers"),
        ({"labels": LABELS.replace("1.50 10.00", "1.50 far")}, "line 2 isn't a category and 14 numbers"),
        ({"calibration": ""}, "calib/000007.txt: it has no R0_rect; it has nothing"),
        ({"calibration": CALIBRATION.replace("P2", "P3")}, "it has no P2; it has P3, R0_rect, Tr_velo_to_cam"),
        ({"calibration": CALIBRATION.replace("700 0 600", "700 0")}, "its P2 isn't 3 x 4 numbers: 700 0 0 0 700"),
        ({"calibration": CALIBRATION.replace("-0.27", "x")}, "its Tr_velo_to_cam isn't 3 x 4 numbers"),
        ({"calibration": CALIBRATION.replace("-0.27", "nan")}, "its Tr_velo_to_cam maps nothing"),
        ({"calibration": CALIBRATION.replace("1 0 0 0 1 0 0 0 1", "0 0 0 0 0 0 0 0 0")}, "its R0_rect maps nothing"),
    ],
)
def test_what_cannot_be_used_is_named(tmp_path: Path, change: dict[str, str], message: str) -> None:
    with pytest.raises(DataError, match=message):
        kitti.read_scan(write_scan(tmp_path, **change), "000007", "training-000000")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "0 bytes are no whole points"),
        (bytes(17), "17 bytes are no whole points"),
        (np.full(4, np.nan, "<f4").tobytes(), "isn't finite"),
    ],
)
def test_scans_that_are_cut_or_damaged(tmp_path: Path, content: bytes, message: str) -> None:
    (write_scan(tmp_path) / "velodyne" / "000007.bin").write_bytes(content)
    with pytest.raises(DataError, match=message):
        kitti.read_scan(tmp_path, "000007", "training-000000")
    (tmp_path / "velodyne" / "000007.bin").unlink()
    with pytest.raises(DataError, match="there is no such file"):
        kitti.read_scan(tmp_path, "000007", "training-000000")


def test_the_tool_makes_segments_of_a_hundred_scans(tmp_path: Path, capfd, monkeypatch) -> None:
    monkeypatch.setattr(prepare_kitti, "SCANS_A_SEGMENT", 2)
    for number in range(5):
        write_scan(tmp_path / "kitti" / "training", f"{number:06d}")
    write_scan(tmp_path / "kitti" / "testing", labels=None)
    command = ["--input", str(tmp_path / "kitti"), "--output", str(tmp_path / "out"), "--workers", "1"]
    assert run(prepare_kitti.main, command) == 0
    assert re.search(r"about \d+ frames", capfd.readouterr().out)
    store = Store.open(tmp_path / "out")
    names = ["testing-000006", *(f"training-{number:06d}" for number in (0, 0, 2, 2, 4))]
    assert [store.key(index) for index in range(len(store))] == list(zip(names, (7, 0, 1, 2, 3, 4), strict=True))
    assert run(prepare_kitti.main, command) == 0
    assert "nothing to do: all 4 sources" in capfd.readouterr().out
    (tmp_path / "kitti" / "training" / "label_2" / "000003.txt").write_text("")  # a companion, not the first file
    assert run(prepare_kitti.main, command) == 0
    assert "1 segments to prepare, 3 finished earlier" in capfd.readouterr().out
    (tmp_path / "kitti" / "training" / "calib" / "000001.txt").unlink()
    assert run(prepare_kitti.main, command) == 1
    assert "training-000000: " in (told := capfd.readouterr().err)
    assert "000001.txt: there is no such file; download the calibration" in told


@pytest.mark.parametrize(
    ("make", "message"), [(False, "there is no such folder"), (True, "no folder in it holds velo")]
)
def test_no_input(tmp_path: Path, capfd, make: bool, message: str) -> None:
    if make:
        (tmp_path / "in" / "velodyne").mkdir(parents=True)
    assert run(prepare_kitti.main, ["--input", str(tmp_path / "in"), "--output", str(tmp_path / "out")]) == 1
    assert message in capfd.readouterr().err


def test_two_folders_of_one_name_are_told_apart(tmp_path: Path, capfd) -> None:
    for place in ("a", "b"):
        write_scan(tmp_path / place / "training")
    command = ["--input", str(tmp_path), "--output", str(tmp_path / "out"), "--workers", "1"]
    assert run(prepare_kitti.main, command) == 1
    told = capfd.readouterr().err
    assert "a/training/velodyne/000007.bin and " in told
    assert "would both become the segment training-000000; rename a folder, or" in told


def test_a_scan_that_comes_later_moves_no_other(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(prepare_kitti, "SCANS_A_SEGMENT", 2)
    command = ["--input", str(tmp_path / "training"), "--output", str(tmp_path / "out"), "--workers", "1"]
    for numbers in ((1, 2, 3, 5), (0,), (4,)):
        for number in numbers:
            write_scan(tmp_path / "training", f"{number:06d}")
        assert run(prepare_kitti.main, command) == 0
    store = Store.open(tmp_path / "out")
    assert [store.key(index)[1] for index in range(len(store))] == [0, 1, 2, 3, 4, 5]


def test_a_file_that_is_exchanged_for_an_older_one_of_the_same_size(tmp_path: Path, capfd) -> None:
    root = write_scan(tmp_path / "training")
    command = ["--input", str(root), "--output", str(tmp_path / "out"), "--workers", "1"]
    assert run(prepare_kitti.main, command) == 0
    (root / "label_2" / "000007.txt").write_text(LABELS.replace("Car ", "Van "))
    os.utime(root / "label_2" / "000007.txt", (1, 1))
    capfd.readouterr()
    assert run(prepare_kitti.main, command) == 0
    assert "prepared 1 segments" in capfd.readouterr().out


def test_real_boxes_lie_where_the_image_shows_them(shared: Path) -> None:
    """The labels' own image rectangles, drawn by hand in the image, are the oracle for place, size and heading."""
    root = shared / "real" / "kitti"
    compared = 0
    for number in kitti.scan_numbers(root):
        frame = kitti.read_scan(root, number, "x")
        assert frame.labels is not None
        np.testing.assert_array_equal(frame.labels.num_points, count_points_in_boxes(frame.points, frame.labels.boxes))
        assert 0.7 < frame.in_no_label_zone.mean() < 0.9  # the camera sees a quarter of the circle or less
        calibration = kitti._read_calibration(root / "calib" / f"{number}.txt")
        rows = [line.split() for line in (root / "label_2" / f"{number}.txt").read_text().splitlines()]
        rows = [row for row in rows if row[0] != "DontCare"]
        for row, box in zip(rows, frame.labels.boxes, strict=True):
            if float(row[1]) > 0 or row[2] != "0":
                continue  # cut off by the image's edge, or hidden
            corners = np.zeros((8, 5), np.float32)
            corners[:, :2] = np.tile(corners_bev(box[None])[0], (2, 1))
            corners[:, 2] = box[2] + np.repeat((-0.5, 0.5), 4) * box[5]
            pixels, before = calibration.pixels(corners)
            assert before.all()
            found = np.concatenate([pixels.min(axis=0), pixels.max(axis=0)])
            drawn = np.array(row[4:8], np.float64)
            common = np.clip(np.minimum(found[2:], drawn[2:]) - np.maximum(found[:2], drawn[:2]), 0, None).prod()
            union = (found[2:] - found[:2]).prod() + (drawn[2:] - drawn[:2]).prod() - common
            # People's rectangles follow their limbs, which boxes don't.
            assert common / union > (0.8 if row[0] in ("Car", "Truck", "Misc") else 0.5), (number, row)
            compared += 1
    assert compared > 10
