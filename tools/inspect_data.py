"""Statistics and pictures of recordings, prepared stores and what the augmentation makes of them.

python tools/inspect_data.py data/waymo/training --frames 40 --output inspected
"""

from detection3d.cli.inspect_data import entry

if __name__ == "__main__":
    entry()
