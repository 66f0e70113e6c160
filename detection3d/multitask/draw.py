"""Uniform numbers as a function of (seed, name, step, position): no generator, no state.

The same numbers come out on every device, on every rank, after a resume and when a backward is recomputed. They are
made by a 32-bit integer hash in int64 tensor operations, so nothing depends on rounding.
"""

import hashlib
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from detection3d.multitask.fused import kernels_for

_LOW_32 = 0xFFFFFFFF


def uniform(
    shape: Sequence[int],
    seed: int,
    step: int | Tensor,
    name: str,
    device: torch.device | str,
    sample_index: Tensor | None = None,
) -> Tensor:
    """Draw uniform numbers in [0, 1), multiples of 2^-24.

    Args:
        shape: shape of the result; with `sample_index` its first dimension is the batch.
        seed: any integer; what differs by a multiple of 2^64 is the same seed.
        step: optimizer step, an integer or an int64 scalar tensor on `device`.
        name: name of the stream; streams of different names are independent.
        device: where the result lies.
        sample_index: int64 [B], global index of each sample. It takes the place of the position in the batch, so that a
            sample draws the same numbers wherever it stands in a batch and on whichever rank.

    Returns:
        float32 tensor of `shape`.

    Raises:
        ValueError: `sample_index` does not fit `shape`, or there are more than 2^32 positions (of a sample).
    """
    step = torch.full((), step, dtype=torch.int64, device=device) if isinstance(step, int) else step
    return uniform_from_words(shape, stream_words(seed, name), step, sample_index)


def stream_words(seed: int, name: str) -> tuple[int, int]:
    """Return the two 32-bit words that stand for a stream (seed and name) in the hash."""
    digest = hashlib.blake2b(name.encode(), key=(seed % 2**64).to_bytes(8, "little"), digest_size=8).digest()
    return int.from_bytes(digest[:4], "little"), int.from_bytes(digest[4:], "little")


def uniform_from_words(
    shape: Sequence[int], words: tuple[int, int], step: Tensor, sample_index: Tensor | None = None
) -> Tensor:
    """Draw as `uniform` does, for a stream whose words are known already: traceable by torch.compile.

    Args:
        shape: shape of the result.
        words: what `stream_words` returned.
        step: int64 scalar; the result lies on its device.
        sample_index: int64 [B] or None, as for `uniform`.

    Returns:
        float32 tensor of `shape`.

    Raises:
        ValueError: as for `uniform`.
    """
    if sample_index is not None and (len(shape) == 0 or sample_index.shape != (shape[0],)):
        raise ValueError(
            f"sample_index has shape {tuple(sample_index.shape)}; the batch of {tuple(shape)} needs one index a sample"
        )
    positions = math.prod(shape if sample_index is None else shape[1:])
    if positions > _LOW_32 + 1:
        raise ValueError(f"{positions} positions in shape {tuple(shape)}: the hash tells at most 2^32 apart")

    if (kernels := kernels_for(step)) is not None:
        return kernels.draw(tuple(shape), words, step, sample_index, None)
    key = _step_key(words, step)
    if sample_index is not None:
        key = _absorb(key[:, None, None], sample_index[:, None])

    bits = torch.arange(positions, device=step.device)
    return _to_unit(_mix(_mix(bits ^ key[0]) ^ key[1])).reshape(tuple(shape))


def uniform_at(index: Tensor, words: tuple[int, int], step: Tensor) -> Tensor:
    """Draw the numbers that `uniform_from_words` gives at flat positions `index`, in any order.

    Args:
        index: int64 of any shape, 0 or more. Beyond 2^32, where the dense draw ends, the upper word is hashed in too.
        words: what `stream_words` returned.
        step: int64 scalar on the same device.

    Returns:
        float32, shaped like `index`.
    """
    if (kernels := kernels_for(step)) is not None:
        return kernels.draw(tuple(index.shape), words, step, None, index)
    key = _step_key(words, step)
    low, high = index & _LOW_32, index >> 32
    bits = _mix(_mix(low ^ key[0]) ^ key[1])
    return _to_unit(torch.where(high == 0, bits, _mix(bits ^ high)))


def _step_key(words: tuple[int, int], step: Tensor) -> Tensor:
    # Two words of key: with one alone, the numbers of two steps would be the same ones in another order.
    first, second = words
    key = torch.arange(2, device=step.device) * (second - first) + first  # no copy from the host, unlike torch.tensor
    return _absorb(key, step)


def _to_unit(bits: Tensor) -> Tensor:
    return (bits >> 8).to(torch.float32) * 2.0**-24


def _absorb(key: Tensor, value: Tensor) -> Tensor:
    """Hash a 64-bit value into 32-bit keys, int64 tensors that broadcast."""
    return _mix(_mix(key ^ (value & _LOW_32)) ^ ((value >> 32) & _LOW_32))


def _mix(bits: Tensor) -> Tensor:
    """Scramble 32-bit numbers held in int64, one to one; `bits` is overwritten.

    The finaliser "lowbias32" (Christopher Wellons, Prospecting for Hash Functions, 2018). Its second multiplier is
    written as its value minus 2^32: the same modulo 2^32, but the product fits a signed 64-bit integer.
    """
    bits ^= bits >> 16
    bits = bits.mul_(0x7FEB352D).bitwise_and_(_LOW_32)
    bits ^= bits >> 15
    bits = bits.mul_(0x846CA68B - 2**32).bitwise_and_(_LOW_32)
    bits ^= bits >> 16
    return bits
