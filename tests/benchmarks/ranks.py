"""Several ranks on this machine: does their loss follow one rank's, and what happens when one of them is killed?

python tests/benchmarks/ranks.py curve waymo_voxel training.batch_size=8 --data DATA --ranks 2 --steps 100 --output OUT
python tests/benchmarks/ranks.py kill waymo_voxel training.batch_size=8 --data DATA --ranks 2 --output OUT

`curve` trains the same steps with one rank and with all, each with the whole batch, and with one rank at rates that are
a ten-thousandth apart, and compares the losses. `kill` kills the last rank at step 25, once where nothing starts it
again and once where torchrun does.
"""

import argparse
import os
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path

from detection3d.config_file import load_config
from detection3d.training.recorder import read_metrics

ROOT = Path(__file__).resolve().parents[2]
KILLED_AT = 25
PATIENCE = 180.0  # seconds
QUICK_END = 60.0
TASKS = ("classification", "box", "orientation")
NUDGES = {"rate + 0.01 %": 1.0001, "rate - 0.01 %": 0.9999}


def main() -> int:
    """Do what was asked for; 1 where it is not as it should be."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("curve", "kill"))
    parser.add_argument("config", help="a YAML file, or the name of a shipped config")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    parser.add_argument("--data", type=Path, required=True, help="a prepared store")
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--device", help="cpu, or cuda (default: cuda where there is one)")
    parser.add_argument("--output", type=Path, required=True, help="a new folder for the runs")
    options = parser.parse_intermixed_args()
    return {"curve": _curve, "kill": _kill}[options.what](options)


def _curve(options: argparse.Namespace) -> int:
    rate = load_config(options.config, options.overrides).training.learning_rate
    plans = {"one rank": (1, []), "all ranks": (options.ranks, [])}
    # Whatever rounds otherwise parts in time; how far such things carry says what a difference means.
    plans |= {f"one rank, {name}": (1, [f"training.learning_rate={rate * by!r}"]) for name, by in NUDGES.items()}
    logs = {}
    for number, (name, (ranks, more)) in enumerate(plans.items()):
        run, started = options.output / str(number), time.perf_counter()
        ended = subprocess.run([*_command(options, run, ranks), *more], check=False, stdout=subprocess.DEVNULL)
        if ended.returncode:
            sys.exit(f"{name}: the training ended with {ended.returncode}; its message is above")
        print(f"{name}: {options.steps} steps in {time.perf_counter() - started:.0f} s, start included", flush=True)
        logs[name] = [sum(row[f"loss/{task}"] for task in TASKS) for row in read_metrics(run / "metrics.jsonl")]
    print(f"{'loss in steps':>15} " + " ".join(f"{name:>26}" for name in logs))
    width = max(1, options.steps // 10)
    for first in (0, *range(1, options.steps, width)):
        last = 1 if first == 0 else min(first + width, options.steps)
        means = [statistics.mean(losses[first:last]) for losses in logs.values()]
        print(f"{first + 1:7} to {last:4} " + " ".join(f"{mean:26.4f}" for mean in means))
    return 0


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
    children = subprocess.run(["pgrep", "-P", str(launcher)], capture_output=True, text=True, check=False).stdout
    for child in children.split():
        if f"LOCAL_RANK={rank}" in Path(f"/proc/{child}/environ").read_text().split("\0"):
            return int(child)
    sys.exit(f"torchrun has no process for rank {rank}: has it trained all steps? give more --steps")


if __name__ == "__main__":
    sys.exit(main())
