"""What the report says of a store: counted here by hand."""

import json
from dataclasses import replace

import numpy as np

from detection3d.data.store import Store
from detection3d.data.store_manifest import MANIFEST
from detection3d.training.evaluated_data import config_hash, data_facts, data_hash
from detection3d.training.evaluation import read_store_ground_truth
from tests.data.made_frames import write_store
from tests.small_run import near_frame, small_config


def store_with_labels(root, num_points, x):
    """One frame with four vehicles at (x, 0)."""
    frame = near_frame("segment", 1000)
    boxes = np.tile(np.float32([0, 0, 0, 4, 2, 1.5, 0]), (4, 1))
    boxes[:, 0] = x
    labels = replace(
        frame.labels, boxes=boxes, types=np.full(4, 1, np.uint8), num_points=np.array(num_points, np.int32)
    )
    write_store(root, {"segment": [replace(frame, labels=labels)]})
    return Store.open(root)


def test_labels_left_out_and_objects_out_of_range_are_counted(tmp_path):
    store = store_with_labels(tmp_path / "store", [0, 9, 9, 9], [1, 15.9, 16, -17])
    config = small_config("data.returns=[1]", data=tmp_path / "store")
    facts = data_facts(store, config, read_store_ground_truth(store))
    assert facts["Labels left out for lack of lidar points"] == "1 vehicle"
    assert facts["Objects outside the model's range"].startswith("2 vehicle; the range is x -16 to 16 m")
    assert facts["Lidar returns used"] == "1"
    assert facts["Data"] == str(tmp_path / "store")
    assert facts["Sources left out at preparation"] == "0"


def test_nothing_is_said_as_none(tmp_path):
    store = store_with_labels(tmp_path / "store", [5] * 4, [1, 2, 3, 4])
    facts = data_facts(store, small_config(data=tmp_path / "store"), read_store_ground_truth(store))
    assert facts["Labels left out for lack of lidar points"] == "none"
    assert facts["Objects outside the model's range"].startswith("none;")
    assert "expect" not in facts["Objects outside the model's range"]


def test_hashes_follow_the_config_and_the_data(tmp_path):
    one, same, other = (
        store_with_labels(tmp_path / name, [5, 5, 5, points], [1, 2, 3, 4])
        for name, points in (("a", 5), ("b", 5), ("c", 6))
    )
    assert data_hash(one) == data_hash(same) != data_hash(other)
    manifest = one.root / MANIFEST
    told = json.loads(manifest.read_text())
    for segment in told["segments"]:
        segment["source"] = {"name": "again.tfrecord", "size": 5, "mtime_ns": 7, "files_crc32c": 0}
    manifest.write_text(json.dumps(told))
    assert data_hash(Store.open(one.root)) == data_hash(same), "made again, at another time"
    config = small_config()
    assert config_hash(config) == config_hash(small_config()) != config_hash(small_config("seed=1"))
