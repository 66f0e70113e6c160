"""Turn Argoverse 2 sensor logs into a prepared store.

python tools/prepare_argoverse.py --input data/argoverse2/train --output data/prepared/argoverse --workers 8
"""

from detection3d.cli.prepare_argoverse import entry

if __name__ == "__main__":
    entry()
