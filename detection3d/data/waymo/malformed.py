"""What the decoders raise before anyone knows which file and record it was."""

from detection3d.errors import UserError


class MalformedFrameError(UserError):
    """Part of a frame that can't be used: what is wrong, the value found. `decode_frame` adds file and record."""
