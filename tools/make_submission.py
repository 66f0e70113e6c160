"""Make a submission to Waymo's 3D detection server: checked shards and the archive to upload.

python tools/make_submission.py --predictions detections.parquet --information me.txtpb --frames store --output upload
"""

from detection3d.cli.make_submission import entry

if __name__ == "__main__":
    entry()
