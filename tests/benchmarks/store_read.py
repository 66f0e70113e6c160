"""Frames a second that one core reads from a prepared store, in random order and with a hot cache.

python tests/benchmarks/store_read.py --points 170000 --frames 60
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from detection3d.data.collate import collate
from detection3d.data.packing import BYTES_PER_POINT
from detection3d.data.store import SegmentWriter, Store, StoreSettings, write_manifest
from detection3d.types.scene import Boxes, Frame

BOXES = 60


def make_frame(timestamp: int, points: int) -> Frame:
    generator = np.random.default_rng(timestamp)
    boxes = Boxes(
        boxes=generator.uniform(1, 5, (BOXES, 7)).astype(np.float32),
        types=np.ones(BOXES, np.uint8),
        ids=tuple(f"{timestamp}-{number}" for number in range(BOXES)),
        difficulty=np.zeros(BOXES, np.uint8),
        num_points=np.ones(BOXES, np.int32),
        velocity=np.zeros((BOXES, 3), np.float32),
        acceleration=np.zeros((BOXES, 3), np.float32),
    )
    return Frame(
        context_name="benchmark",
        timestamp_micros=timestamp,
        pose=np.eye(4),
        points=generator.normal(0, 30, (points, 5)).astype(np.float32),
        lidar=np.ones(points, np.uint8),
        return_number=np.ones(points, np.uint8),
        in_no_label_zone=np.zeros(points, bool),
        labels=boxes,
    )


def measure(read, order: np.ndarray) -> float:
    for index in order[: len(order) // 4]:
        read(int(index))
    start = time.perf_counter()
    for index in order:
        read(int(index))
    return len(order) / (time.perf_counter() - start)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--points", type=int, default=170_000)
    parser.add_argument("--frames", type=int, default=60)
    parser.add_argument("--reads", type=int, default=1000)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        with SegmentWriter(Path(folder), "benchmark") as writer:
            for timestamp in range(options.frames):
                writer.add(make_frame(timestamp, options.points))
        write_manifest(Path(folder), StoreSettings())
        print(f"write (with making the frames): {options.frames / (time.perf_counter() - start):.1f} frames/s")

        store = Store.open(folder)
        order = np.random.default_rng(0).integers(0, options.frames, options.reads)
        rate = measure(lambda index: collate(store, [index], [index]), order)
        print(f"random frame to tensors, with labels: {rate:.0f} frames/s", end="")
        print(f", {rate * options.points * BYTES_PER_POINT / 1e9:.2f} GB/s")
        rate = measure(lambda index: store.labels(index), order)
        print(f"labels alone: {rate:.0f} frames/s")
        rate = measure(lambda index: store.frame(index), order[:200])
        print(f"whole frame as floats: {rate:.0f} frames/s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
