"""BatchNorm over two GPUs against one rank with all rows: in fused kernels, in torch's operations, and in graphs."""

from collections.abc import Iterator

import pytest
import torch

from detection3d.model.norm import BatchNorm, synchronize_norms
from detection3d.multitask.exchange import open_exchange
from tests.model.test_norm import SHAPES, assert_like_one_rank, run_norm_on_rank, shares
from tests.rank_group import RankGroup

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices"),
]


@pytest.fixture(scope="module")
def two_ranks() -> Iterator[RankGroup]:
    with RankGroup(2, "nccl") as group:
        yield group


# In float64 torch's operations do it, else kernels of our own, which meet on their way where GPUs share memory.
@pytest.mark.parametrize(
    ("dtype", "close"),
    [(torch.float64, {"rtol": 1e-9, "atol": 1e-10}), (torch.float32, {"rtol": 2e-4, "atol": 2e-4})],
    ids=["float64", "float32"],
)
@pytest.mark.parametrize("sums", ["by what there is", "by NCCL"])
@pytest.mark.parametrize("second", [False, True], ids=["gradient", "second derivative"])
@pytest.mark.parametrize("shapes", SHAPES, ids=str)
def test_two_ranks_equal_one_with_all_rows(
    two_ranks: RankGroup,
    shapes: list[tuple[int, ...]],
    second: bool,
    sums: str,
    dtype: torch.dtype,
    close: dict[str, float],
) -> None:
    layouts = [torch.preserve_format, torch.channels_last] if len(shapes[0]) == 4 else [torch.preserve_format]
    for layout in layouts:
        found = two_ranks.run(run_norm_on_rank, shapes, dtype, 5.0, second, "cuda", layout, sums != "by NCCL")
        assert_like_one_rank(found, shapes, second, close)


REPLAYS = 300


def test_graphs_are_replayed_however_slow_the_other_rank_is(two_ranks: RankGroup) -> None:
    """Nothing comes between the replays of one layer, so a rank that is ahead is at the same site again."""
    found = two_ranks.run(replay)
    for turn in range(REPLAYS):
        values = torch.cat([drawn(rank, turn) for rank in range(2)]).double()
        expected = (values - values.mean(0)) / (values.var(0, correction=0) + 1e-3).sqrt()
        outputs = torch.cat([outputs[turn] for outputs, _ in found])
        torch.testing.assert_close(outputs.double(), expected, rtol=1e-4, atol=1e-4)
    for name, value in found[0][1].items():
        assert torch.equal(value, found[1][1][name])


def drawn(rank: int, turn: int) -> torch.Tensor:
    return torch.randn(40, 20, generator=torch.Generator().manual_seed(2 * turn + rank)) + turn % 5


def replay(rank: int) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    device = torch.device("cuda", rank)
    layer = BatchNorm(20).to(device)
    synchronize_norms(layer, exchange=open_exchange(None, device))
    if torch.cuda.can_device_access_peer(0, 1):
        assert None not in layer.sites
    given = drawn(rank, 0).to(device)
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.no_grad(), torch.cuda.stream(stream):
        layer(given)  # compiles, and meets once
    graph = torch.cuda.CUDAGraph()
    with torch.no_grad(), torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
        result = layer(given)
    outputs, inputs = [], torch.stack([drawn(rank, turn) for turn in range(REPLAYS)]).to(device)
    for turn in range(REPLAYS):  # launched without waiting for the device
        given.copy_(inputs[turn])
        if turn % 7 == 3 * rank:
            torch.cuda._sleep(200_000)  # cycles; so the ranks are ahead of each other in turns
        graph.replay()
        outputs.append(result.clone())
    return torch.stack(outputs).cpu(), {name: value.cpu() for name, value in layer.state_dict().items()}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_single(two_ranks: RankGroup, dtype: torch.dtype) -> None:
    """A mean of 100 has steps of 1/16 and 1/2 in these types; what is normalised are the values as they are."""
    shapes = [(3000, 4), (17, 4)]
    for rank, (half, single) in enumerate(two_ranks.run(normalize_in, shapes, dtype)):
        assert half.dtype == dtype
        values = torch.cat(shares(shapes, 0, dtype, 100.0)).double()
        expected = (values - values.mean(0)) / (values.var(0, correction=0) + 1e-3).sqrt()
        torch.testing.assert_close(single.double(), expected.split([3000, 17])[rank], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(half, single.to(dtype), rtol=0, atol=0)


def normalize_in(rank: int, shapes: list[tuple[int, ...]], dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    values = shares(shapes, 0, dtype, 100.0)[rank].cuda()
    results = []
    for input in (values, values.float()):
        layer = BatchNorm(4).cuda()
        synchronize_norms(layer, exchange=open_exchange(None, input.device))
        results.append(layer(input).detach().cpu())
    return results[0], results[1]
