"""Evaluate a trained run: python tools/evaluate.py runs/tiny."""

from detection3d.cli.evaluate import entry

if __name__ == "__main__":
    entry()
