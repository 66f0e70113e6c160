"""Turn KITTI's object detection scans into a prepared store.

python tools/prepare_kitti.py --input data/kitti/training --output data/prepared/kitti --workers 8
"""

from detection3d.cli.prepare_kitti import entry

if __name__ == "__main__":
    entry()
