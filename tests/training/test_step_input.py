"""The thread that prepares steps, with streams that only note what they are told: when it waits, and how it ends."""

import sys
import threading
import weakref
from collections.abc import Iterator
from contextlib import closing, nullcontext
from typing import Any, cast

import pytest
import torch

from detection3d.training import step_input

CUDA = torch.device("cuda")


class Noted:
    """A stream or an event; `log` holds what the streams were told, in order."""

    log: list[tuple[object, ...]]

    def __init__(self, name: object) -> None:
        self.name = name

    def wait_event(self, event: "Noted") -> None:
        self.log.append((self.name, "waits for", event.name))

    def wait_stream(self, stream: "Noted") -> None:
        self.log.append((self.name, "waits for", stream.name))

    def record(self, stream: "Noted") -> None:
        self.name = f"end of step {sum(entry[0] == 'network does' for entry in self.log)}"


class NewEvent(Noted):
    def __init__(self) -> None:
        super().__init__("new")


class Made:
    """What is made of a batch."""

    def __init__(self, number: int) -> None:
        self.number = number


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> list[tuple[object, ...]]:
    Noted.log = []
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: Noted("network"))
    monkeypatch.setattr(torch.cuda, "Stream", lambda device, priority: Noted("thread"))
    monkeypatch.setattr(torch.cuda, "Event", NewEvent)
    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: nullcontext())
    monkeypatch.setattr(step_input, "to_device", lambda batch, device: batch)

    def make(batch: int, detector: object, config: object, step: int) -> Made:
        if batch < 0:
            raise ValueError(f"batch {batch}")
        assert batch == step
        Noted.log.append(("makes", batch))
        return Made(batch)

    monkeypatch.setattr(step_input, "step_input", make)
    return Noted.log


def inputs(batches: Iterator[int], step: int = 0) -> Any:
    return step_input.step_inputs(cast(Any, batches), cast(Any, None), cast(Any, None), CUDA, step)


def test_memory_is_made_anew_only_when_the_network_has_read_it(log: list[tuple[object, ...]]) -> None:
    made: list[weakref.ref[Made]] = []
    done = []
    for given in inputs(iter(range(1, 6)), 1):
        done.append(given.number)
        log.append(("network does", given.number))
        made.append(weakref.ref(given))
        assert all(kept() is not None for kept in made[-2:]), "the step before may still be running"
        del given
    assert done == [1, 2, 3, 4, 5]
    assert log[0] == ("thread", "waits for", "network")
    assert log.index(("network", "waits for", "thread")) < log.index(("network does", 1))
    for number in (4, 5):  # the memory of the one three before may be used again
        waited = log.index(("thread", "waits for", f"end of step {number - 3}"))
        assert waited == log.index(("makes", number)) - 1
    assert not any(kept() is not None for kept in made)


def failing(good: int) -> Iterator[int]:
    yield from range(good)
    raise OSError("no more disk")


@pytest.mark.usefixtures("log")
def test_errors_come_after_the_steps_before_them() -> None:
    before = sys.getswitchinterval()
    for batches, error, message in ((failing(2), OSError, "no more disk"), (iter((0, 1, -2)), ValueError, "batch -2")):
        done = []
        with pytest.raises(error, match=message):
            done.extend(given.number for given in inputs(batches))
        assert done == [0, 1]
        assert list(inputs(iter(()))) == []
        assert sys.getswitchinterval() == before


@pytest.mark.usefixtures("log")
def test_closed_early_it_leaves_nothing_behind() -> None:
    before = sys.getswitchinterval()
    with closing(inputs(iter(range(9)))) as given:
        next(given)
        assert sys.getswitchinterval() == pytest.approx(step_input.SWITCH_INTERVAL)
        assert any(thread.name.startswith("step-input") for thread in threading.enumerate())
    assert sys.getswitchinterval() == before
    assert not any(thread.name.startswith("step-input") for thread in threading.enumerate())
