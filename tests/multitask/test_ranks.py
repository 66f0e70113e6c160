"""R ranks with shares of a batch against one rank with the whole batch: for every method, to float64's last digits."""

import dataclasses
import inspect
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from unittest import mock

import pytest
import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn.parallel import DistributedDataParallel

from detection3d import multitask
from detection3d.multitask import (
    CAGrad,
    Cells,
    Combination,
    GradDrop,
    GradNorm,
    Marginalize,
    Method,
    Ramp,
    RandomSign,
    Sum,
    TaskFork,
)
from detection3d.multitask.lingvo import LingvoGradDrop
from detection3d.multitask.wrapping import Wrapping
from tests.rank_group import RankGroup

TASKS = ("classification", "box", "orientation")
STEPS = 3
BUCKET_MB = 1e-4  # a bucket for nearly every parameter, so that some are on their way while the fork's sums are
CLOSE = {"rtol": 1e-10, "atol": 1e-12}
SOLVED = {"rtol": 1e-8, "atol": 1e-9}  # the fifty turns of CAGrad's solver multiply the rounding of the sums over ranks

Shares = tuple[tuple[int, ...], ...]
"""The samples of each rank."""


@dataclass(frozen=True)
class Case:
    """How the samples of a step are spread.

    Attributes:
        micro_batches: the shares of each backward pass of a step.
        empty: samples without objects, in which the losses of box and orientation are 0.
    """

    micro_batches: tuple[Shares, ...]
    empty: tuple[int, ...] = ()


EVERYTHING = Case((((0,), (1, 2, 3)), ((4, 5, 6), ())), empty=(0, 2))
"""Unequal shares, accumulated; in the first pass a rank has no objects, in the second one no samples."""

TWO_RANKS = {
    "equal": Case((((0, 1), (2, 3)),)),
    "unequal": Case((((0,), (1, 2, 3)),)),
    "no objects on a rank": Case((((0, 1), (2, 3)),), empty=(2, 3)),
    "no objects at all": Case((((0, 1), (2, 3)),), empty=(0, 1, 2, 3)),
    "no samples on a rank": Case((((0, 1, 2), ()),)),
    "accumulated": Case((((0, 1), (2, 3)), ((4,), (5, 6)), ((7, 8), (9,))), empty=(4, 7, 8, 9)),
}
FOUR_RANKS = {
    "equal": Case((((0,), (1,), (2,), (3,)),)),
    "unequal": Case((((0, 1, 2), (3,), (), (4, 5)), ((6,), (7,), (8,), (9, 10))), empty=(3, 6, 9, 10)),
}


def every_method() -> dict[str, Method]:
    """Each method that the package has, as it is and around GradDrop, and the settings of those that draw."""
    kinds = {
        name: kind
        for name, kind in vars(multitask).items()
        if inspect.isclass(kind) and issubclass(kind, Method) and not inspect.isabstract(kind)
    }
    methods = {name: kind() for name, kind in kinds.items()}
    methods |= {
        f"{name} around GradDrop": kind(then=GradDrop()) for name, kind in kinds.items() if issubclass(kind, Wrapping)
    }
    methods["LingvoGradDrop"] = LingvoGradDrop()
    for kind in (GradDrop, RandomSign):
        for marginalize in ("batch", "batch+space", "none"):
            for preserve_norm in (False, True):
                setting = {"marginalize": marginalize, "preserve_norm": preserve_norm}
                methods[f"{kind.__name__}, {marginalize}, {preserve_norm}"] = kind(**setting)
    methods["GradDrop, leak"] = GradDrop(leak={"box": 0.3}, strength=Ramp(0.5, 1.0, 0, 2))
    return methods


METHODS = every_method()


class Net(nn.Module):
    """Dense or sparse features, the fork and three heads, in float64; without normalisation, which knows its ranks."""

    def __init__(self, method: Method, sparse: bool = False, **options: object) -> None:
        super().__init__()
        torch.manual_seed(0)
        layer: Callable[[int, int], nn.Module] = nn.Linear if sparse else partial(nn.Conv2d, kernel_size=3, padding=1)
        self.backbone = nn.Sequential(layer(2, 8), nn.Tanh(), layer(8, 6))
        self.fork = TaskFork(
            TASKS,
            method,
            seed=3,
            telemetry_every=1,
            map_every=0 if sparse else 1,
            **options,  # pyright: ignore
        )
        self.heads = nn.ModuleDict(
            {task: nn.Sequential(nn.ReLU(), layer(6, 4), nn.Tanh(), layer(4, 1)) for task in TASKS}
        )
        self.double()

    def forward(self, values: Tensor, index: Tensor | None) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        features = self.fork(self.backbone(values), index)
        return {task: head(features[task]) for task, head in self.heads.items()}, features


def sample(number: int, case: Case, sparse: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Values, targets and where there are objects; of sparse samples, every third has no rows."""
    generator = torch.Generator().manual_seed(number)
    shape = (0 if number % 3 == 2 else 5 + number,) if sparse else (1, 5, 4)
    values = torch.randn(*shape[:1], 2, *shape[1:], generator=generator, dtype=torch.float64)
    target = torch.randn(*shape[:1], 1, *shape[1:], generator=generator, dtype=torch.float64)
    objects = torch.rand(target.shape, generator=generator) < 0.4
    return values, target, objects & (number not in case.empty)


def batch_of(numbers: list[int], case: Case, sparse: bool) -> tuple[Tensor, Tensor, Tensor]:
    samples = [sample(number, case, sparse) for number in numbers]
    nothing = [part[:0] for part in sample(0, case, sparse)]
    values, target, objects = (torch.cat(parts) for parts in zip(nothing, *samples, strict=True))
    return values, target, objects


@dataclass
class Found:
    """What a rank has to show: by step, by backward pass, at the end."""

    gradients: list[dict[str, Tensor]]
    coefficients: list[Tensor]
    combined: list[Tensor]
    telemetry: list[Tensor]
    state: dict[str, Tensor]


@contextmanager
def recorded(method: Method, found: Found) -> Iterator[None]:
    """Note the coefficients that the method chooses, and the gradient that it makes."""
    combine = type(method).combine

    def noting(self: Method, *arguments: object) -> Combination:
        combination = combine(self, *arguments)  # pyright: ignore
        if self is method:
            found.coefficients.append(combination.coefficients)
            found.combined.append(combination.gradient)
        return combination

    with mock.patch.object(type(method), "combine", noting):
        yield


def train(
    rank: int | None,
    method: Method,
    case: Case,
    sparse: bool = False,
    sync: str = "full",
    group: dist.ProcessGroup | None = None,
) -> Found:
    """Do some steps, as `rank` of the group or in one process (None), and return what was seen on the way."""
    net = Net(method, sparse, sync=sync, process_group=group)
    ranks = 1 if rank is None else len(case.micro_batches[0])
    parallel = None if rank is None else DistributedDataParallel(net, process_group=group, bucket_cap_mb=BUCKET_MB)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    found = Found([], [], [], [], {})
    for step in range(STEPS):
        net.fork.set_step(step)
        for number, shares in enumerate(case.micro_batches):
            everything = [20 * step + sample for share in shares for sample in share]
            own = everything if rank is None else [20 * step + sample for sample in shares[rank]]
            spread = dataclasses.replace(case, empty=tuple(20 * step + sample for sample in case.empty))
            count = max(1, int(batch_of(everything, spread, sparse)[2].sum())) / ranks
            last = number == len(case.micro_batches) - 1
            with recorded(method, found):
                if parallel is not None and not last:
                    with parallel.no_sync():
                        go_back(parallel, net.fork, own, spread, sparse, count)
                else:
                    go_back(parallel or net, net.fork, own, spread, sparse, count)
        net.fork.update()
        found.gradients.append(
            {name: weight.grad.clone() for name, weight in net.named_parameters() if weight.grad is not None}
        )
        found.telemetry.append(read_everything(net.fork))
        optimizer.step()
        optimizer.zero_grad()
    found.state = {name: value.clone() for name, value in net.state_dict().items()}
    return found


def read_everything(fork: TaskFork) -> Tensor:
    """All numbers of the telemetry, and of the map where there is one, in a row."""
    seen, where = fork.read_telemetry(), fork.read_map()
    assert seen is not None
    maps = [] if where is None else [where.mass.flatten(), where.cancelled.flatten()]
    scalars = torch.tensor(list(seen.scalars().values()), dtype=torch.float64)
    return torch.cat([scalars, seen.purity_histogram, torch.tensor([float(seen.passes)]).double(), *maps])


def go_back(net: nn.Module, fork: TaskFork, own: list[int], case: Case, sparse: bool, count: float) -> None:
    values, target, objects = batch_of(own, case, sparse)
    index = None if sparse else torch.tensor(own, dtype=torch.int64)
    outputs, features = net(values, index)
    squares = {task: (outputs[task] - k * target).square() for k, task in enumerate(TASKS, start=1)}
    losses = {
        task: (value if task == "classification" else torch.where(objects, value, 0.0)).sum() / count
        for task, value in squares.items()
    }
    torch.stack(list(fork.weigh(losses, features).values())).sum().backward()


def assert_equal_to_one_rank(found: list[Found], alone: Found, method: Method) -> None:
    close = SOLVED if isinstance(method, CAGrad) else CLOSE
    masks = isinstance(method, GradDrop | Sum | LingvoGradDrop)
    for rank in found:
        assert_close_by_name(rank.state, alone.state, **close)
        for step in range(STEPS):
            assert_close_by_name(rank.gradients[step], alone.gradients[step], **close)
            torch.testing.assert_close(rank.telemetry[step], alone.telemetry[step], **close)
            assert torch.equal(rank.telemetry[step], found[0].telemetry[step])
    for number, whole in enumerate(alone.coefficients):
        parts = [rank.coefficients[number] for rank in found]
        apart = method.marginalize == "none" and whole.ndim > 1 and whole.shape[1] > 1
        for part in [torch.cat(parts, 1)] if apart else parts:
            torch.testing.assert_close(part, whole, **({"rtol": 0, "atol": 0} if masks else close))
        combined = torch.cat([rank.combined[number] for rank in found]) / len(found)
        torch.testing.assert_close(combined, alone.combined[number], **close)


def assert_close_by_name(found: dict[str, Tensor], wanted: dict[str, Tensor], rtol: float, atol: float) -> None:
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        torch.testing.assert_close(
            found[name], value, rtol=rtol, atol=atol, msg=lambda text, name=name: f"{name}: {text}"
        )


@pytest.fixture(scope="module")
def two_ranks() -> Iterator[RankGroup]:
    with RankGroup(2) as group:
        yield group


@pytest.fixture(scope="module")
def four_ranks() -> Iterator[RankGroup]:
    with RankGroup(4) as group:
        yield group


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_two_ranks_equal_one(two_ranks: RankGroup, method: Method) -> None:
    alone = train(None, method, EVERYTHING)
    assert_equal_to_one_rank(two_ranks.run(train, method, EVERYTHING), alone, method)
    if isinstance(method, GradDrop):
        assert any((coefficients < 1).any() for coefficients in alone.coefficients)


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
@pytest.mark.parametrize("case", TWO_RANKS.values(), ids=TWO_RANKS)
def test_two_ranks_equal_one_in_each_case(two_ranks: RankGroup, method: Method, case: Case) -> None:
    assert_equal_to_one_rank(two_ranks.run(train, method, case), train(None, method, case), method)


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
@pytest.mark.parametrize("case", FOUR_RANKS.values(), ids=FOUR_RANKS)
def test_four_ranks_equal_one(four_ranks: RankGroup, method: Method, case: Case) -> None:
    assert_equal_to_one_rank(four_ranks.run(train, method, case), train(None, method, case), method)


SPARSE = {name: method for name, method in METHODS.items() if method.marginalize != "none"}
WITHOUT_ROWS = Case((((0, 1), (2,)), ((5,), (3, 4))))
"""Samples 2 and 5 have no voxel: each rank is without rows once."""


@pytest.mark.parametrize(
    "method",
    [
        pytest.param(method, id=name, marks=() if name == "GradDrop, batch+space, True" else pytest.mark.slow)
        for name, method in SPARSE.items()
    ],
)
def test_ranks_without_voxels(two_ranks: RankGroup, method: Method) -> None:
    alone = train(None, method, WITHOUT_ROWS, sparse=True)
    assert_equal_to_one_rank(two_ranks.run(train, method, WITHOUT_ROWS, True), alone, method)


@pytest.mark.parametrize("marginalize", ["batch", "batch+space", "none"])
def test_without_sync_each_rank_decides_for_itself(two_ranks: RankGroup, marginalize: Marginalize) -> None:
    """What DistributedDataParallel averages are then the gradients of two processes that know nothing of each other."""
    method, case = GradDrop(marginalize=marginalize), TWO_RANKS["equal"]
    found = two_ranks.run(train, method, case, False, "none")
    apart = [train(None, method, Case((((0, 1),),))), train(None, method, Case((((2, 3),),)))]
    whole = train(None, method, case)
    for rank, alone in zip(found, apart, strict=True):
        # The losses are divided by the objects of both ranks, which the masks do not see.
        assert torch.equal(rank.coefficients[0], alone.coefficients[0])
        torch.testing.assert_close(direction(rank.combined[0]), direction(alone.combined[0]), **CLOSE)
    assert not torch.equal(found[0].telemetry[0], found[1].telemetry[0])
    assert not torch.allclose(found[0].gradients[0]["backbone.0.weight"], whole.gradients[0]["backbone.0.weight"])
    assert_close_by_name(found[0].gradients[0], found[1].gradients[0], **CLOSE)


def direction(gradient: Tensor) -> Tensor:
    return gradient / torch.linalg.vector_norm(gradient)


def test_coordinates_are_refused_on_several_ranks(two_ranks: RankGroup) -> None:
    for message in two_ranks.run(refuse, GradDrop(marginalize="coordinates"), True):
        assert message.startswith('marginalize "coordinates" works on one rank, found 2')
        assert 'choose "batch+space"' in message


def test_drawing_for_each_sample_needs_their_indices(two_ranks: RankGroup) -> None:
    for message in two_ranks.run(refuse, GradDrop(marginalize="none"), False):
        assert message.startswith('marginalize "none" draws for each sample apart, and 2 ranks train together')


def refuse(rank: int, method: Method, with_cells: bool) -> str:
    fork, shared = TaskFork(TASKS, method), torch.ones(2, 3, requires_grad=True)
    features = fork(shared, cells=Cells(torch.arange(2), 2) if with_cells else None)
    with pytest.raises(ValueError, match="marginalize") as caught:
        sum(alias.sum() for alias in features.values()).backward()
    return str(caught.value)


@pytest.mark.slow
def test_a_process_group_of_its_own(four_ranks: RankGroup) -> None:
    """Two pairs train apart, each as one process with the pair's samples would."""
    method = GradNorm(then=GradDrop())
    found = four_ranks.run(train_in_pairs, method)
    for pair, case in enumerate(PAIRS):
        assert_equal_to_one_rank(found[2 * pair : 2 * pair + 2], train(None, method, case), method)


PAIRS = (TWO_RANKS["unequal"], TWO_RANKS["accumulated"])


def train_in_pairs(rank: int, method: Method) -> Found:
    groups = [dist.new_group([0, 1]), dist.new_group([2, 3])]
    return train(rank % 2, method, PAIRS[rank // 2], group=groups[rank // 2])


@pytest.mark.slow
def test_two_thousand_steps_with_a_slow_rank_do_not_hang() -> None:
    script = Path(__file__).with_name("rank_endurance.py")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(script.parents[2])}
    process = subprocess.run(
        [*launcher, str(script), "--steps", "2000"],
        capture_output=True, text=True, env=environment, timeout=900, check=False,
    )  # fmt: skip
    assert process.returncode == 0, process.stderr
    report = json.loads(process.stdout.splitlines()[-1])
    assert report["ranks"] == 2
    assert report["measured"] == 200
    assert report["equal"]
    assert report["finite"]
