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
        self._constant = ["constexpr" in str(annotation) for annotation in annotations]
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
        key: list[object] = [device.index]
        given: list[object] = []
        for constant, value in zip(self._constant, arguments, strict=True):
            if isinstance(value, Tensor):
                address = value.data_ptr()
                # Given a tensor, Triton would ask it for its address, and the driver whether that is the GPU's.
                key.append((value.dtype, value.is_cuda, address % 16 == 0))
                given.append(address)
            else:
                key.append((type(value), value) if constant else _kind(value))
                given.append(value)
        compiled = self._compiled.get(form := tuple(key))
        if compiled is None:  # and always in Triton's interpreter, which compiles nothing
            self._compiled[form] = self._kernel[(programs,)](*arguments)
        else:
            compiled[programs, 1, 1](*given)


def _kind(value: object) -> object:
    """Return the type, whether a number is 1, whether 16 divides it, and how long it is."""
    if isinstance(value, int):
        length = 64 if value >= 2**63 else 63 if not -(2**31) <= value < 2**31 else 31
        return type(value), value == 1, value % 16 == 0, length
    return type(value)
