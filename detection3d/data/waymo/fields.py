"""Fields of a message that protobuf parses without complaint, but sets aside.

A known field of the wrong wire type, or an enum of a number that isn't declared, is no error to protobuf: it is kept
among the unknown fields, and the message looks as if it had none. A frame would lose its labels or a lidar in silence.
Fields of numbers that aren't declared here, such as Waymo's cameras, are what unknown fields are for.
"""

from google.protobuf.message import Message
from google.protobuf.unknown_fields import UnknownFieldSet

from detection3d.data.waymo.malformed import MalformedFrameError


def refuse_unreadable_fields(message: Message, where: str = "") -> None:
    """Check a message and those in it.

    Args:
        message: the message.
        where: its place in an outer one, for the message, such as "context.stats.".

    Raises:
        MalformedFrameError: a known field has the wrong wire type or an undeclared number, or text isn't UTF-8.
    """
    declared = message.DESCRIPTOR.fields_by_number
    for unknown in UnknownFieldSet(message):
        if unknown.field_number in declared:
            name = declared[unknown.field_number].name
            raise MalformedFrameError(f"its field {where}{name} holds something of another type, or an unknown number")
    for field, value in message.ListFields():
        if field.message_type is not None:
            for part in (value,) if isinstance(value, Message) else value:
                refuse_unreadable_fields(part, f"{where}{field.name}.")
        elif field.type == field.TYPE_STRING and not isinstance(value, str):  # protobuf gives the bytes then
            raise MalformedFrameError(f"its field {where}{field.name} is no UTF-8 text: {value!r}")
