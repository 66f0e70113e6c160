"""Ranks meet in a store in which earlier ranks have left their keys, and those that don't fit together are told."""

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta

import pytest
from torch.distributed import HashStore, Store  # pyright: ignore[reportPrivateImportUsage]

from detection3d.errors import UserError
from detection3d.training.rendezvous import Card, meet, refuse_mixture

SOON, LONG = timedelta(seconds=0.3), timedelta(seconds=20)


def card(rank: int, size: int = 3, **changes: str) -> Card:
    return replace(Card(rank, size, f"node{rank}", "cpu", "", "2.13.0"), **changes)


def meet_all(store: Store, ranks: range, size: int = 3) -> None:
    """Meet, and see that what one rank writes in the team's store is what the others read."""

    def take_part(rank: int) -> bytes:
        own = meet(store, card(rank, size), LONG)
        if rank == 0:
            own.set("word", f"of {threading.get_ident()}")
        return own.get("word")

    with ThreadPoolExecutor(size) as pool:
        assert len(set(pool.map(take_part, ranks))) == 1


def test_every_team_has_a_part_of_the_store_for_itself() -> None:
    store = HashStore()
    seen = []
    for size in (3, 2, 4):  # started again, each time by another number
        before = store.num_keys()
        meet_all(store, range(size), size)
        assert store.num_keys() > before
        seen.append(store.get("hello/1"))
    assert len(set(seen)) == 3


def test_a_rank_that_died_is_not_taken_for_its_successor() -> None:
    store = HashStore()
    for rank in (1, 2):  # said hello and died
        store.set(f"hello/{rank}", "a word of old")
    with pytest.raises(UserError, match=r"rank 0 on node0 waited 0 s for 2 of 3 ranks \(1, 2\), which did not come"):
        meet(store, card(0), SOON)
    meet_all(store, range(3))


def test_ranks_that_wait_find_a_first_rank_that_was_started_again() -> None:
    store = HashStore()
    with ThreadPoolExecutor(3) as pool:
        others = [pool.submit(meet, store, card(rank), LONG) for rank in (1, 2)]
        with pytest.raises(UserError, match="waited"):
            meet(store, card(0, 4), SOON)  # the one before, which waited for a rank that never came
        pool.submit(meet, store, card(0), LONG).result().set("word", "here")
        assert [other.result().get("word") for other in others] == [b"here", b"here"]


def test_without_the_first_rank_the_others_give_up() -> None:
    with pytest.raises(UserError, match=r"rank 2 on node2 waited in vain for rank 0 .*GLOO_SOCKET_IFNAME"):
        meet(HashStore(), card(2), SOON)


def test_what_is_wrong_is_told_by_all() -> None:
    store = HashStore()
    with ThreadPoolExecutor(2) as pool:
        both = [pool.submit(meet, store, card(rank, 2, device=("cuda", "cpu")[rank]), LONG) for rank in (0, 1)]
        for one in both:
            with pytest.raises(UserError, match="rank 1 on node1 would train on the CPU, but rank 0 on node0 on a GPU"):
                one.result()


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({}, None),
        ({"device": "cuda", "gpu": "GPU-1"}, "rank 0 on node0, rank 2 on node2 would train on the CPU, but rank 1"),
        ({"size": 4}, "rank 1 on node1 was started as one of 4 ranks, rank 0 on node0 as one of 3"),
        ({"torch": "2.11.0"}, "rank 1 on node1 runs torch 2.11.0, rank 0 on node0 torch 2.13.0"),
    ],
)
def test_mixtures(changes: dict[str, str], wanted: str | None) -> None:
    found = refuse_mixture({rank: card(rank, **(changes if rank == 1 else {})) for rank in range(3)})
    assert found == wanted if wanted is None else wanted in str(found)


def test_two_ranks_on_one_gpu() -> None:
    cards = {rank: card(rank, device="cuda", gpu=f"GPU-{rank % 2}") for rank in range(3)}
    assert "rank 0 on node0 and rank 2 on node2 would share one GPU (GPU-0)" in str(refuse_mixture(cards))
