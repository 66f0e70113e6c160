"""The whole pipeline on synthetic data, on a CPU: python tools/demo.py --output demo."""

from detection3d.cli.demo import entry

if __name__ == "__main__":
    entry()
