"""Launches of Triton kernels without what Triton repeats for each of them, which is most of a launch."""

import inspect
from typing import Any

import torch
from torch import Tensor


class Launcher:
    """A kernel whose compiled forms are kept by what Triton distinguishes in its arguments.

    Args:
        kernel: as `triton.jit` makes it.
    """

    def __init__(self, kernel: Any) -> None:
        self._kernel = kernel
        annotations = [parameter.annotation for parameter in inspect.signature(kernel.fn).parameters.values()]
        self._kinds = [_exactly if "constexpr" in str(one) else _kind for one in annotations]
        self._compiled: dict[tuple[object, ...], Any] = {}

    def __call__(self, programs: int, *arguments: Any) -> None:
        """Launch so many programs on the device of the first argument, a tensor; all arguments are given, in order."""
        device = arguments[0].device
        if device.type == "cuda" and device.index != torch.cuda.current_device():
            with torch.cuda.device(device):
                self._launch(device, programs, arguments)
        else:
            self._launch(device, programs, arguments)

    def _launch(self, device: torch.device, programs: int, arguments: tuple[Any, ...]) -> None:
        key = (device, *[kind(value) for kind, value in zip(self._kinds, arguments, strict=True)])
        compiled = self._compiled.get(key)
        if compiled is None:  # and always in Triton's interpreter, which compiles nothing
            self._compiled[key] = self._kernel[(programs,)](*arguments)
        else:
            compiled[programs, 1, 1](*arguments)


def _exactly(value: object) -> object:
    return type(value), value


def _kind(value: Any) -> object:
    """Return the type, whether 16 divides an address or a number, whether a number is 1, and how long it is."""
    if isinstance(value, Tensor):
        return value.dtype, value.data_ptr() % 16 == 0
    if isinstance(value, int):
        length = 64 if value >= 2**63 else 63 if not -(2**31) <= value < 2**31 else 31
        return type(value), value == 1, value % 16 == 0, length
    return type(value)
