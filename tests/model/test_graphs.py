"""Recorded passes: what recording leaves as it was; on a GPU, that replays do what the module does."""

import threading
from typing import Any

import pytest
import torch
from torch import nn

from detection3d.errors import UserError
from detection3d.model import graphs
from detection3d.model.graphs import GraphedPass
from detection3d.model.norm import BatchNorm
from detection3d.multitask import Ranks

gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def small_module() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=False), BatchNorm(8, relu=True), nn.Conv2d(8, 4, 1))


def test_recording_moves_no_statistics_and_lets_other_threads_use_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    module, seen = small_module(), []

    def record(replay: nn.Module, samples: tuple[torch.Tensor, ...]) -> None:
        torch.cuda.graph("a graph", pool=None)  # pyright: ignore[reportArgumentType]
        seen.append((module[1].fused, torch.is_autocast_cache_enabled()))
        replay(*samples)

    def capture(graph: object, **settings: Any) -> None:
        seen.append(settings)

    monkeypatch.setattr(torch.cuda, "make_graphed_callables", record)
    monkeypatch.setattr(torch.cuda, "graph", capture)
    monkeypatch.setattr(graphs, "recording_stream", lambda device: f"that of {device}")
    before = {name: value.clone() for name, value in module.state_dict().items()}
    GraphedPass(module)._record([torch.randn(2, 3, 4, 4)])
    assert seen == [{"pool": None, "stream": "that of cpu", "capture_error_mode": "thread_local"}, (True, False)]
    assert torch.cuda.graph is capture
    assert not module[1].fused
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


def test_where_nothing_can_be_recorded_it_says_what_went_wrong_first(monkeypatch: pytest.MonkeyPatch) -> None:
    module = small_module()

    def record(*_: object) -> None:
        try:
            raise RuntimeError("CUDA error: no memory for this\nMore of it.")
        finally:
            raise RuntimeError("CUDA error: operation failed due to a previous error during capture")

    monkeypatch.setattr(torch.cuda, "make_graphed_callables", record)
    monkeypatch.setattr(graphs, "recording_stream", lambda device: None)
    with pytest.warns(UserWarning, match=r"can't be recorded here \(CUDA error: no memory for this\)"):
        assert GraphedPass(module)._record([torch.randn(2, 3, 4, 4)]) is module


def test_on_several_ranks_what_cannot_be_recorded_ends_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """The passes that warm up hold collectives, of which the others may have done more."""
    module = small_module()
    module[1].ranks = Ranks(2)

    def record(*_: object) -> None:
        raise RuntimeError("CUBLAS_STATUS_ALLOC_FAILED")

    monkeypatch.setattr(torch.cuda, "make_graphed_callables", record)
    monkeypatch.setattr(graphs, "recording_stream", lambda device: None)
    with pytest.raises(
        UserError, match=r"\(CUBLAS_STATUS_ALLOC_FAILED\); start all ranks with training.cuda_graphs=false"
    ):
        GraphedPass(module)._record([torch.randn(2, 3, 4, 4)])


def test_too_little_memory_is_told_as_such(monkeypatch: pytest.MonkeyPatch) -> None:
    def record(*_: object) -> None:
        try:
            raise torch.OutOfMemoryError("CUDA out of memory")
        finally:
            raise RuntimeError("CUDA error: operation failed due to a previous error during capture")

    monkeypatch.setattr(torch.cuda, "make_graphed_callables", record)
    monkeypatch.setattr(graphs, "recording_stream", lambda device: None)
    with pytest.raises(torch.OutOfMemoryError):
        GraphedPass(small_module())._record([torch.randn(2, 3, 4, 4)])


@gpu
@pytest.mark.gpu
def test_replays_do_what_the_module_does_while_another_thread_allocates() -> None:
    plain, module = small_module().cuda(), small_module().cuda()
    graphed, done, failures = GraphedPass(module), threading.Event(), []

    def allocate() -> None:
        stream = torch.cuda.Stream()
        try:
            for megabytes in range(12, 212, 2):  # each is larger than what the cache holds
                with torch.cuda.stream(stream):
                    float(torch.ones(megabytes << 18, device="cuda").sum())
                if done.wait(0.02):
                    return
        except RuntimeError as error:
            failures.append(error)

    thread = threading.Thread(target=allocate)
    thread.start()
    try:
        for size in (16, 16, 8):  # the last one is not what was recorded
            inputs = torch.randn(2, 3, size, size, device="cuda").to(memory_format=torch.channels_last)
            outcomes = []
            for network in (plain, graphed):
                ours = inputs.clone().requires_grad_()
                result = network(ours)
                gradients = torch.autograd.grad(result.square().sum(), [ours, *network.parameters()])
                outcomes.append([result, *gradients])
            for wanted, found in zip(*outcomes, strict=True):
                torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-3)
    finally:
        done.set()
        thread.join()
    assert failures == []
    for name, value in module.state_dict().items():
        torch.testing.assert_close(value, plain.state_dict()[name], rtol=1e-4, atol=1e-4)
