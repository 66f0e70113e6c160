"""Turn one's own data set into a prepared store, or check it.

python tools/prepare_dataset.py my_data.py:recordings --input data/mine --check
python tools/prepare_dataset.py my_data.py:recordings --input data/mine --output data/prepared/mine --workers 8
"""

from detection3d.cli.prepare_dataset import entry

if __name__ == "__main__":
    entry()
