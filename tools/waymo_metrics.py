"""Waymo metrics of any detections: prints the table, writes metrics.json and report.html.

python tools/waymo_metrics.py --predictions predictions.parquet --ground-truth ground_truth.parquet --output results
"""

from detection3d.cli.waymo_metrics import entry

if __name__ == "__main__":
    entry()
