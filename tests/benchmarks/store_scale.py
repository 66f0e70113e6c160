"""A store of Waymo's training size: how long it takes to open, in how much memory, and whether the loader's grows.

The index is full size: 800 segments of 200 frames with 60 boxes each. The points are few, as they are only mapped.

python tests/benchmarks/store_scale.py
"""

import argparse
import multiprocessing
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from store_read import make_frame

from detection3d.data.loader import build_loader
from detection3d.data.store import SegmentWriter, Store, StoreSettings, write_manifest

OPEN = """
import re, sys, time
from pathlib import Path
from detection3d.data import store

def most() -> float:  # MB, of this program alone, which getrusage doesn't tell
    return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) / 1e3

before, start = most(), time.perf_counter()
opened = store.Store.open(sys.argv[1])
seconds = time.perf_counter() - start
print(f"open: {len(opened)} frames in {seconds:.2f} s; {most():.0f} MB, {most() - before:.0f} MB of them new")
"""


def write(root: Path, segments: int, frames: int, points: int) -> None:
    for segment in range(segments):
        with SegmentWriter(root, f"{segment:05d}") as writer:
            for timestamp in range(frames):
                frame = make_frame(timestamp, points)
                object.__setattr__(frame, "context_name", f"{segment:05d}")
                writer.add(frame)
    write_manifest(root, StoreSettings())


def worker_memory() -> float:
    """Memory that the workers have to themselves, MB, in all; maps of the store's files are shared and don't count."""
    own = 0
    for child in multiprocessing.active_children():
        lines = Path(f"/proc/{child.pid}/smaps_rollup").read_text().splitlines()
        own += sum(int(line.split()[1]) for line in lines if line.startswith("Private_"))
    return own / 1e3


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--segments", type=int, default=800)
    parser.add_argument("--frames", type=int, default=200, help="a segment")
    parser.add_argument("--points", type=int, default=20, help="a frame")
    parser.add_argument("--workers", type=int, default=8)
    parser.add_argument("--batch", type=int, default=32)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        start = time.perf_counter()
        write(root, options.segments, options.frames, options.points)
        print(f"written in {time.perf_counter() - start:.0f} s", flush=True)
        subprocess.run([sys.executable, "-c", OPEN, str(root)], check=True)

        store = Store.open(root)
        steps = 2 * len(store) // options.batch
        told = np.linspace(steps // 10, steps - 1, 7).astype(int)
        loader = build_loader(
            store, global_batch_size=options.batch, seed=0, total_steps=steps, workers=options.workers
        )
        start = time.perf_counter()
        for step, _ in enumerate(loader):
            if step in told:
                rate = (step + 1) * options.batch / (time.perf_counter() - start)
                epochs = (step + 1) * options.batch / len(store)
                print(f"epoch {epochs:.2f}: {options.workers} workers, {worker_memory():.0f} MB; {rate:.0f} frames/s")
        print(f"this process: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3:.0f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
