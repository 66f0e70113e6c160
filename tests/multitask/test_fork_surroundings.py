"""The fork inside what PyTorch puts around a net: checkpoints, compilers, data parallelism, autocast, scalers."""

import copy
import shutil
from collections.abc import Iterator
from contextlib import nullcontext

import pytest
import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from detection3d.multitask import GradDrop, Method, Ramp, TaskFork, graddrop, uniform
from tests.multitask.nets import (
    METHOD_NAMES,
    METHODS,
    TASKS,
    Net,
    assert_bit_equal,
    gradients,
    images,
    train_in_k_passes,
    train_once,
)


@pytest.mark.parametrize("method", METHODS, ids=METHOD_NAMES)
def test_checkpointing_equals_k_passes_to_the_bit(method: Method) -> None:
    # Oracles 12 and 19: a fork inside the recomputed part draws the same.
    net, image = Net(method), images()
    net.fork.set_step(5)
    wanted = train_in_k_passes(net, image, 5)

    def heads_alone() -> dict[str, Tensor]:
        features = net.fork(net.backbone(image))
        outputs = {task: checkpoint(net.heads[task], features[task], use_reentrant=False) for task in TASKS}
        return {task: (outputs[task] - k).square().mean() for k, task in enumerate(TASKS)}

    def from_the_fork() -> dict[str, Tensor]:
        return checkpoint(lambda shared: net.losses(net.fork(shared)), net.backbone(image), use_reentrant=False)

    def everything() -> dict[str, Tensor]:
        return checkpoint(net, image, use_reentrant=False)

    def in_an_inner_backward() -> dict[str, Tensor]:
        def losses(shared: Tensor) -> tuple[Tensor, ...]:
            return tuple(net.losses(net.fork(shared)).values())

        return dict(zip(TASKS, checkpoint(losses, net.backbone(image), use_reentrant=True), strict=True))

    for forward in (heads_alone, from_the_fork, everything, in_an_inner_backward):
        net.zero_grad()
        sum(forward().values()).backward()
        assert_bit_equal(gradients(net), wanted)


# torch.compile itself creates an instance of autograd.Function while it traces one.
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.parametrize(
    "method",
    [
        pytest.param(method, id=name, marks=() if name == "batch" else pytest.mark.slow)
        for name, method in zip(METHOD_NAMES, METHODS, strict=True)
    ]
    + [pytest.param(GradDrop(leak={"box": Ramp(0.0, 1.0, 0, 3)}), id="ramp", marks=pytest.mark.slow)],
)
def test_compiled_equals_eager_to_the_bit(method: Method) -> None:
    # Oracle 19: and the step is an input of the graph, so nothing is compiled again when it changes.
    net, image = Net(method, telemetry_every=3), images()
    compiled = torch.compile(net, backend="aot_eager", fullgraph=True)
    with torch._dynamo.config.patch(recompile_limit=2, fail_on_recompile_limit_hit=True):
        for step in range(4):
            net.fork.set_step(step)
            wanted, telemetry = train_once(net, image), net.fork.read_telemetry()
            net.zero_grad()
            sum(compiled(image).values()).backward()
            assert_bit_equal(gradients(net), wanted)
            measured = net.fork.read_telemetry()
            assert (measured is None) == (telemetry is None) == (step % 3 != 0)
            if measured is not None and telemetry is not None:
                assert measured.scalars() == telemetry.scalars()
    torch.compiler.reset()


# torch.compile looks at the gradient of the graph's input, which is no leaf.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
def test_a_graph_whose_input_the_shared_features_are_hands_their_gradient_on() -> None:
    # As after a graph break, or where the fork alone is compiled.
    net, image = Net(GradDrop()), images()
    wanted = train_once(net, image)
    net.zero_grad()
    features = torch.compile(net.fork, backend="aot_eager", fullgraph=True)(net.backbone(image))
    sum(net.losses(features).values()).backward()
    assert_bit_equal(gradients(net), wanted)
    torch.compiler.reset()


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None and shutil.which("c++") is None, reason="needs a C++ compiler")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own, while it traces and builds
@pytest.mark.parametrize("method", METHODS[1:2] + METHODS[3:5], ids=METHOD_NAMES[1:2] + METHOD_NAMES[3:5])
def test_inductor_draws_the_same_masks(method: Method) -> None:
    # Its kernels may add in another order, so values agree to 1e-12; a mask that differs would differ by far more.
    net, image = Net(method), images()
    compiled = torch.compile(net, fullgraph=True)
    for step in (0, 1):
        net.fork.set_step(step)
        wanted = train_in_k_passes(net, image, step)
        net.zero_grad()
        sum(compiled(image).values()).backward()
        for name, value in gradients(net).items():
            scale = max(wanted[name].abs().max().item(), 1e-3)
            torch.testing.assert_close(value, wanted[name], rtol=1e-12, atol=1e-12 * scale)
    torch.compiler.reset()
    # At the fork itself, where the gradients are constants: an element with another mask would stand out.
    weights = torch.randn(3, 3, 2000, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    leaf = torch.linspace(-1, 1, 6000, dtype=torch.float64).reshape(3, 2000).requires_grad_()
    results = []
    for wrap in (lambda fork: fork, torch.compile):
        features = wrap(TaskFork(TASKS, method, seed=3))(leaf).values()
        leaf.grad = None
        sum((alias * weight).sum() for alias, weight in zip(features, weights, strict=True)).backward()
        results.append(leaf.grad)
    torch.testing.assert_close(results[0], results[1], rtol=1e-12, atol=1e-12)
    assert (results[0] - weights.sum(0)).abs().max() > 0.1
    torch.compiler.reset()


@pytest.fixture
def process_group(tmp_path) -> Iterator[None]:
    """One process alone, as under torchrun --nproc-per-node=1."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("process_group")
@pytest.mark.parametrize("method", METHODS, ids=METHOD_NAMES)
@pytest.mark.parametrize("bucket_as_view", [False, True])
def test_distributed_data_parallel_of_one_rank_equals_k_passes_to_the_bit(method: Method, bucket_as_view: bool) -> None:
    # Oracle 12.
    net, image = Net(method), images()
    wrapped = DistributedDataParallel(net, bucket_cap_mb=0.0005, gradient_as_bucket_view=bucket_as_view)
    for step in (0, 1, 2):  # buckets are arranged anew after the first
        net.fork.set_step(step)
        wanted = train_in_k_passes(net, image, step)
        wrapped.zero_grad()
        sum(wrapped(image).values()).backward()
        assert_bit_equal(gradients(net), wanted)


@pytest.mark.usefixtures("process_group")
def test_accumulation_under_distributed_data_parallel() -> None:
    net = Net(GradDrop())
    wanted = {}
    for seed in (1, 2):
        for name, value in train_in_k_passes(net, images(seed)).items():
            wanted[name] = wanted.get(name, 0) + value
    net.zero_grad()
    wrapped = DistributedDataParallel(net)
    for seed in (1, 2):
        with wrapped.no_sync() if seed == 1 else nullcontext():
            sum(wrapped(images(seed)).values()).backward()
    assert_bit_equal(gradients(net), wanted)


DEVICES = [
    pytest.param("cpu", torch.bfloat16, id="bfloat16"),
    *(
        pytest.param(
            "cuda",
            dtype,
            id=f"cuda-{dtype}",
            marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")],
        )
        for dtype in (torch.float16, torch.bfloat16)
    ),
]


@pytest.mark.parametrize(("device", "dtype"), DEVICES)
@pytest.mark.parametrize("preserve_norm", [True, False])
def test_under_autocast_the_result_is_graddrop_of_what_came_back(
    device: str, dtype: torch.dtype, preserve_norm: bool
) -> None:
    net = Net(GradDrop(leak={"box": 0.25}, preserve_norm=preserve_norm)).float().to(device)
    net.backbone = nn.Sequential(net.backbone[0])  # a convolution's result has the type of autocast
    captured: dict[str, Tensor] = {}

    def capture(name: str, tensor: Tensor) -> None:
        tensor.register_hook(lambda gradient: captured.update({name: gradient.clone()}))

    with torch.autocast(device, dtype):
        shared = net.backbone(images().float().to(device))
        features = net.fork(shared)
        losses = net.losses(features)
    capture("shared", shared)
    for task in TASKS:
        capture(task, features[task])
    (sum(losses.values()) * 128).backward()
    assert shared.dtype == dtype
    result = graddrop(
        [captured[task] for task in TASKS],
        shared.detach(),
        uniform((1, *shared.shape[1:]), 3, 0, "fork", device),
        leak=[0, 0.25, 0],
        preserve_norm=preserve_norm,
    )
    assert result.dtype == torch.float32
    assert torch.equal(captured["shared"], result.to(dtype))
    plain = sum(captured[task].float() for task in TASKS).to(dtype)
    assert not torch.equal(captured["shared"], plain)
    assert all(value.dtype == torch.float32 and value.isfinite().all() for value in gradients(net).values())


@pytest.mark.parametrize("method", METHODS, ids=METHOD_NAMES)
@pytest.mark.parametrize("bad", [float("inf"), float("nan")])
def test_a_loss_scaler_skips_the_step_after_an_overflow(method: Method, bad: float) -> None:
    # Oracle 18.
    net = Net(method)
    optimizer = torch.optim.SGD(net.parameters(), lr=1.0)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    before = copy.deepcopy(net.state_dict())
    shared = net.backbone(images())
    features = net.fork(shared)
    spike = torch.zeros_like(shared)
    spike[1, 2, 3, 1] = bad
    loss = sum(net.losses(features).values()) + (features["box"] * spike).nan_to_num().sum()
    features["box"].register_hook(lambda gradient: gradient + spike)
    scaler.scale(loss).backward()
    assert not net.backbone[0].weight.grad.isfinite().all()
    scaler.step(optimizer)
    scaler.update()
    assert scaler.get_scale() == 4.0
    assert all(
        torch.equal(net.state_dict()[name], value)
        for name, value in before.items()
        if "running" not in name and "batches" not in name
    )
