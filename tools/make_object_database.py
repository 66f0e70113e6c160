"""Cut the labelled objects out of a prepared store, for object sampling in training.

python tools/make_object_database.py --data data/waymo/training --output data/waymo/objects --workers 8
"""

from detection3d.cli.make_object_database import entry

if __name__ == "__main__":
    entry()
