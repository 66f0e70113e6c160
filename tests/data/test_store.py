import json
import multiprocessing
import pickle
import shutil
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest

from detection3d.data.packing import pack, unpack_arrays
from detection3d.data.store import SegmentWriter, SourceRecord, Store, StoreSettings, verify, write_manifest
from detection3d.errors import DataError
from tests.data.made_frames import make_frame, write_store

# Deliberately awkward: no points, no boxes, no labels, an odd number of points.
FRAMES = {
    "first": [make_frame("first", 5), make_frame("first", 6, points=0), make_frame("first", 7, boxes=0)],
    "second": [make_frame("second", 1, points=33, boxes=None), make_frame("second", 5, points=1, boxes=40)],
}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_store(tmp_path / "store", {name: FRAMES[name] for name in ("second", "first")})
    return tmp_path / "store"


def assert_same(actual, expected) -> None:
    """Equal to the bit, field by field."""
    for field in fields(expected):
        ours, theirs = getattr(actual, field.name), getattr(expected, field.name)
        if isinstance(theirs, np.ndarray):
            assert (ours.dtype, ours.shape, ours.tobytes()) == (theirs.dtype, theirs.shape, theirs.tobytes()), (
                field.name
            )
        else:
            assert ours == theirs, field.name


@pytest.mark.parametrize("boxes", [None, 0])
def test_a_segment_without_any_box(tmp_path, boxes):
    """As all of Waymo's test split: none of its frames has labels."""
    frames = [make_frame("bare", number, boxes=boxes) for number in range(2)]
    write_store(tmp_path, {"bare": frames})
    store = Store.open(tmp_path)
    assert verify(tmp_path) == []
    for index, frame in enumerate(frames):
        labels = store.labels(index)
        assert (labels is None) == (boxes is None)
        if labels is not None:
            assert_same(labels, frame.labels)


def test_reads_what_was_written_in_order_of_segment_and_frame(root):
    store = Store.open(root)
    frames = [*FRAMES["first"], *FRAMES["second"]]
    assert len(store) == len(frames)
    assert [store.key(index) for index in range(len(store))] == [frame.key for frame in frames]
    for index, frame in enumerate(frames):
        packed, _ = pack(frame)
        assert_same(store.packed(index), packed)
        np.testing.assert_array_equal(store.pose(index), frame.pose)
        found = store.frame(index)
        if frame.labels is None:
            assert found.labels is None
            assert store.labels(index) is None
        else:
            assert_same(found.labels, frame.labels)
        assert len(found.no_label_zones) == len(frame.no_label_zones)
        for ours, theirs in zip(found.no_label_zones, frame.no_label_zones, strict=True):
            np.testing.assert_array_equal(ours, theirs)
        expected = replace(frame, points=unpack_arrays(packed)[0], labels=None, no_label_zones=())
        assert_same(replace(found, labels=None, no_label_zones=()), expected)


def test_reading_points_copies_nothing_and_cannot_change_them(root):
    first, second = Store.open(root).packed(0), Store.open(root).packed(0)
    assert not first.xyz.flags.owndata
    assert not first.xyz.flags.writeable
    assert not Store.open(root).labels(0).boxes.flags.writeable
    assert first.xyz.ctypes.data % 64 == 0
    assert first.xyz.tobytes() == second.xyz.tobytes()


@pytest.mark.parametrize("index", [-1, 5])
def test_a_frame_that_is_not_there(root, index):
    with pytest.raises(IndexError, match="of a store of 5 frames"):
        Store.open(root).packed(index)


def test_a_used_store_travels_to_another_process(root):
    store = Store.open(root)
    store.packed(0)
    assert len(pickle.dumps(store)) < 1000
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.map(store.key, range(5)) == [store.key(index) for index in range(5)]


def test_mapping_many_segments_keeps_no_file_open(root):
    opened = len(list(Path("/proc/self/fd").iterdir()))
    stores = [Store.open(root) for _ in range(5)]
    for store in stores:
        store.packed(0), store.packed(4)
    assert len(list(Path("/proc/self/fd").iterdir())) == opened


def test_settings_choose_the_returns_kept(tmp_path):
    frame = make_frame("a", 1)
    with SegmentWriter(tmp_path, "a", settings=StoreSettings(returns=(2,))) as writer:
        writer.add(frame)
    write_manifest(tmp_path, StoreSettings(returns=(2,)))
    np.testing.assert_array_equal(Store.open(tmp_path).frame(0).lidar, frame.lidar[frame.return_number == 2])


def test_nothing_is_visible_before_the_segment_is_whole(tmp_path):
    with SegmentWriter(tmp_path, "a") as writer:
        writer.add(make_frame("a", 1))
        assert all(path.name.startswith(".") for path in (tmp_path / "segments").iterdir())
    assert [path.name for path in (tmp_path / "segments").iterdir()] == ["a"]


def test_replacing_a_segment_must_be_asked_for(root):
    with pytest.raises(DataError, match="'first' is in the store already"):
        SegmentWriter(root, "first")
    with SegmentWriter(root, "first", SourceRecord(name="s", size=1, mtime_ns=2), replace=True) as writer:
        writer.add(make_frame("first", 9))
    write_manifest(root, StoreSettings())
    assert Store.open(root).key(0) == ("first", 9)
    assert sorted(path.name for path in (root / "segments").iterdir()) == ["first", "second"]


BOX_WITHOUT_HEIGHT = make_frame("a", 3)
BOX_WITHOUT_HEIGHT.labels.boxes[1, 5] = 0
NAN_VELOCITY = make_frame("a", 3)
NAN_VELOCITY.labels.velocity[1, 2] = np.nan
FEWER_TYPES = make_frame("a", 3)
FEWER_TYPES = replace(FEWER_TYPES, labels=replace(FEWER_TYPES.labels, types=FEWER_TYPES.labels.types[:2]))
NAN_BOX = make_frame("a", 3)
NAN_BOX.labels.boxes[2, 0] = np.nan


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (make_frame("b", 3), "record 1: it belongs to segment 'b'"),
        (make_frame("a", 2), "record 1: timestamp 2 occurs twice"),
        (make_frame("a", 1), "record 1: timestamp 1 comes after 2; frames must be in order of time"),
        (replace(make_frame("a", 3), pose=np.full((4, 4), np.nan)), "record 1: the pose isn't a rotation"),
        (replace(make_frame("a", 3), pose=np.diag([1.0, -1, 1, 1])), "record 1: the pose isn't a rotation"),
        (replace(make_frame("a", 3), pose=np.diag([2.0, 2, 2, 1])), "record 1: the pose isn't a rotation"),
        (NAN_VELOCITY, r"record 1: the velocity of box 1 \(.*\) is \(.*nan.*\); give 0 where it isn't known"),
        (FEWER_TYPES, "record 1: types has 2 values for 3 boxes"),
        (BOX_WITHOUT_HEIGHT, "record 1: box 1 .*sizes positive"),
        (NAN_BOX, "record 1: box 2 .*nan"),
    ],
)
def test_an_unusable_frame_is_refused_with_its_number_and_leaves_nothing_behind(tmp_path, frame, message):
    with pytest.raises(DataError, match=message):
        write_store(tmp_path, {"a": [make_frame("a", 2), frame]})
    assert list((tmp_path / "segments").iterdir()) == []


@pytest.mark.parametrize("name", ["", ".hidden", "a/b"])
def test_a_name_that_cannot_be_a_folder(tmp_path, name):
    with pytest.raises(DataError, match="can't name a folder"):
        SegmentWriter(tmp_path, name)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize("name", ["points.bin", "frames.arrow", "boxes.arrow"])
def test_a_cut_or_missing_file_stops_the_opening(root, name):
    path = root / "segments" / "second" / name
    cut(path)
    with pytest.raises(DataError, match=rf"second/{name}: \d+ bytes, the manifest says"):
        Store.open(root)
    path.unlink()
    with pytest.raises(DataError, match=f"second/{name}: it is missing"):
        Store.open(root)


@pytest.mark.parametrize("name", ["points.bin", "frames.arrow", "boxes.arrow", "segment.json"])
def test_verify_finds_one_flipped_bit_anywhere(root, name):
    assert verify(root) == []
    path = root / "segments" / "first" / name
    content = path.read_bytes()
    for place in {0, len(content) // 2, len(content) - 1}:
        damaged = bytearray(content)
        damaged[place] ^= 1
        path.write_bytes(damaged)
        assert [problem.path for problem in verify(root)] == [path], place


def test_a_table_that_points_outside_the_points_is_refused_when_read(root):
    folder = root / "segments" / "first"
    shutil.copy(root / "segments" / "second" / "points.bin", folder / "points.bin")
    manifest = root / "manifest.json"
    size = (folder / "points.bin").stat().st_size  # nobody reads all points to open a store
    record = json.loads(manifest.read_text())
    record["segments"][0]["files"]["points.bin"]["size"] = size
    manifest.write_text(json.dumps(record))
    with pytest.raises(DataError, match=r"frames.arrow, record 0: it points outside"):
        Store.open(root).packed(0)


def test_a_foreign_arrow_file_is_refused_when_read(root):
    folder = root / "segments" / "first"
    shutil.copy(folder / "boxes.arrow", folder / "frames.arrow")
    record = json.loads((root / "manifest.json").read_text())
    files = record["segments"][0]["files"]
    files["frames.arrow"] = files["boxes.arrow"]
    (root / "manifest.json").write_text(json.dumps(record))
    (folder / "segment.json").write_text(json.dumps(record["segments"][0]))
    with pytest.raises(DataError, match="not a table of the columns that it should have"):
        Store.open(root).key(0)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a JSON object"),
        (b"[]", "not a JSON object"),
        (b"\xff\xfe", "not a JSON object"),
        (b'{"schema_version": 2}', "schema_version is 2, this program reads 1"),
        (b'{"schema_version": 1}', "settings: Field required"),
    ],
)
def test_a_damaged_manifest(root, content, message):
    (root / "manifest.json").write_bytes(content)
    with pytest.raises(DataError, match=rf"manifest.json: .*{message}"):
        Store.open(root)


def test_no_store(tmp_path, root):
    with pytest.raises(DataError, match="there is no such folder"):
        Store.open(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"manifest.json: it is a file; give the folder of a store"):
        Store.open(root / "manifest.json")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"no manifest.json in it, so it is not a prepared store"):
        Store.open(tmp_path / "empty")
    (root / "manifest.json").unlink()
    with pytest.raises(DataError, match="its preparation did not finish"):
        Store.open(root)
    write_manifest(tmp_path / "empty", StoreSettings())
    with pytest.raises(DataError, match="it holds no frames"):
        Store.open(tmp_path / "empty")


def test_store_and_preparation_need_no_torch():
    code = "import sys, detection3d.data.store, detection3d.data.preparation; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
