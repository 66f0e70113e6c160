"""Compare methods: python tools/compare_methods.py tiny --methods sum graddrop --seeds 8 --output runs/compare."""

from detection3d.cli.compare_methods import entry

if __name__ == "__main__":
    entry()
