"""Objects in folders, archives and files whose name says nothing; and files that are of no use."""

import gzip
import io
import json
import pickle
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

import numpy as np
import pytest

from detection3d.data.waymo.records import RecordWriter
from detection3d.errors import DataError
from detection3d.evaluation.files.objects import (
    read_detections,
    read_ground_truth,
    write_detections,
    write_ground_truth,
)
from detection3d.evaluation.files.objects_files import natural_order
from detection3d.evaluation.files.objects_stream import Source
from detection3d.protos import waymo_pb2
from tests.data.fuzz_changes import change_bytes
from tests.evaluation.builders import box, found, truth
from tests.evaluation.test_objects import assert_same
from tests.small_run import environment

FRAMES = [found([box(k), box(k + 5)], [0.1, 0.2], [1, 2], key=("a", k)) for k in range(12)]


def shard(objects: bytes, **fields: object) -> bytes:
    header = waymo_pb2.Submission(task="DETECTION_3D", unique_method_name="m", authors=["x"], **fields)
    header.inference_results.MergeFromString(objects)
    return header.SerializeToString()


def objects_of(frames) -> bytes:
    return b"".join(written(write_detections, frames))


def written(write, frames) -> list[bytes]:
    """The entries of an Objects message, one by one."""
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder) / "f.bin", frames)
        entries = waymo_pb2.Objects.FromString((Path(folder) / "f.bin").read_bytes()).objects
    return [waymo_pb2.Objects(objects=[entry]).SerializeToString() for entry in entries]


def pack(path: Path, files: dict[str, bytes], mode: str = "w:gz") -> Path:
    with tarfile.open(path, mode) as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return path


def lay(folder: Path, files: dict[str, bytes]) -> Path:
    folder.mkdir()
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


def assert_frames(read, frames=FRAMES):
    assert [item.key for item in read] == [item.key for item in frames]
    for left, right in zip(read, frames, strict=True):
        assert_same(left, right)


def test_content_decides_where_the_name_says_nothing(tmp_path):
    write_detections(tmp_path / "d.bin", FRAMES)
    write_detections(tmp_path / "d.parquet", FRAMES)
    (tmp_path / "d.bin").rename(tmp_path / "model0")
    (tmp_path / "d.parquet").rename(tmp_path / "model1")
    (tmp_path / "model2").write_bytes(shard(objects_of(FRAMES)))
    (tmp_path / "model3.bin").write_bytes(shard(objects_of(FRAMES)))
    for name in ("model0", "model1", "model2", "model3.bin"):
        assert_frames(read_detections(tmp_path / name))
    (tmp_path / "model0").rename(tmp_path / "model.parquet")
    with pytest.raises(DataError, match="not a parquet file, whatever its name says"):
        read_detections(tmp_path / "model.parquet")


def test_shards_are_put_together_in_the_order_of_their_names(tmp_path):
    # As Waymo's tool deals them: object by object. In name10 the first of the last frame stands before the second.
    entries = written(write_detections, FRAMES)
    files = {f"model{k}": shard(b"".join(entries[k::11])) for k in range(11)}
    keys = {item.key for item in FRAMES}
    folder = read_detections(lay(tmp_path / "shards", {**files, ".hidden": b"x"}))
    assert {item.key for item in folder} == keys
    assert [item.key for item in folder][:4] == [("a", 0), ("a", 5), ("a", 11), ("a", 6)]
    by_key = {item.key: item for item in folder}
    for frame in FRAMES:
        read = by_key[frame.key]
        order = [0, 1]
        first, second = (2 * frame.timestamp_micros) % 11, (2 * frame.timestamp_micros + 1) % 11
        np.testing.assert_array_equal(read.scores, frame.scores[order if first < second else order[::-1]])
    upside_down = dict(reversed(files.items()))
    for mode, name in (("w:gz", "s.tar.gz"), ("w", "s.tar"), ("w:gz", "upload")):
        path = pack(tmp_path / name, {**upside_down, "._model0": b"of a Mac"}, mode)
        for left, right in zip(read_detections(path), folder, strict=True):
            assert_same(left, right)
    assert sorted(["m10", "m2", "m", "m2b"], key=natural_order) == ["m", "m2", "m2b", "m10"]


def test_labels_in_shards(tmp_path):
    labels = [truth([box(1), box(9)], [1, 2], key=("a", k)) for k in range(3)]
    files = {f"{k}": shard(b"".join(written(write_ground_truth, [item]))) for k, item in enumerate(labels)}
    assert_frames(read_ground_truth(pack(tmp_path / "labels.tar", files, "w")), labels)


def test_pieces_are_put_together(tmp_path, monkeypatch):
    monkeypatch.setattr("detection3d.evaluation.files.objects_stream._PIECE", 300)
    monkeypatch.setattr("detection3d.evaluation.files.objects_stream._ROWS", 3)
    entries = written(write_detections, FRAMES)
    large = waymo_pb2.Objects.FromString(entries[3])
    large.objects[0].object.id = "x" * 2000  # larger than a piece
    entries[3] = large.SerializeToString()
    unknown = b"\x12\xd0\x0f" + bytes(2000)  # no-label zones, likewise
    content = b"".join([*entries[:5], unknown, *entries[5:]])
    (tmp_path / "d.bin").write_bytes(content)
    assert_frames(read_detections(tmp_path / "d.bin"))
    (tmp_path / "d.bin").write_bytes(shard(content))
    assert_frames(read_detections(tmp_path / "d.bin"))
    (tmp_path / "d.bin").write_bytes(content[:-1])
    last = f"{len(content) - len(entries[-1]):,}"
    with pytest.raises(
        DataError, match=rf"d\.bin, record 23: the message makes no sense at byte {last}: it is cut short"
    ):
        read_detections(tmp_path / "d.bin")


def test_files_that_do_not_belong_together_are_refused(tmp_path):
    one, two = objects_of(FRAMES[:6]), objects_of(FRAMES[6:])
    cases = {
        "same objects": ({"m0": shard(one), "m1": shard(two), "m1 (copy)": shard(two)}, "holds the same objects as m1"),
        "other run": (
            {"m0": shard(one, description="old"), "m1": shard(two, description="new")},
            "another submission than m0: description differ",
        ),
        "two kinds": ({"m0": one, "m1": shard(two)}, "m1: the file is a Submission message, but m0 lies beside it"),
        "two models": (
            {"m0": one, "m1": objects_of([found([box(50)], key=("a", 5)), *FRAMES[6:]])},
            r"frame a at 5 is also in m0 \(1 frames in all\); are they of two models",
        ),
        "another task": (
            {"m0": shard(one).replace(b"\x08\x02", b"\x08\x04", 1)},
            "m0: the submission's task is TRACKING_3D",
        ),
        "other files": ({"m0": one, "metrics.json": b"{}"}, r"metrics\.json: the file is text, it begins with b'{}'"),
        "nothing": ({}, "holds no file"),
        "no objects": ({"m0": shard(b"")}, "holds no objects"),
    }
    for number, (files, message) in enumerate(cases.values()):
        folder = lay(tmp_path / f"{number}", files)
        with pytest.raises(DataError, match=message):
            read_detections(folder)
        with pytest.raises(DataError, match=message):
            read_detections(pack(tmp_path / f"{number}.tar.gz", files))
    (tmp_path / "6/sub").mkdir()
    with pytest.raises(DataError, match="sub: a folder among the shards"):
        read_detections(tmp_path / "6")
    write_detections(tmp_path / "6/detections.parquet", FRAMES)
    with pytest.raises(DataError, match="the file is a parquet file; a folder or archive may hold"):
        read_detections(tmp_path / "6")
    with tarfile.open(tmp_path / "link.tar", "w") as archive:
        entry = tarfile.TarInfo("m0")
        entry.type, entry.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(entry)
    with pytest.raises(DataError, match=r"link\.tar/m0: a link or a device"):
        read_detections(tmp_path / "link.tar")


def foreign_files(folder: Path) -> dict[str, str]:
    """Write files that someone may take for detections; return what the error says of each."""
    with zipfile.ZipFile(folder / "zip", "w") as file:
        file.writestr("a", "b")
    np.save(folder / "array.npy", np.zeros(3))
    (folder / "pickle").write_bytes(pickle.dumps([1]))
    (folder / "json.bin").write_text(json.dumps({"boxes": []}))
    with RecordWriter(folder / "record") as writer:
        writer.write(b"frame")
    frame = waymo_pb2.Frame(context=waymo_pb2.Context(name="a" * 30), timestamp_micros=5)
    (folder / "frame.bin").write_bytes(frame.SerializeToString())
    (folder / "empty.bin").write_bytes(b"")
    with gzip.open(folder / "objects.bin.gz", "wb") as file:
        file.write(objects_of(FRAMES))
    return {
        "zip": "the file is a zip archive",
        "array.npy": "the file is a numpy array",
        "pickle": "the file is a pickle",
        "json.bin": "the file is text, it begins with",
        "record": "the file is a TFRecord",
        "frame.bin": "record 0: the (object doesn't name its frame|message makes no sense at byte 0)",
        "empty.bin": "the file is empty",
        "objects.bin.gz": "not a tar archive, or cut short or damaged",
    }


def test_foreign_files_are_named(tmp_path):
    for name, message in foreign_files(tmp_path).items():
        for read in (read_detections, read_ground_truth):
            with pytest.raises(DataError, match=message):
                read(tmp_path / name)


def test_archives_cut_short_or_damaged_are_refused(tmp_path):
    content = pack(tmp_path / "s.tar.gz", {"m0": shard(objects_of(FRAMES))}).read_bytes()
    path = tmp_path / "t.tar.gz"
    for length in [*range(10, len(content), 37), len(content) - 1, len(content) - 8]:
        path.write_bytes(content[:length])
        with pytest.raises(DataError):
            read_detections(path)
    # A bit of the data, of the checksum.
    for position in (len(content) // 2, len(content) - 6):
        path.write_bytes(content[:position] + bytes([content[position] ^ 4]) + content[position + 1 :])
        with pytest.raises(DataError):
            read_detections(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda o: o.object.box.ClearField("height"), "record 1: the object has no 3D box: height is missing"),
        (lambda o: [o.object.box.ClearField(f) for f in ("center_z", "heading")], "center_z, heading is missing"),
        (lambda o: o.MergeFromString(b"\x0a\x02\x18\x07"), "record 1: the object has type 7; Waymo's types are 0 to 4"),
        (lambda o: setattr(o, "score", 1.5), r"frame a at 0: detection 1 has score 1\.5; scores must lie in \[0, 1\]"),
        (lambda o: setattr(o, "score", -0.5), r"detection 1 has score -0\.5"),
        (lambda o: o.MergeFromString(b"\x22\x01\xff"), r"record 1: context_name is not UTF-8: b'\\xff'"),
    ],
)
def test_objects_that_cannot_be_evaluated_are_named(tmp_path, change, message):
    objects = waymo_pb2.Objects.FromString(objects_of(FRAMES))
    change(objects.objects[1])
    (tmp_path / "d.bin").write_bytes(objects.SerializeToString())
    with pytest.raises(DataError, match=message):
        read_detections(tmp_path / "d.bin")


def test_levels_of_labels(tmp_path):
    path = tmp_path / "g.bin"
    content = b"".join(written(write_ground_truth, [truth([box(1), box(2)])]))
    path.write_bytes(content + b"\x0a\x04\x0a\x02\x28\x09")
    with pytest.raises(DataError, match="record 2: the object doesn't name its frame"):
        read_ground_truth(path)
    objects = waymo_pb2.Objects.FromString(content)
    objects.objects[1].object.MergeFromString(b"\x28\x09")
    path.write_bytes(objects.SerializeToString())
    with pytest.raises(DataError, match="record 1: the object has difficulty level 9; levels are 0"):
        read_ground_truth(path)


def test_a_frame_that_occurs_twice_in_parquet(tmp_path):
    path = tmp_path / "d.parquet"
    write_detections(path, [*FRAMES, FRAMES[3]])
    with pytest.raises(DataError, match="frame a at 3 occurs twice; keep one of them"):
        read_detections(path)


def test_a_source_that_ends_early():
    with pytest.raises(DataError, match="it ends after 3 of 5 bytes"):
        Source(io.BytesIO(b"abc"), 5, Path("x")).take(5)


def try_changed(folder: Path, seed: int) -> bool:
    """Read a changed file; only DataError may come of it. Return whether it was read."""
    rng = np.random.default_rng(seed)
    frames = FRAMES[: int(rng.integers(1, 5))]
    path = folder / "changed"
    match int(rng.integers(4)):
        case 0:
            content = change_bytes(rng, objects_of(frames))
        case 1:
            content = change_bytes(rng, shard(objects_of(frames)))
        case 2:
            changed = change_bytes(rng, shard(objects_of(frames)))
            content = pack(path, {"m0": changed}, str(rng.choice(["w", "w:gz"]))).read_bytes()
        case _:
            packed = pack(path, {"m0": shard(objects_of(frames))}, str(rng.choice(["w", "w:gz"]))).read_bytes()
            content = change_bytes(rng, packed)
    path.write_bytes(content)
    read = read_ground_truth if rng.random() < 0.2 else read_detections
    try:
        read(path)
    except DataError:
        return False
    return True


def test_changed_files_give_boxes_or_a_clear_error(tmp_path):
    assert 20 < sum(try_changed(tmp_path, seed) for seed in range(400)) < 380


@pytest.mark.slow
def test_many_changed_files(tmp_path):
    for seed in range(10_000, 60_000):
        try_changed(tmp_path, seed)


MEASURED = r"""
import re, sys, time
from detection3d.evaluation.files.objects import read_detections, read_ground_truth
read_detections(sys.argv[3]), read_ground_truth(sys.argv[4])  # compiled before the clock runs
begin = time.perf_counter()
detections, truth = read_detections(sys.argv[1]), read_ground_truth(sys.argv[2])
seconds = time.perf_counter() - begin
boxes = sum(len(item.boxes) for item in detections), sum(len(item) for item in truth)
# Not getrusage, whose peak begins with that of the process which started this one.
peak = re.search(r"VmHWM:\s+(\d+) kB", open("/proc/self/status").read())[1]
print(len(detections), len(truth), *boxes, seconds, peak)
"""


@pytest.mark.slow
def test_a_validation_set_is_read_in_seconds_and_little_memory(tmp_path):
    rng = np.random.default_rng(0)
    frames = 40_000
    for folder in ("large", "small"):
        (tmp_path / folder).mkdir()
        number = frames if folder == "large" else 2
        keys = [(f"1020365635352417947{k // 200}_7625_000_7645_000", 10**15 + 100_000 * k) for k in range(number)]
        boxes = rng.uniform(0.5, 70, (number, 100, 7)).astype(np.float32)
        scores = rng.random((number, 100))
        write_detections(
            tmp_path / folder / "d.bin",
            [found(b, s, 1, key=key) for b, s, key in zip(boxes, scores, keys, strict=True)],
        )
        write_ground_truth(
            tmp_path / folder / "g.bin", [truth(b, key=key) for b, key in zip(boxes[:, :28], keys, strict=True)]
        )
    files = [str(tmp_path / folder / name) for folder in ("large", "small") for name in ("d.bin", "g.bin")]
    result = subprocess.run(
        [sys.executable, "-c", MEASURED, *files], capture_output=True, text=True, check=True, env=environment()
    )
    *counts, seconds, kilobytes = result.stdout.split()
    assert [int(count) for count in counts] == [frames, frames, 100 * frames, 28 * frames]
    assert float(seconds) < 60
    assert int(kilobytes) < 1.5e6
