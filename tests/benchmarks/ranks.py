"""Several ranks on this machine: does their loss follow one rank's, and what happens when one of them is killed?

python tests/benchmarks/ranks.py curve waymo_voxel training.batch_size=8 --data DATA --ranks 2 --steps 100 --output OUT
python tests/benchmarks/ranks.py kill waymo_voxel training.batch_size=8 --data DATA --ranks 2 --output OUT

`curve` trains the same steps with one rank and with all, both with the whole batch, and compares their logs. `kill`
kills the last rank at step 25, once where nothing starts it again and once where torchrun does.
"""

import argparse
import os
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path

from detection3d.training.recorder import read_metrics

ROOT = Path(__file__).resolve().parents[2]
KILLED_AT = 25
PATIENCE = 180.0  # seconds
QUICK_END = 60.0
TASKS = ("classification", "box", "orientation")


def main() -> int:
    """Do what was asked for; 1 where it is not as it should be."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("curve", "kill"))
    parser.add_argument("config", help="a YAML file, or the name of a shipped config")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    parser.add_argument("--data", type=Path, required=True, help="a prepared store")
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--device", help="cpu, or cuda (default: cuda where there is one)")
    parser.add_argument("--output", type=Path, required=True, help="a new folder for the runs")
    options = parser.parse_intermixed_args()
    return {"curve": _curve, "kill": _kill}[options.what](options)


def _curve(options: argparse.Namespace) -> int:
    runs = {ranks: options.output / f"ranks_{ranks}" for ranks in (1, options.ranks)}
    for ranks, run in runs.items():
        started = time.perf_counter()
        subprocess.run(_command(options, run, ranks), check=True, stdout=subprocess.DEVNULL)
        print(f"{ranks} rank(s): {options.steps} steps in {time.perf_counter() - started:.0f} s, start included")
    one, many = (read_metrics(run / "metrics.jsonl") for run in runs.values())
    print(f"{'step':>6} " + " ".join(f"{task:>24}" for task in TASKS))
    shown = sorted({1, 2, 5, *range(10, options.steps + 1, max(10, options.steps // 10))})
    for step in shown:
        pairs = [(one[step - 1][f"loss/{task}"], many[step - 1][f"loss/{task}"]) for task in TASKS]
        print(f"{step:6} " + " ".join(f"{first:12.4f}{second:12.4f}" for first, second in pairs))
    first, last = (_difference(one, many, steps) for steps in (slice(0, 3), slice(-options.steps // 4, None)))
    print(f"relative difference of the loss: {first:.1e} in the first 3 steps, {last:.1e} of the last quarter's mean")
    return 0


def _difference(one: list[dict[str, float]], many: list[dict[str, float]], steps: slice) -> float:
    first, second = (
        statistics.mean(sum(row[f"loss/{task}"] for task in TASKS) for row in rows[steps]) for rows in (one, many)
    )
    return abs(second - first) / first


def _kill(options: argparse.Namespace) -> int:
    good = True
    for name, launcher in (("not_again", []), ("again", ["--max-restarts", "1"])):
        run = options.output / name
        log = options.output / f"{name}.log"
        options.output.mkdir(parents=True, exist_ok=True)
        command = _command(options, run, options.ranks, launcher)
        with log.open("w") as file:
            process = subprocess.Popen([*command, "training.checkpoint_every=10"], stdout=file, stderr=file)
            _wait_for_step(process, run, log)
            os.kill(_process_of(process.pid, options.ranks - 1), signal.SIGKILL)
            killed = time.perf_counter()
            status = process.wait(PATIENCE)
        took = time.perf_counter() - killed
        step = read_metrics(run / "metrics.jsonl")[-1]["step"]
        print(f"{name}: killed after step {KILLED_AT}; torchrun ended with {status} {took:.0f} s later, at step {step}")
        for line in log.read_text().splitlines():
            if line.startswith(("error", "training", "trained")):
                print(f"  {line[:200]}")
        good &= (status == 0 and step == options.steps) if launcher else (status == 1 and took < QUICK_END)
    return 0 if good else 1


def _command(options: argparse.Namespace, run: Path, ranks: int, launcher: list[str] | None = None) -> list[str]:
    settings = [*options.overrides, f"data.train={options.data}", f"data.validation={options.data}"]
    settings += ["training.epochs=0", f"training.steps={options.steps}", "training.log_every=1"]
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks), *(launcher or [])]
    command = [sys.executable, *(torchrun if ranks > 1 else []), str(ROOT / "tools" / "train.py"), options.config]
    device = [] if options.device is None else ["--device", options.device]
    return [*command, *settings, "--output", str(run), *device]


def _wait_for_step(process: subprocess.Popen[bytes], run: Path, log: Path) -> None:
    deadline = time.monotonic() + PATIENCE
    path = run / "metrics.jsonl"
    while not (path.is_file() and len(path.read_text().splitlines()) >= KILLED_AT):
        if process.poll() is not None or time.monotonic() > deadline:
            process.kill()
            sys.exit(f"no step {KILLED_AT} within {PATIENCE:.0f} s; see {log}")
        time.sleep(0.05)


def _process_of(launcher: int, rank: int) -> int:
    children = subprocess.run(["pgrep", "-P", str(launcher)], capture_output=True, text=True, check=True).stdout.split()
    for child in children:
        if f"LOCAL_RANK={rank}" in Path(f"/proc/{child}/environ").read_text().split("\0"):
            return int(child)
    sys.exit(f"torchrun has no process for rank {rank}")


if __name__ == "__main__":
    sys.exit(main())
