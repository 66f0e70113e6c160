from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from detection3d.data.packing import PackingLosses, pack, unpack_arrays
from detection3d.data.unpack import unpack
from detection3d.errors import UserError
from detection3d.types.tensors import PackedPoints
from tests.data.made_frames import make_frame


def frame_of(points: np.ndarray):
    frame = make_frame("segment", 1, points=len(points))
    return replace(frame, points=points.astype(np.float32))


def to_torch(*packed) -> PackedPoints:
    return PackedPoints(
        xyz=torch.tensor(np.concatenate([part.xyz for part in packed])),
        features=torch.tensor(np.concatenate([part.features for part in packed])),
        flags=torch.tensor(np.concatenate([part.flags for part in packed])),
        counts=torch.tensor([len(part) for part in packed]),
    )


@given(arrays(np.float32, (8, 3), elements=st.floats(-255.9921875, 255.9921875, width=32)))
def test_coordinates_are_off_by_half_a_step_at_most_and_no_more(xyz):
    packed, losses = pack(frame_of(np.column_stack([xyz, np.zeros((8, 2))])))
    points, *_ = unpack_arrays(packed)
    assert losses == PackingLosses()
    assert np.abs(points[:, :3].astype(np.float64) - xyz).max() <= 2.0**-8


def test_stored_numbers_by_hand():
    xyz = [[1.0, -1.0, 0.00390625], [0.0039063, -0.0117188, 255.9921875]]
    frame = frame_of(np.column_stack([xyz, [[0.1, 1.5], [2.0**-24, 60000]]]))
    packed, _ = pack(
        replace(
            frame,
            lidar=np.array([5, 1], np.uint8),
            return_number=np.array([2, 1], np.uint8),
            in_no_label_zone=np.array([True, False]),
        )
    )
    assert packed.xyz.tolist() == [[128, -128, 0], [1, -2, 32767]]  # half a step goes to the even neighbour
    assert packed.features.tolist() == [[float(np.float16(0.1)), 1.5], [2.0**-24, 60000.0]]
    assert packed.flags.tolist() == [0b11101, 0b00001]
    assert (packed.xyz.dtype, packed.features.dtype, packed.flags.dtype) == (np.int16, np.float16, np.uint8)


@pytest.mark.parametrize(
    ("value", "column", "losses"),
    [
        (256.0, 0, PackingLosses(out_of_range=1)),
        (-256.0, 1, PackingLosses(out_of_range=1)),
        (255.997, 2, PackingLosses(out_of_range=1)),
        (3e38, 2, PackingLosses(out_of_range=1)),
        (np.nan, 0, PackingLosses(not_finite=1)),
        (-np.inf, 2, PackingLosses(not_finite=1)),
        (np.nan, 3, PackingLosses(not_finite=1)),
        (np.inf, 4, PackingLosses(not_finite=1)),
        (65505.0, 3, PackingLosses(clipped=1)),
        (-1e30, 4, PackingLosses(clipped=1)),
        (65504.0, 3, PackingLosses()),
        (-255.9921875, 0, PackingLosses()),
    ],
)
def test_what_does_not_fit_is_left_out_or_clipped_and_counted(value, column, losses):
    points = np.ones((5, 5))
    points[2, column] = value
    packed, counted = pack(frame_of(points))
    assert counted == losses
    assert len(packed) == 5 - losses.out_of_range - losses.not_finite
    assert np.isfinite(packed.features).all()


def test_an_excluded_return_is_not_a_loss():
    frame = frame_of(np.full((4, 5), np.nan))
    frame = replace(frame, return_number=np.array([1, 2, 2, 1], np.uint8))
    packed, losses = pack(frame, returns=(1,))
    assert (len(packed), losses) == (0, PackingLosses(not_finite=2))


def test_points_beyond_the_reach_are_no_losses_either():
    points = np.zeros((7, 5))
    points[:, 0] = (0, 50, -50, 50.01, 0, 300, np.inf)
    points[4, 1] = -50.01
    points[:, 2] = 100  # the height doesn't count
    packed, losses = pack(frame_of(points), reach=50.0)
    assert packed.xyz[:, 0].tolist() == [0, 6400, -6400]
    assert losses == PackingLosses(not_finite=1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lidar": np.full(3, 8, np.uint8)}, "lidar number 8"),
        ({"return_number": np.array([1, 2, 3], np.uint8)}, r"return numbers \[3\]"),
        ({"in_no_label_zone": np.zeros(2, bool)}, r"in_no_label_zone has the shape \(2,\)"),
        ({"points": np.zeros((3, 4), np.float32)}, r"points have the shape \(3, 4\)"),
    ],
)
def test_unusable_arrays_are_refused(changes, message):
    with pytest.raises(UserError, match=message):
        pack(replace(make_frame("segment", 1, points=3), **changes))


@pytest.mark.parametrize("returns", [(1, 2), (1,), (2,)])
@pytest.mark.parametrize("drop", [False, True])
def test_the_device_unpacks_as_numpy_does(returns, drop):
    frames = [make_frame("a", 1), make_frame("a", 2, points=0), make_frame("a", 3, points=57)]
    packed = [pack(frame)[0] for frame in frames]
    points = unpack(to_torch(*packed), returns=returns, drop_no_label_zone=drop)

    expected, batch_index = [], []
    for sample, frame in enumerate(frames):
        values, _, _, _ = unpack_arrays(packed[sample])
        for number in range(len(frame.points)):
            if frame.return_number[number] in returns and not (drop and frame.in_no_label_zone[number]):
                expected.append(values[number])
                batch_index.append(sample)
    assert points.values.dtype == torch.float32
    assert points.values.numpy().tobytes() == np.array(expected).tobytes()
    assert points.batch_index.tolist() == batch_index


def test_flags_survive():
    frame = make_frame("segment", 4)
    _, lidar, return_number, in_no_label_zone = unpack_arrays(pack(frame)[0])
    np.testing.assert_array_equal(lidar, frame.lidar)
    np.testing.assert_array_equal(return_number, frame.return_number)
    np.testing.assert_array_equal(in_no_label_zone, frame.in_no_label_zone)


@pytest.mark.parametrize("returns", [(), (0,), (1, 3)])
def test_unpacking_refuses_unknown_returns(returns):
    with pytest.raises(UserError, match="choose 1, 2 or both"):
        unpack(to_torch(pack(make_frame("a", 1))[0]), returns=returns)
