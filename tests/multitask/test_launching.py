"""Which compiled form of a kernel is launched; a recorder stands for Triton, which needs a GPU to compile."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from detection3d.multitask.launching import Launcher


class constexpr:
    pass


class Recorder:
    """Compiles anew at each call, as Triton's own cache would tell; its forms note what they are launched with."""

    def __init__(self, compiles: bool = True) -> None:
        def fn(values, other, count, SIZE: constexpr):
            raise NotImplementedError

        self.fn, self.compiles, self.compiled, self.launched = fn, compiles, 0, []

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., Any]:
        def first(*arguments: Any) -> Any:
            self.compiled += 1
            self.launched.append((grid, arguments))
            return Form(self.compiled, self.launched) if self.compiles else None

        return first


class Form:
    def __init__(self, number: int, launched: list[Any]) -> None:
        self.number, self.launched = number, launched

    def __getitem__(self, grid: tuple[int, int, int]) -> Callable[..., None]:
        return lambda *arguments: self.launched.append((self.number, grid, arguments))


def test_a_form_is_compiled_once_and_launched_again() -> None:
    kernel = Recorder()
    launch = Launcher(kernel)
    first, second = torch.zeros(4), torch.ones(4)
    launch(3, first, None, 17, 8)
    launch(5, second, None, 19, 8)
    assert kernel.compiled == 1
    assert kernel.launched[0] == ((3,), (first, None, 17, 8))
    number, grid, arguments = kernel.launched[1]
    assert (number, grid) == (1, (5, 1, 1))
    assert arguments == (second.data_ptr(), None, 19, 8)


class OnGpu(torch.Tensor):
    """A tensor that says it is on a GPU."""

    is_cuda = property(lambda self: True)
    device = property(lambda self: torch.device("cuda", int(self[0])))


def test_a_tensor_of_the_host_never_gets_a_form_for_the_gpu_s() -> None:
    kernel = Recorder()
    launch = Launcher(kernel)
    launch(1, torch.zeros(4), torch.zeros(4).as_subclass(OnGpu), 17, 8)
    launch(1, torch.zeros(4), torch.zeros(4), 17, 8)
    assert kernel.compiled == 2, "Triton is asked, which refuses it"


def test_each_gpu_has_forms_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = Recorder()
    launch = Launcher(kernel)
    for index in (0, 1, 0, 1):
        monkeypatch.setattr(torch.cuda, "current_device", lambda index=index: index)
        launch(1, torch.full((4,), float(index)).as_subclass(OnGpu), None, 17, 8)
    assert kernel.compiled == 2


@pytest.mark.parametrize(
    "changed",
    [
        {0: torch.zeros(4, dtype=torch.float64)},
        {0: torch.zeros(5)[1:]},  # no longer at an address that 16 divides
        {1: torch.zeros(4)},
        {2: 1},
        {2: 32},
        {2: 2**31 + 1},
        {2: -(2**31) - 1},
        {2: 2**63 + 1},
        {2: True},
        {2: 17.0},
        {3: 24},  # a constant, of which every value is another form
        {3: 8.0},
    ],
    ids=str,
)
def test_what_triton_compiles_apart_is_kept_apart(changed: dict[int, Any]) -> None:
    kernel = Recorder()
    launch = Launcher(kernel)
    arguments = [torch.zeros(4), None, 17, 8]
    launch(1, *arguments)
    for place, value in changed.items():
        arguments[place] = value
    launch(1, *arguments)
    assert kernel.compiled == 2
    launch(1, *arguments)
    assert kernel.compiled == 2


def test_the_interpreter_compiles_nothing() -> None:
    kernel = Recorder(compiles=False)
    launch = Launcher(kernel)
    for _ in range(3):
        launch(2, torch.zeros(4), None, 17, 8)
    assert [grid for grid, _ in kernel.launched] == [(2,)] * 3


def test_all_arguments_are_given() -> None:
    with pytest.raises(ValueError, match="shorter"):
        Launcher(Recorder())(1, torch.zeros(4))
