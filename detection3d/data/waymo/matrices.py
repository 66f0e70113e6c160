"""Waymo's compressed matrices: zlib around a serialised `MatrixFloat`.

The values are copied in one piece from the packed field: through a protobuf message they would go one by one (2 ms
for a TOP range image, against 0.2 ms).
"""

import math
import zlib

import numpy as np
from google.protobuf.message import DecodeError

from detection3d.data.waymo.malformed import MalformedFrameError
from detection3d.protos import waymo_pb2
from detection3d.types.scene import Float32Array

# Waymo's largest matrix takes 4 MB. The bound keeps damaged or hostile bytes from filling the memory: a frame has room
# for a dozen matrices, and one in an unusual order of its fields takes many times its size while it is read.
_LARGEST_BYTES = 1 << 25
_PACKED_DATA_TAG = 0x0A  # field 1, length-delimited


def decode_matrix(compressed: bytes, channels: int, name: str) -> Float32Array:
    """Inflate and parse a matrix.

    Args:
        compressed: zlib of a serialised MatrixFloat.
        channels: the last dimension it must have.
        name: what it is, for the message.

    Returns:
        float32 [H, W, channels].

    Raises:
        MalformedFrameError: it doesn't inflate, doesn't parse, or the shape disagrees with the values.
    """
    inflated = _inflate(compressed, name)
    try:
        values, shape = _split_packed(inflated)
    except DecodeError:
        raise MalformedFrameError(f"{name} inflates, but isn't a matrix ({len(inflated)} bytes)") from None
    return shape_matrix(values, shape, channels, name)


def shape_matrix(values: Float32Array, shape: tuple[int, ...], channels: int, name: str) -> Float32Array:
    """Give the values their shape, [H, W, channels], after checking it; arguments and errors as `decode_matrix`."""
    if len(shape) != 3 or shape[2] != channels or min(shape) < 1:
        raise MalformedFrameError(f"{name} has shape {list(shape)}, expected [H, W, {channels}]")
    if math.prod(shape) != values.size:
        raise MalformedFrameError(f"{name} says its shape is {list(shape)}, but holds {values.size} values")
    return values.reshape(shape)


def _inflate(compressed: bytes, name: str) -> bytes:
    decompressor = zlib.decompressobj()
    try:
        inflated = decompressor.decompress(compressed, _LARGEST_BYTES)
    except zlib.error as error:
        raise MalformedFrameError(f"{name} ({len(compressed)} bytes) doesn't inflate: {error}") from None
    if not decompressor.eof:
        ending = f"goes on beyond {_LARGEST_BYTES} bytes" if decompressor.unconsumed_tail else "ends early"
        raise MalformedFrameError(f"{name} ({len(compressed)} bytes) doesn't inflate: the stream {ending}")
    if decompressor.unused_data:
        raise MalformedFrameError(
            f"{name} ({len(compressed)} bytes) goes on after its zlib stream, by {len(decompressor.unused_data)} bytes"
        )
    return inflated


def _split_packed(message: bytes) -> tuple[Float32Array, tuple[int, ...]]:
    """Return the values and the shape of a serialised MatrixFloat."""
    if message[:1] == bytes([_PACKED_DATA_TAG]):
        length, start = _read_varint(message, 1)
        end = start + length
        if end <= len(message) and length % 4 == 0:
            rest = waymo_pb2.MatrixFloat.FromString(message[end:])
            if not rest.data:
                # A copy, since the field's values needn't be aligned in the message.
                values = np.frombuffer(message, "<f4", length // 4, start).astype(np.float32)
                return values, tuple(rest.shape.dims)
    # Any other order of the fields is as valid, only slower.
    matrix = waymo_pb2.MatrixFloat.FromString(message)
    return np.array(matrix.data, np.float32), tuple(matrix.shape.dims)


def _read_varint(message: bytes, position: int) -> tuple[int, int]:
    """Return the number and the position behind it."""
    number = 0
    for shift in range(0, 70, 7):
        if position >= len(message):
            break
        byte = message[position]
        position += 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return number, position
    raise DecodeError("unfinished varint")
