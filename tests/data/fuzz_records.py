"""Fuzz the reader of Waymo's records: damaged files give the frames that were written, or an error that says why.

    python tests/data/fuzz_records.py --seconds 600 --seed 0

prints how many inputs ended how, and each finding with the number of its input; the exit status is 1 if there is one.

    python tests/data/fuzz_records.py --seed 0 --only 1234

tries one input again and shows where its error comes from. An input follows from the seed and its number alone. Inputs
are tried in a child process, so that a crash, a hang and a full memory are findings, too.
"""

import argparse
import collections
import dataclasses
import json
import resource
import select
import struct
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from pathlib import Path

import numpy as np
from fuzz_changes import LEVELS, bytes_of_the_file, change_bytes

from detection3d.data.label_check import unusable_label
from detection3d.data.packing import pack
from detection3d.data.synthetic.generate import record_segment
from detection3d.data.synthetic.rigs import RigConfig, tiny_rig
from detection3d.data.synthetic.scene import SceneConfig
from detection3d.data.waymo import RecordWriter, index_records, read_record, read_segment
from detection3d.data.waymo.records import masked_crc32c
from detection3d.errors import DataError, UserError
from detection3d.types.scene import Frame

FRAMES = 3
LONGEST_SECONDS = 20.0
LARGEST_MEMORY = 2 << 30
HANG, STALL = "hang", "(no answer in time at first, then tried again)"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, metavar="N", help="try one input, in this process")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child is not None:
        answer_inputs(options.child, options.seed)
        return 0
    with tempfile.TemporaryDirectory() as folder:
        segment = write_segment(Path(folder))
        if options.only is not None:
            print(try_input(segment, options.seed, options.only))
            return 0
        outcomes, findings = fuzz(segment, options.seconds, options.seed)
    print(f"seed {options.seed}: {sum(outcomes.values()) - outcomes[STALL]} inputs, {len(findings)} findings")
    for outcome, count in sorted(outcomes.items()):
        print(f"{count:8} {outcome}")
    for finding in findings:
        print(finding)
    return 1 if findings else 0


def write_segment(folder: Path) -> Path:
    """Write the sound file: a synthetic segment of small images, so that many inputs fit into a minute."""
    lidars = tuple(dataclasses.replace(lidar, columns=lidar.columns // 12) for lidar in tiny_rig().lidars)
    path = folder / "sound.tfrecord"
    with RecordWriter(path) as writer:
        for frame, _ in record_segment(1, FRAMES, RigConfig("small", lidars), SceneConfig(), 0.1):
            del frame.laser_labels[12:]
            assert frame.laser_labels
            if not frame.no_label_zones:
                frame.no_label_zones.add(x=[0.0, 1.0, 1.0], y=[0.0, 0.0, 1.0])
            writer.write(frame.SerializeToString())
    return path


def fuzz(segment: Path, seconds: float, seed: int) -> tuple[collections.Counter[str], list[str]]:
    """Try inputs until the time is over; returns the number of each outcome, and the findings."""
    outcomes: collections.Counter[str] = collections.Counter()
    findings = []
    child = start_child(segment, seed)
    end, number = time.monotonic() + seconds, 0
    try:
        while time.monotonic() < end:
            outcome, finding = ask(child, number)
            if outcome == HANG:  # of the reader, if it comes again: a busy machine's disk may stall once
                outcomes[STALL] += 1
                stop(child)
                child = start_child(segment, seed)
                outcome, finding = ask(child, number)
            outcomes[outcome] += 1
            if finding is not None:
                findings.append(f"finding: input {number} of seed {seed}, {outcome}: {finding}")
                stop(child)
                child = start_child(segment, seed)
            number += 1
    finally:
        stop(child)
    return outcomes, findings


def start_child(segment: Path, seed: int) -> "subprocess.Popen[str]":
    command = [sys.executable, __file__, "--child", str(segment), "--seed", str(seed)]
    child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1)
    ask(child, None)  # answered when all is loaded and compiled, which doesn't count as a hang
    return child


def stop(child: "subprocess.Popen[str]") -> None:
    child.kill()
    child.communicate()


def ask(child: "subprocess.Popen[str]", number: int | None) -> tuple[str, str | None]:
    """Let the child try an input, and return the outcome and the finding."""
    assert child.stdin is not None
    assert child.stdout is not None
    child.stdin.write(f"{json.dumps(number)}\n")
    ready, _, _ = select.select([child.stdout], [], [], LONGEST_SECONDS if number is not None else 600.0)
    if not ready:
        return HANG, f"no answer within {LONGEST_SECONDS:g} s"
    answer = child.stdout.readline()
    if not answer:
        return "crash", f"the interpreter ended with status {child.wait()}"
    outcome, finding = json.loads(answer)
    return outcome, finding


def answer_inputs(segment: Path, seed: int) -> None:
    """The child's part: read numbers from stdin, and write outcome and finding to stdout."""
    warnings.simplefilter("error")
    in_use = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (in_use + LARGEST_MEMORY, resource.RLIM_INFINITY))
    assert len(list(read_segment(segment))) == FRAMES
    for line in sys.stdin:
        number = json.loads(line)
        answer = ("ready", None) if number is None else try_input(segment, seed, number)
        sys.stdout.write(f"{json.dumps(answer)}\n")
        sys.stdout.flush()


def try_input(segment: Path, seed: int, number: int) -> tuple[str, str | None]:
    """Make an input, read it, and return the outcome and what is wrong with that."""
    rng = np.random.default_rng([seed, number])
    index = index_records(segment)
    payloads = [read_record(index, record) for record in range(len(index))]
    level = LEVELS[number % len(LEVELS)]
    damaged = segment.with_name("damaged.tfrecord")
    if level is bytes_of_the_file:
        records = [framed(payload) for payload in payloads]
        content = change_bytes(rng, b"".join(records))
        damaged.write_bytes(content)
        expected = whole_records(content, records)
    else:
        record = int(rng.integers(len(payloads)))
        payloads[record] = level(rng, payloads[record])
        damaged.write_bytes(b"".join(map(framed, payloads)))
        expected = list(range(len(payloads)))
    name = level.__name__.replace("_", " ")
    try:
        frames = [(frame, pack(frame)) for frame in read_segment(damaged)]
    except DataError as error:
        named = error.path == damaged and error.reason and (error.record is not None or level is bytes_of_the_file)
        return f"refused: {name}", None if named else f"the error lacks file, record or reason: {error}"
    except UserError as error:
        return f"refused: {name}", f"the error lacks file and record: {error}"
    except BaseException as error:
        return f"other error: {name}", f"{type(error).__name__}: {error}\n{traceback.format_exc(limit=-3)}"
    faults = [fault for frame, _ in frames if (fault := unsound(frame)) is not None]
    if len(frames) != len(expected):
        faults.append(f"{len(frames)} frames, expected {len(expected)}")
    if level is bytes_of_the_file and not faults:
        stamps = [frame.timestamp_micros for frame in read_segment(segment)]
        if [frame.timestamp_micros for frame, _ in frames] != [stamps[record] for record in expected]:
            faults.append("other frames than were written")
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    if memory > LARGEST_MEMORY:
        faults.append(f"{memory / 1e9:.2f} GB of memory")
    gone = " (whole records gone)" if len(expected) < FRAMES else ""
    return f"read{gone}: {name}", "; ".join(faults) or None


def unsound(frame: Frame) -> str | None:
    """Say what is wrong with a frame that was given out as sound."""
    parts = {"points": frame.points, "pose": frame.pose}
    parts |= {f"zone {number}": zone for number, zone in enumerate(frame.no_label_zones)}
    if frame.labels is not None:
        parts |= {"velocity": frame.labels.velocity, "acceleration": frame.labels.acceleration}
        fault = unusable_label(frame.labels)
        if fault is not None:
            return fault
        if not (np.abs(frame.labels.boxes[:, 6]) <= np.float32(np.pi)).all():
            return "a heading beyond pi"
    for name, values in parts.items():
        if not np.isfinite(values).all():
            return f"{name} that aren't finite"
    if not set(np.unique(frame.lidar)) <= {1, 2, 3, 4, 5}:
        return "points of no lidar"
    if {len(frame.lidar), len(frame.return_number), len(frame.in_no_label_zone)} != {len(frame.points)}:
        return "arrays of several lengths"
    return None


def framed(payload: bytes) -> bytes:
    """Return a record with the right checksums; without `RecordWriter`, which flushes the disk each time."""
    length = struct.pack("<Q", len(payload))
    header = length + struct.pack("<I", masked_crc32c(length))
    return header + payload + struct.pack("<I", masked_crc32c(payload))


def whole_records(content: bytes, records: list[bytes]) -> list[int]:
    """Return the records that a file consists of, which no reader can tell from one written so; else none.

    A record that occurs twice makes it none, as its timestamp gives it away.
    """
    found: list[int] = []
    while content:
        fitting = [number for number, record in enumerate(records) if content.startswith(record)]
        if not fitting or fitting[0] in found:
            return []
        found.append(fitting[0])
        content = content[len(records[fitting[0]]) :]
    return found


if __name__ == "__main__":
    sys.exit(main())
