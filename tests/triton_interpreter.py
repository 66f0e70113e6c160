"""Whether Triton's interpreter, which runs kernels on the CPU, works here."""

from importlib.metadata import PackageNotFoundError, version

import numpy as np
import pytest


def _why_not() -> str:
    try:
        triton = version("triton")
    except PackageNotFoundError:
        return "needs Triton, which has wheels for Linux on x86-64"
    if _numbers(triton) < (3, 7) and _numbers(np.__version__) >= (2, 4):  # takes an array of one number for the number
        return f"the interpreter of Triton {triton} does not work with NumPy {np.__version__}"
    return ""


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(map(int, text.split(".")[:2]))


needs_interpreter = pytest.mark.skipif(bool(_why_not()), reason=_why_not())
