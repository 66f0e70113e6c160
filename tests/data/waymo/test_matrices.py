import zlib
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from detection3d.data.waymo import matrices
from detection3d.data.waymo.malformed import MalformedFrameError
from detection3d.data.waymo.matrices import decode_matrix
from detection3d.protos import waymo_pb2

shapes = st.tuples(st.integers(1, 5), st.integers(1, 70), st.just(4))


@given(array=hnp.arrays(np.float32, shapes, elements=st.floats(width=32)))
def test_fast_reading_equals_protobuf(array: np.ndarray) -> None:
    message = waymo_pb2.MatrixFloat(data=array.ravel().tolist())
    message.shape.dims.extend(array.shape)
    serialised = message.SerializeToString()
    reference = np.array(waymo_pb2.MatrixFloat.FromString(serialised).data, np.float32).reshape(array.shape)
    np.testing.assert_array_equal(decode_matrix(zlib.compress(serialised), 4, "it"), reference)
    np.testing.assert_array_equal(reference, array)


def test_other_orders_of_the_fields_are_read_too() -> None:
    shape = waymo_pb2.MatrixFloat(shape=waymo_pb2.MatrixShape(dims=[1, 2, 4])).SerializeToString()
    first = waymo_pb2.MatrixFloat(data=[0, 1, 2, 3]).SerializeToString()
    second = waymo_pb2.MatrixFloat(data=[4, 5, 6, 7]).SerializeToString()
    unpacked = b"".join(b"\x0d" + np.float32(value).tobytes() for value in range(8))
    for serialised in (shape + first + second, first + shape + second, first + second + shape, unpacked + shape):
        matrix = decode_matrix(zlib.compress(serialised), 4, "it")
        assert matrix.tolist() == [[[0, 1, 2, 3], [4, 5, 6, 7]]]


def test_what_does_not_inflate_is_refused(make_matrix: Callable[[np.ndarray], bytes]) -> None:
    good = make_matrix(np.ones((2, 3, 4), np.float32))
    with pytest.raises(MalformedFrameError, match=r"it \(9 bytes\) doesn't inflate: .*incorrect header"):
        decode_matrix(b"not zlib!", 4, "it")
    with pytest.raises(MalformedFrameError, match="ends early"):
        decode_matrix(good[:-6], 4, "it")
    damaged = bytearray(good)
    damaged[-1] ^= 1
    with pytest.raises(MalformedFrameError, match=r"doesn't inflate: .*incorrect data check"):
        decode_matrix(bytes(damaged), 4, "it")


def test_a_stream_that_fills_the_memory_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matrices, "_LARGEST_BYTES", 1000)
    with pytest.raises(MalformedFrameError, match="goes on beyond 1000 bytes"):
        decode_matrix(zlib.compress(bytes(100_000)), 4, "it")


@pytest.mark.parametrize("serialised", [b"", b"\x0a", b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff", b"\xff" * 20])
def test_what_is_no_matrix_is_refused(serialised: bytes) -> None:
    with pytest.raises(MalformedFrameError, match=r"isn't a matrix|has shape \[\]"):
        decode_matrix(zlib.compress(serialised), 4, "it")


@pytest.mark.parametrize(
    ("dims", "message"),
    [([2, 3, 5], "expected"), ([24], "expected"), ([-2, -3, 4], "expected"), ([2, 2, 4], "holds 24 values")],
)
def test_a_shape_that_disagrees_is_refused(dims: list[int], message: str) -> None:
    matrix = waymo_pb2.MatrixFloat(data=[1.0] * 24, shape=waymo_pb2.MatrixShape(dims=dims))
    with pytest.raises(MalformedFrameError, match=message):
        decode_matrix(zlib.compress(matrix.SerializeToString()), 4, "it")
