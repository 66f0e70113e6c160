"""A damaged store: told when it is opened, when a frame is read, or by `verify`; never fewer frames in silence."""

import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from detection3d.data.preparation import Source, prepare
from detection3d.data.store import Store, verify
from detection3d.errors import DataError
from tests.data.made_frames import make_frame, read_recipe, write_recipe, write_store

SEGMENTS, FRAMES = 3, 4
FILES = ("points.bin", "frames.arrow", "boxes.arrow")


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sound")
    (folder / "in").mkdir()
    sources = [write_recipe(folder / "in" / f"s{number}.json", frames=FRAMES) for number in range(SEGMENTS)]
    prepare(sources, folder / "out")
    return folder / "out"


@pytest.fixture
def root(sound: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sound, tmp_path / "store"))


def read_all(root: Path) -> int:
    """Read every frame, and return how many there are."""
    store = Store.open(root)
    for index in range(len(store)):
        store.frame(index)
    return len(store)


# What is left of a file's content.
CUTS: dict[str, Callable[[bytes], bytes]] = {
    "everything": lambda content: b"",
    "all but the first byte": lambda content: content[:1],
    "the second half": lambda content: content[: len(content) // 2],
    "the last byte": lambda content: content[:-1],
    "the first byte": lambda content: content[1:],
    "the first block": lambda content: content[64:],
    "the middle": lambda content: content[: len(content) // 3] + content[-len(content) // 3 :],
}


@pytest.mark.parametrize("lost", CUTS)
@pytest.mark.parametrize("segment", range(SEGMENTS))
@pytest.mark.parametrize("name", FILES)
def test_a_cut_file_stops_the_opening_and_preparing_again_mends_it(
    root: Path, sound: Path, name: str, segment: int, lost: str
) -> None:
    path = root / "segments" / f"s{segment}" / name
    whole = path.read_bytes()
    path.write_bytes(CUTS[lost](whole))
    with pytest.raises(DataError, match=rf"{name}: \d+ bytes, the manifest says {len(whole)}; delete \S+ and run"):
        Store.open(root)
    assert [problem.path for problem in verify(root)] == [path]
    inputs = sorted((sound.parent / "in").iterdir())
    outcome = prepare([Source(file.name, file, read_recipe) for file in inputs], root)
    assert [record.context_name for record in outcome.prepared] == [f"s{segment}"]
    assert read_all(root) == SEGMENTS * FRAMES
    assert verify(root) == []


@pytest.mark.parametrize("name", ["frames.arrow", "boxes.arrow"])
def test_no_flipped_byte_of_a_table_reaches_arrow(tmp_path: Path, name: str) -> None:
    """Arrow ends the process by a signal over some of them."""
    write_store(tmp_path, {"a": [make_frame("a", number, points=5) for number in range(2)]})
    path = tmp_path / "segments" / "a" / name
    whole = path.read_bytes()
    for place in range(0, len(whole), 29):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0xFF]) + whole[place + 1 :])
        with pytest.raises(DataError, match=f"{name}: its checksum disagrees"):
            read_all(tmp_path)


@pytest.mark.parametrize("name", FILES)
def test_zeros_where_a_file_s_end_was_are_found(root: Path, name: str) -> None:
    """As a failing power leaves them: the size is right."""
    path = root / "segments" / "s1" / name
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2] + bytes(len(whole) - len(whole) // 2))
    assert [problem.path for problem in verify(root)] == [path]
    if name != "points.bin":  # only `verify` reads all of it
        with pytest.raises(DataError, match=f"{name}: its checksum disagrees"):
            read_all(root)


Record = dict[str, Any]


def edit(*keys: str, value: object) -> Callable[[Record], object]:
    """Write a value at a place of the second segment's record."""

    def change(manifest: Record) -> None:
        place = manifest["segments"][1]
        for key in keys[:-1]:
            place = place[key]
        place[keys[-1]] = value

    return change


# Edited manifests which the opening, or the reading of the frames, refuses; the reason.
MANIFESTS: dict[str, tuple[Callable[[Record], object], str]] = {
    "a frame less": (edit("frames", value=FRAMES - 1), f"{FRAMES} frames, the manifest says {FRAMES - 1}"),
    "a frame more": (edit("frames", value=FRAMES + 1), f"{FRAMES} frames, the manifest says {FRAMES + 1}"),
    "no frame": (edit("frames", value=0), r"manifest.json: segments.1.frames: .*greater than or equal to 1"),
    "negative frames": (edit("frames", value=-FRAMES), r"manifest.json: segments.1.frames: .*greater than"),
    "half a frame": (edit("frames", value=0.5), r"manifest.json: segments.1.frames: .*valid integer"),
    "frames in words": (edit("frames", value="four"), r"manifest.json: segments.1.frames: .*valid integer"),
    "frames gone": (lambda manifest: manifest["segments"][1].pop("frames"), "manifest.json: segments.1.frames: Field"),
    "another size": (edit("files", "points.bin", "size", value=7), "points.bin: .* the manifest says 7"),
    "another name": (edit("context_name", value="s9"), "s9/points.bin: it is missing"),
    "a segment twice": (
        lambda manifest: manifest["segments"].append(manifest["segments"][0]),
        "manifest.json: segments: .*the segment s0 is listed 2 times",
    ),
    "an unknown key": (edit("colour", value="red"), "manifest.json: segments.1.colour: Extra"),
    "another version": (
        lambda manifest: manifest.update(schema_version=7),
        "schema_version is 7, this program reads 1",
    ),
    "no segments": (lambda manifest: manifest.update(segments=[]), "it holds no frames"),
    "segments gone": (lambda manifest: manifest.pop("segments"), "manifest.json: segments: Field required"),
    "settings that can't be": (lambda manifest: manifest["settings"].update(every=0), "settings.every: .*greater than"),
}

# Those that open: what was edited says nothing of the frames, or there is nothing to compare with but the disk.
ONLY_VERIFIED: dict[str, tuple[Callable[[Record], object], str]] = {
    "another checksum": (edit("files", "points.bin", "crc32c", value=7), "points.bin: .* expected .* with 00000007"),
    "other points": (edit("points", value=7), "segment.json: it disagrees with the store's manifest.json"),
    "other boxes": (edit("boxes", value=7), "segment.json: it disagrees with the store's manifest.json"),
    "a segment gone": (lambda manifest: manifest["segments"].pop(1), "the store's manifest.json doesn't list this"),
}


def rewrite(root: Path, change: Callable[[Record], object]) -> None:
    manifest = json.loads((root / "manifest.json").read_text())
    change(manifest)
    (root / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize("case", MANIFESTS)
def test_an_edited_manifest_is_refused(root: Path, case: str) -> None:
    change, reason = MANIFESTS[case]
    rewrite(root, change)
    with pytest.raises(DataError, match=reason):
        read_all(root)


@pytest.mark.parametrize("case", ONLY_VERIFIED)
def test_an_edited_manifest_is_found_by_verify(root: Path, case: str) -> None:
    change, reason = ONLY_VERIFIED[case]
    rewrite(root, change)
    problems = "\n".join(map(str, verify(root)))
    with pytest.raises(DataError, match=reason):
        raise DataError(root, problems)


@pytest.mark.parametrize("name", [*FILES, "segment.json"])
def test_a_folder_where_a_file_should_be(root: Path, name: str) -> None:
    path = root / "segments" / "s1" / name
    path.unlink()
    path.mkdir()
    assert path in [problem.path for problem in verify(root)]
    with pytest.raises(DataError, match=f"s1/{name}: "):
        read_all(root)


@pytest.mark.parametrize("name", [*FILES, "segment.json"])
def test_a_missing_file(root: Path, name: str) -> None:
    path = root / "segments" / "s1" / name
    path.unlink()
    assert [problem.path for problem in verify(root)] == [path]
    with pytest.raises(DataError, match=f"s1/{name}: "):
        read_all(root)


@pytest.mark.skipif(os.geteuid() == 0 or sys.platform == "win32", reason="the superuser may read everything")
@pytest.mark.parametrize("name", [*FILES, "segment.json"])
def test_a_file_that_may_not_be_read(root: Path, name: str) -> None:
    path = root / "segments" / "s1" / name
    path.chmod(0)
    with pytest.raises(DataError, match=f"s1/{name}: .*Permission denied"):
        read_all(root)
