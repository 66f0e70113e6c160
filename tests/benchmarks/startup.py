"""How long it takes until something answers: imports and --help, in processes of their own.

python tests/benchmarks/startup.py --repeats 5
"""

import argparse
import statistics
import subprocess
import sys
import time
from pathlib import Path

TOOLS = Path(__file__).resolve().parents[2] / "tools"
IMPORT_GOAL, HELP_GOAL = 0.5, 1.0  # seconds


def main() -> None:
    """Time each command several times and print the median beside its goal."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--repeats", type=int, default=5, help="runs of each command (default: 5)")
    repeats = parser.parse_args().repeats
    commands = [
        ("python alone", ["-c", "pass"], None),
        ("import detection3d", ["-c", "import detection3d"], IMPORT_GOAL),
        ("import detection3d.evaluation", ["-c", "import detection3d.evaluation"], None),
        ("import detection3d.data.waymo", ["-c", "import detection3d.data.waymo"], None),
    ]
    commands += [(f"{tool.name} --help", [str(tool), "--help"], HELP_GOAL) for tool in sorted(TOOLS.glob("*.py"))]
    for name, arguments, goal in commands:
        seconds = statistics.median(_seconds(arguments) for _ in range(repeats))
        verdict = "" if goal is None else f"  goal {goal:.1f} s: {'met' if seconds < goal else 'MISSED'}"
        print(f"{name:32} {seconds:6.3f} s{verdict}")


def _seconds(arguments: list[str]) -> float:
    started = time.perf_counter()
    subprocess.run([sys.executable, *arguments], stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
