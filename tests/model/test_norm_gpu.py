"""BatchNorm over two GPUs against one rank with all rows, launched kernel by kernel."""

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


@pytest.mark.parametrize("sums", ["by what there is", "by NCCL"])
@pytest.mark.parametrize("second", [False, True], ids=["gradient", "second derivative"])
@pytest.mark.parametrize("shapes", SHAPES, ids=str)
def test_two_ranks_equal_one_with_all_rows(
    two_ranks: RankGroup, shapes: list[tuple[int, ...]], second: bool, sums: str
) -> None:
    layouts = [torch.preserve_format, torch.channels_last] if len(shapes[0]) == 4 else [torch.preserve_format]
    for layout in layouts:
        found = two_ranks.run(run_norm_on_rank, shapes, torch.float64, 5.0, second, "cuda", layout, sums != "by NCCL")
        assert_like_one_rank(found, shapes, second, {"rtol": 1e-9, "atol": 1e-10})


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
