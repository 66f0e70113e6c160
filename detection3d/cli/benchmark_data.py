"""The part `data` of the benchmark: frames a second from the recording to the detector's input."""

import argparse
import contextlib
import functools
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from detection3d.cli.preparing import positive
from detection3d.errors import UserError

if TYPE_CHECKING:
    from detection3d.benchmark.data import Turn


def add_parser(parsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the part and its options."""
    parser = parsers.add_parser("data", help="decoding, preparation, the store, the loader with augmentation")
    parser.add_argument("--v1", type=Path, metavar="FILE", help="a TFRecord of Waymo v1 to decode and to prepare")
    parser.add_argument("--v2", type=Path, metavar="FILE", help="the segment's parquet file of v2's component lidar")
    parser.add_argument(
        "--official",
        type=Path,
        metavar="PYTHON",
        help="interpreter of the evaluation environment (docker/evaluation_environment.sh): decode --v1 and --v2 by "
        "Waymo's own code, too, in turns with ours",
    )
    parser.add_argument("--data", type=Path, metavar="STORE", help="a prepared store to read and to load")
    parser.add_argument("--objects", type=Path, metavar="DIR", help="an object database, to time its sampling, too")
    parser.add_argument("--frames", type=positive, default=20, help="to decode in a turn (default: 20)")
    parser.add_argument("--rounds", type=positive, default=5, help="turns of decoding (default: 5)")
    parser.add_argument("--reads", type=positive, default=1000, help="of the store (default: 1000)")
    parser.add_argument("--steps", type=positive, default=100, help="of the loader (default: 100)")
    parser.add_argument("--batch-size", type=positive, default=8, help="of the loader (default: 8)")
    parser.add_argument("--workers", type=positive, help="of the loader (default: one for each core)")
    parser.add_argument("--device", help="cpu, cuda, cuda:1 ... (default: cuda where there is one)")
    parser.add_argument("--output", type=Path, metavar="FILE", help="write the figures as JSON, too")
    parser.set_defaults(run=run_data)


def run_data(options: argparse.Namespace) -> int:
    """Time what there is input for, print and write; returns the exit status."""
    if options.v1 is None and options.v2 is None and options.data is None:
        raise UserError("nothing to time: give --v1 FILE, --v2 FILE, --data STORE, or several of them")
    if options.objects is not None and options.data is None:
        raise UserError("--objects is put into the frames of a store: give --data STORE, too")
    if options.official is not None and options.v1 is None and options.v2 is None:
        raise UserError("--official: nothing to decode: give --v1 FILE, --v2 FILE, or both")

    import torch

    from detection3d.benchmark import data
    from detection3d.cli.device import choose_device
    from detection3d.cli.prepare_waymo import find_sources
    from detection3d.data.object_database import ObjectDatabase
    from detection3d.data.preparation_pool import available_cores
    from detection3d.data.store import Store
    from detection3d.files import replace_file

    device = choose_device(options.device)
    workers = options.workers or available_cores()
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    print(f"{name}, {available_cores()} cores, {workers} workers")
    decoding = _time_decoding(options)
    rates = decoding.rates
    for option, path in (("v1", options.v1), ("v2", options.v2)):
        if path is not None:
            rates[f"prepare {option}, one segment"] = data.prepare_rate(find_sources(path), 1)
    if options.data is not None:
        store = Store.open(options.data)
        print(f"{options.data}: {len(store)} frames of {data.points_a_frame(store):.0f} points")
        torch.set_num_threads(1)
        rates["random read, one core"] = data.read_rate(store, reads=options.reads)
        torch.set_num_threads(available_cores())
        settings = {"batch_size": options.batch_size, "steps": options.steps, "workers": workers}
        rates["load and augment"] = data.loading_rate(store, device, **settings)
        if options.objects is not None:
            database = ObjectDatabase.open(options.objects)
            rates["the same, with objects"] = data.loading_rate(store, device, **settings, database=database)
    for stage, rate in rates.items():
        print(f"{stage:30}{rate:10.2f} frames/s")
    for version, ratio in decoding.against_official.items():
        print(f"{version}: {ratio:.1f} times the official decoder's speed")
    if options.output is not None:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        content: dict[str, object] = {
            "schema_version": 1,
            "device": name,
            "workers": workers,
            "frames_per_second": rates,
        }
        if options.official is not None:
            content["official"] = {"versions": decoding.official, "speed_against_it": decoding.against_official}
        replace_file(options.output, json.dumps(content, indent=1).encode())
    return 0


@dataclass(frozen=True)
class _Decoding:
    """Speed of decoding.

    Attributes:
        rates: frames a second, by stage.
        official: versions of the packages of the official decoder; empty without it.
        against_official: our speed relative to it by Waymo's version, medians over the rounds; likewise.
    """

    rates: dict[str, float]
    official: dict[str, str] = field(default_factory=dict)
    against_official: dict[str, float] = field(default_factory=dict)


def _time_decoding(options: argparse.Namespace) -> _Decoding:
    from detection3d.benchmark.data import reading, time_decoding
    from detection3d.benchmark.official import OfficialDecoder
    from detection3d.benchmark.timing import one_core
    from detection3d.data.waymo import read_component_segment, read_segment

    readers = {
        "v1": (options.v1, lambda: read_segment(options.v1, labelled=True)),
        "v2": (options.v2, lambda: read_component_segment(options.v2)),
    }
    with contextlib.ExitStack() as stack:
        stack.enter_context(one_core())
        official = None if options.official is None else stack.enter_context(OfficialDecoder(options.official))
        turns: dict[str, Turn] = {}
        for version, (path, read) in readers.items():
            if path is not None:
                turns[_stage(version)] = reading(read)
                if official is not None:
                    turns[_stage(version, "official")] = functools.partial(official.time_turn, path)
        timings = time_decoding(turns, frames=options.frames, rounds=options.rounds)
    rates = {stage: 1 / timing.median for stage, timing in timings.items()}
    if official is None:
        return _Decoding(rates)
    decoded = [version for version, (path, _) in readers.items() if path is not None]
    ratios = {version: timings[_stage(version)].speed(timings[_stage(version, "official")]) for version in decoded}
    return _Decoding(rates, official.versions, ratios)


def _stage(version: str, whose: str = "") -> str:
    return f"decode {version}{f', {whose}' if whose else ''}, one core"
