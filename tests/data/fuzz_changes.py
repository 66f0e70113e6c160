"""What `fuzz_records.py` does to a file, a record, the fields of a frame, and its range images."""

import functools
import zlib
from collections.abc import Callable, Iterator

import numpy as np
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from detection3d.protos import waymo_pb2

NUMBERS = (float("nan"), float("inf"), -float("inf"), 0.0, -0.0, -1.0, 1e-300, 1e30, -1e30, 3.4e38, 1e308)
WHOLE_NUMBERS = (0, -1, 1, 2, 7, 255, 256, 2**31 - 1, -(2**31))
TEXTS = ("", "/", "..", ".hidden", "a\0b", "x" * 1000, "é", "\n")
WIRE_TYPES = {0: b"\x01", 1: bytes(8), 2: b"\0", 5: bytes(4)}  # a value of each, such as an empty text of 2


def change_bytes(rng: np.random.Generator, content: bytes) -> bytes:
    """Flip, cut, delete, repeat, insert or overwrite, once or a few times."""
    for _ in range(int(rng.choice([1, 1, 1, 2, 5]))):
        if not content:
            break
        start = int(rng.integers(len(content)))
        length = int(min(rng.integers(1, 2 ** rng.integers(1, 16)), len(content) - start))
        before, part, after = content[:start], content[start : start + length], content[start + length :]
        match int(rng.integers(8)):
            case 0 | 1:
                content = before + bytes([part[0] ^ int(rng.integers(1, 256))]) + part[1:] + after
            case 2:
                content = before
            case 3:
                content = before + after
            case 4:
                content = before + part + part + after
            case 5:
                content = before + rng.bytes(min(length, 64)) + part + after
            case 6:
                content = before + bytes([int(rng.choice([0, 255]))]) * length + after
            case _:
                content = after + part + before
    return content


def bytes_of_the_file(rng: np.random.Generator, payload: bytes) -> bytes:
    """A level that has the whole file, and stands in the list for its name."""
    raise NotImplementedError


def bytes_of_a_record(rng: np.random.Generator, payload: bytes) -> bytes:
    return change_bytes(rng, payload)


def fields_of_a_frame(rng: np.random.Generator, payload: bytes) -> bytes:
    frame = waymo_pb2.Frame.FromString(payload)
    for _ in range(int(rng.choice([1, 1, 2, 3]))):
        messages = list(messages_in(frame))
        # By kind first, or hardly anything but labels would be chosen.
        kinds = sorted({message.DESCRIPTOR.full_name for message in messages})
        kind = str(rng.choice(kinds))
        alike = [message for message in messages if message.DESCRIPTOR.full_name == kind]
        message = alike[int(rng.integers(len(alike)))]
        fields = message.DESCRIPTOR.fields
        change_field(rng, message, fields[int(rng.integers(len(fields)))])
    return frame.SerializeToString()


def messages_in(message: Message) -> Iterator[Message]:
    yield message
    for field, value in message.ListFields():
        if field.message_type is not None:
            for part in (value,) if isinstance(value, Message) else value:
                yield from messages_in(part)


def change_field(rng: np.random.Generator, message: Message, field: FieldDescriptor) -> None:
    """Clear a field, write something extreme into it, repeat or drop a part, or write it in another wire type."""
    if rng.random() < 0.1:
        wire = int(rng.choice(list(WIRE_TYPES)))
        message.MergeFromString(varint(field.number << 3 | wire) + WIRE_TYPES[wire])
        return
    value = getattr(message, field.name)
    is_repeated = hasattr(value, "MergeFrom") and not isinstance(value, Message)
    if rng.random() < 0.2 or (field.message_type is not None and not is_repeated):
        message.ClearField(field.name)
    elif field.message_type is not None:
        parts = list(value)
        if parts and rng.random() < 0.5:
            value.add().CopyFrom(parts[int(rng.integers(len(parts)))])
        elif parts:
            del value[int(rng.integers(len(parts)))]
        else:
            value.add()
    elif not is_repeated:
        setattr(message, field.name, extreme(rng, field))
    elif value and rng.random() < 0.5:
        value[int(rng.integers(len(value)))] = extreme(rng, field)
    elif value and rng.random() < 0.5:
        value.pop()
    else:
        value.append(extreme(rng, field))


def extreme(rng: np.random.Generator, field: FieldDescriptor) -> float | int | str | bytes | bool:
    if field.enum_type is not None:
        return int(rng.choice([value.number for value in field.enum_type.values]))
    match field.cpp_type:
        case FieldDescriptor.CPPTYPE_DOUBLE | FieldDescriptor.CPPTYPE_FLOAT:
            return float(rng.choice(NUMBERS)) if rng.random() < 0.7 else float(rng.normal(0, 100))
        case FieldDescriptor.CPPTYPE_STRING:
            return rng.bytes(20) if field.type == FieldDescriptor.TYPE_BYTES else str(rng.choice(TEXTS))
        case FieldDescriptor.CPPTYPE_INT64:
            return int(rng.choice([*WHOLE_NUMBERS, 2**63 - 1, -(2**63)]))
        case FieldDescriptor.CPPTYPE_BOOL:
            return bool(rng.integers(2))
        case _:
            return int(rng.choice(WHOLE_NUMBERS))


def images_of_a_frame(rng: np.random.Generator, payload: bytes) -> bytes:
    frame = waymo_pb2.Frame.FromString(payload)
    images = [image for laser in frame.lasers for image in (laser.ri_return1, laser.ri_return2)]
    places = [(image, "range_image_compressed") for image in images]
    places += [(image, "range_image_pose_compressed") for image in images if image.range_image_pose_compressed]
    if rng.random() < 0.01:  # all at once, to fill the memory
        giant = legal_giant(rng)
        for image in images:
            image.range_image_compressed = giant
        return frame.SerializeToString()
    image, field = places[-1] if rng.random() < 0.25 else places[int(rng.integers(len(places)))]
    setattr(image, field, change_matrix(rng, getattr(image, field)))
    return frame.SerializeToString()


def change_matrix(rng: np.random.Generator, compressed: bytes) -> bytes:
    serialised = zlib.decompress(compressed)
    matrix = waymo_pb2.MatrixFloat.FromString(serialised)
    match int(rng.integers(8)):
        case 0:
            return change_bytes(rng, compressed)
        case 1:
            return zlib.compress(change_bytes(rng, serialised), 1)
        case 2 | 3:
            for place in rng.integers(0, len(matrix.data), int(rng.choice([1, 10, 1000]))):
                matrix.data[place] = np.clip(rng.choice(NUMBERS), -3.4e38, 3.4e38)
        case 4:
            matrix.shape.dims[int(rng.integers(3))] = int(rng.choice([*WHOLE_NUMBERS, 4, 6]))
        case 5:
            height, width, channels = matrix.shape.dims
            matrix.shape.dims[:] = list(rng.permutation([height, width, channels]))
        case 6:
            del matrix.data[int(rng.integers(len(matrix.data))) :]
        case _:
            return bomb(int(rng.choice([20, 60, 1000]))) if rng.random() < 0.1 else compressed + rng.bytes(3)
    return zlib.compress(matrix.SerializeToString(), 1)


@functools.cache
def bomb(megabytes: int) -> bytes:
    """Return a stream that inflates to so many zeros."""
    compressor = zlib.compressobj(1)
    block = bytes(1 << 20)
    parts = [compressor.compress(block) for _ in range(megabytes)]
    return b"".join([*parts, compressor.flush()])


def legal_giant(rng: np.random.Generator) -> bytes:
    """Return an image just below the reader's bound, in the order of fields that takes it the most memory, or not."""
    count = (1 << 25) // 4 - 100
    count -= count % 16
    shape = waymo_pb2.MatrixFloat(shape=waymo_pb2.MatrixShape(dims=[4, count // 16, 4])).SerializeToString()
    data = b"\x0a" + varint(4 * count) + np.full(count, 1, "<f4").tobytes()
    return zlib.compress(shape + data if rng.random() < 0.5 else data + shape, 1)


def varint(number: int) -> bytes:
    """Encode a whole number in base 128, lowest group first."""
    groups = [number & 0x7F]
    while number := number >> 7:
        groups.append(number & 0x7F)
    return bytes([*(group | 0x80 for group in groups[:-1]), groups[-1]])


LEVELS: tuple[Callable[[np.random.Generator, bytes], bytes], ...] = (
    bytes_of_the_file,
    bytes_of_a_record,
    fields_of_a_frame,
    images_of_a_frame,
)
