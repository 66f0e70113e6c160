import numpy as np
import pytest

from detection3d.errors import UserError
from detection3d.evaluation import evaluate, ground_truth_of_frames, overlaps_no_label_zone, prepare_ground_truth
from tests.evaluation.builders import box, found, frame, labels


def test_objects_without_points_are_deleted_and_levels_filled_in():
    raw = labels([box(x) for x in range(10, 60, 10)], num_points=[0, 1, 5, 6, 100], difficulty=[1, 0, 0, 0, 2])
    prepared = prepare_ground_truth(raw, "segment", 7)
    assert prepared.key == ("segment", 7)
    assert prepared.boxes[:, 0].tolist() == [20, 30, 40, 50]
    assert prepared.levels.tolist() == [2, 2, 1, 2]
    assert prepared.num_points.tolist() == [1, 5, 6, 100]


def test_a_level_that_a_person_gave_stands():
    assert prepare_ground_truth(labels([box()], [3], difficulty=1), "segment", 0).levels.tolist() == [1]


def test_detection_of_a_deleted_object_is_false():
    prepared = prepare_ground_truth(labels([box(10), box(20)], num_points=[0, 9]), "segment", 0)
    row = evaluate([found([box(10), box(20)])], [prepared]).row("OBJECT_TYPE_TYPE_VEHICLE_LEVEL_2")
    assert (row.true_positives, row.false_positives, row.false_negatives) == (1, 1, 0)


def test_frames_without_labels_are_named():
    labelled, unlabelled = frame(labels([box()], [9])), frame(None, key=("test-segment", 5))
    assert [len(item) for item in ground_truth_of_frames([labelled])] == [1]
    with pytest.raises(UserError, match="frame test-segment at 5 has no labels"):
        ground_truth_of_frames([labelled, unlabelled])


def test_a_box_overlaps_a_zone_where_it_holds_one_of_its_points():
    points = np.array([[10, 0, 1, 0, 0], [20, 1.5, 1, 0, 0], [30, 0, 3, 0, 0]], np.float32)
    turned = box(20, 0, heading=np.pi / 2)  # its length now runs along y and reaches the second point
    boxes = np.array([box(10), box(20), turned, box(30)], np.float32)
    assert overlaps_no_label_zone(boxes, points).tolist() == [True, False, True, False]
    assert overlaps_no_label_zone(boxes, points[:0]).tolist() == [False] * 4
    assert overlaps_no_label_zone(boxes[:0], points).tolist() == []
