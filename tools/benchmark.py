"""Time the parts of detection3d: python tools/benchmark.py fork --subjects linear --rounds 20."""

from detection3d.cli.benchmark import entry

if __name__ == "__main__":
    entry()
