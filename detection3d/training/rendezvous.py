"""How ranks find each other in a store that may still hold what ranks before a restart left in it.

torchrun keeps its store over the restarts of its ranks, and gives them nothing that all of them agree on and that is
new each time: the count of restarts is each node's own. What torch writes there to set up process groups would be taken
for the new ranks' (pytorch issue 135712). So rank 0 makes up a name for the team, under which all its keys lie, and
hands it out to living ranks only: each says hello with a word of its own, and is answered under that word.

    every other rank r            rank 0
    hello/r = word          ->
                            <-    welcome/word = team
    team/here/r = card      ->
                            <-    team/verdict = "" or what is wrong, once all are here
"""

import json
import sys
import time
import uuid
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import timedelta

from torch.distributed import PrefixStore, Store  # pyright: ignore[reportPrivateImportUsage]

from detection3d.errors import UserError

_PAUSES = (0.02, 0.5)  # seconds between two looks into the store: at first, and at most
_FIRST_WORD = 20.0  # seconds after which rank 0 tells whom it waits for
_NETWORK = (
    "check that the nodes reach each other; where a node has several networks, set GLOO_SOCKET_IFNAME and"
    " NCCL_SOCKET_IFNAME to the interface that does"
)


@dataclass(frozen=True)
class Card:
    """What a rank tells the others of itself before they join.

    Attributes:
        rank: its number.
        size: how many ranks it knows of.
        host: its node.
        device: `cuda` or `cpu`.
        gpu: identity of its GPU; empty on the CPU.
        torch: version.
    """

    rank: int
    size: int
    host: str
    device: str
    gpu: str
    torch: str


def meet(store: Store, card: Card, patience: timedelta) -> Store:
    """Wait for all ranks and return a part of the store that only these ranks know.

    Args:
        store: the same for all ranks; keys of earlier ranks may lie in it.
        card: of this rank.
        patience: how long to wait for the others.

    Raises:
        UserError: not all came, or they don't fit together.
        RuntimeError: the store is gone.
    """
    deadline = time.monotonic() + patience.total_seconds()
    team = _gather(store, card, deadline) if card.rank == 0 else _attend(store, card, deadline)
    refusal = store.get(f"{team}/verdict").decode()
    if refusal:
        raise UserError(refusal)
    return PrefixStore(team, store)


def _gather(store: Store, card: Card, deadline: float) -> str:
    team = f"team-{uuid.uuid4().hex}"
    cards, welcomed = {0: card}, set()
    started, spoken, pauses = time.monotonic(), _FIRST_WORD, _Pauses()
    while missing := [rank for rank in range(card.size) if rank not in cards]:
        for rank in missing:
            if store.check([f"{team}/here/{rank}"]):
                cards[rank] = Card(**json.loads(store.get(f"{team}/here/{rank}")))
            elif store.check([f"hello/{rank}"]) and (word := store.get(f"hello/{rank}").decode()) not in welcomed:
                store.set(f"welcome/{word}", team)  # perhaps to a rank that is no more, which harms nobody
                welcomed.add(word)
        waited = time.monotonic() - started
        whom = f"{len(missing)} of {card.size} ranks ({_few(missing)})"
        if time.monotonic() > deadline:
            raise UserError(f"rank 0 on {card.host} waited {waited:.0f} s for {whom}, which did not come; {_NETWORK}")
        if waited > spoken:
            sys.stderr.write(f"rank 0 on {card.host} waits for {whom}\n")
            spoken *= 2
        pauses.sleep()
    store.set(f"{team}/verdict", refuse_mixture(cards) or "")
    return team


def _attend(store: Store, card: Card, deadline: float) -> str:
    word, team, pauses = uuid.uuid4().hex, None, _Pauses()
    store.set(f"hello/{card.rank}", word)
    while team is None or not store.check([f"{team}/verdict"]):
        if time.monotonic() > deadline:
            raise UserError(f"rank {card.rank} on {card.host} waited in vain for rank 0 and the others; {_NETWORK}")
        if store.check([f"welcome/{word}"]) and (found := store.get(f"welcome/{word}").decode()) != team:
            team = found  # another one than before where rank 0 was started again meanwhile
            store.set(f"{team}/here/{card.rank}", json.dumps(asdict(card)))
            pauses = _Pauses()
        else:
            pauses.sleep()
    return team


class _Pauses:
    def __init__(self) -> None:
        self._next, self._longest = _PAUSES

    def sleep(self) -> None:
        time.sleep(self._next)
        self._next = min(1.2 * self._next, self._longest)


def refuse_mixture(cards: Mapping[int, Card]) -> str | None:
    """Return why these ranks can't train together, or None.

    Args:
        cards: of all ranks.
    """
    first = cards[0]
    for card in cards.values():
        if card.size != first.size:
            return f"{_name(card)} was started as one of {card.size} ranks, {_name(first)} as one of {first.size}"
    without = [card for card in cards.values() if card.device == "cpu"]
    if without and len(without) < len(cards):
        other = next(card for card in cards.values() if card.device != "cpu")
        return (
            f"{', '.join(_name(card) for card in without[:4])} would train on the CPU, but {_name(other)} on a GPU; on"
            f" {without[0].host}, check nvidia-smi and CUDA_VISIBLE_DEVICES, or give --device cpu to all"
        )
    owners: dict[str, Card] = {}
    for card in cards.values():
        if card.gpu and (owner := owners.setdefault(card.gpu, card)) is not card:
            return (
                f"{_name(owner)} and {_name(card)} would share one GPU ({card.gpu}); start as many ranks on a node as"
                " it has GPUs (torchrun --nproc-per-node)"
            )
    for card in cards.values():
        if card.torch != first.torch:
            return (
                f"{_name(card)} runs torch {card.torch}, {_name(first)} torch {first.torch}; install the same"
                " version on all nodes"
            )
    return None


def _name(card: Card) -> str:
    return f"rank {card.rank} on {card.host}"


def _few(ranks: list[int]) -> str:
    return ", ".join(map(str, ranks[:8])) + (", ..." if len(ranks) > 8 else "")
