"""Turn Waymo v1 TFRecords into a prepared store.

python tools/prepare_waymo.py --input data/waymo/training --output data/prepared/training --workers 8
"""

from detection3d.cli.prepare_waymo import entry

if __name__ == "__main__":
    entry()
