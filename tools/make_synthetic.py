"""Write Waymo v1 TFRecords of synthetic scenes.

python tools/make_synthetic.py --output data/synthetic --segments 2 --frames 20 --seed 0 --rig tiny --interval 1
"""

from detection3d.cli.make_synthetic import entry

if __name__ == "__main__":
    entry()
