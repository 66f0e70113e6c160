"""Put evaluations side by side: python tools/report.py runs/a/evaluation/00001400 runs/b/evaluation/00001400."""

from detection3d.cli.report import entry

if __name__ == "__main__":
    entry()
