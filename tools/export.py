"""Export a trained detector: python tools/export.py runs/tiny --output models/tiny."""

from detection3d.cli.export import entry

if __name__ == "__main__":
    entry()
