"""The fork in a net: one backward pass equals K passes and a combination by hand, whatever else is going on."""

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from detection3d.multitask import GradDrop, Method, Sum, TaskFork, graddrop, uniform
from detection3d.multitask.positions import DensePositions

TASKS = ("classification", "box", "orientation")
METHODS = [
    Sum(),
    GradDrop(),
    GradDrop(leak={"box": 0.25}, preserve_norm=False),
    GradDrop(marginalize="batch+space", leak=0.1),
    GradDrop(marginalize="none", keep=lambda purity: purity**2 * (3 - 2 * purity)),
]
METHOD_NAMES = ["sum", "batch", "leak", "batch+space", "none"]


class Net(nn.Module):
    """A small convolutional backbone, the fork and three heads, in float64."""

    def __init__(self, method: Method, tasks: tuple[str, ...] = TASKS, in_place: str = "", **options: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.backbone = nn.Sequential(nn.Conv2d(2, 6, 3, padding=1), nn.BatchNorm2d(6))
        self.fork = TaskFork(tasks, method, seed=3, **options)
        self.heads = nn.ModuleDict(
            {
                task: nn.Sequential(
                    nn.ReLU(inplace=task == in_place), nn.Conv2d(6, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 1, 1)
                )
                for task in tasks
            }
        )
        self.double()

    def losses(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        return {task: (head(features[task]) - k).square().mean() for k, (task, head) in enumerate(self.heads.items())}

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        return self.fork.weigh(self.losses(self.fork(self.backbone(image))))


def images(seed: int = 1, batch: int = 2) -> Tensor:
    return torch.randn(batch, 2, 5, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def gradients(net: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.grad.clone() for name, parameter in net.named_parameters() if parameter.grad is not None}


def assert_bit_equal(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert found.keys() == wanted.keys()
    for name in wanted:
        assert torch.equal(found[name], wanted[name]), name


def train_once(net: Net, image: Tensor) -> dict[str, Tensor]:
    net.zero_grad()
    sum(net(image).values()).backward()
    return gradients(net)


def train_in_k_passes(net: Net, image: Tensor, step: int) -> dict[str, Tensor]:
    """The reference: a backward pass for each task, the combination by hand, one more pass for the backbone."""
    net.zero_grad()
    shared = net.backbone(image)
    losses = list(net.losses(dict.fromkeys(net.fork.tasks, shared)).values())
    at_fork = [torch.autograd.grad(loss, shared, retain_graph=True)[0] for loss in losses]
    for loss, head in zip(losses, net.heads.values(), strict=True):
        parameters = list(head.parameters())
        for parameter, gradient in zip(
            parameters, torch.autograd.grad(loss, parameters, retain_graph=True), strict=True
        ):
            parameter.grad = gradient
    shared.backward(combine(net.fork, at_fork, shared.detach(), step))
    return gradients(net)


def combine(fork: TaskFork, at_fork: list[Tensor], shared: Tensor, step: int) -> Tensor:
    method = fork.method
    if isinstance(method, Sum):
        return at_fork[0] + at_fork[1] + at_fork[2]
    assert isinstance(method, GradDrop)
    shape = DensePositions(method.marginalize).shape(shared.shape)
    sample_index = torch.arange(len(shared)) if method.marginalize == "none" else None
    return graddrop(
        at_fork,
        shared,
        uniform(shape, 3, step, "fork", "cpu", sample_index),
        leak=[0, method.leak["box"], 0] if isinstance(method.leak, dict) else method.leak,
        keep=method.keep,
        marginalize=method.marginalize,
        preserve_norm=method.preserve_norm,
    )


@pytest.mark.parametrize("method", METHODS, ids=METHOD_NAMES)
def test_equals_k_passes_to_the_bit(method: Method) -> None:
    # Oracle 12.
    net, image = Net(method), images()
    seen = []
    for step in (0, 1, 2**33):
        net.fork.set_step(step)
        found = train_once(net, image)
        assert_bit_equal(found, train_in_k_passes(net, image, step))
        seen.append(found["backbone.0.weight"])
    assert torch.equal(seen[0], seen[1]) == isinstance(method, Sum)


def test_heads_train_as_without_a_fork() -> None:
    net, image = Net(GradDrop()), images()
    found = train_once(net, image)
    net.zero_grad()
    sum(net.losses(dict.fromkeys(TASKS, net.backbone(image))).values()).backward()
    plain = gradients(net)
    assert_bit_equal(
        {name: value for name, value in found.items() if name.startswith("heads")},
        {name: value for name, value in plain.items() if name.startswith("heads")},
    )
    assert not torch.allclose(found["backbone.0.weight"], plain["backbone.0.weight"])


# torch.compile itself creates an instance of autograd.Function while it traces one.
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.parametrize(
    "method",
    [
        pytest.param(method, id=name, marks=() if name == "batch" else pytest.mark.slow)
        for name, method in zip(METHOD_NAMES, METHODS, strict=True)
    ],
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


def test_checkpointed_heads_give_the_same_bits() -> None:
    net, image = Net(GradDrop()), images()
    wanted = train_once(net, image)
    net.zero_grad()
    features = net.fork(net.backbone(image))
    outputs = {task: checkpoint(net.heads[task], features[task], use_reentrant=False) for task in TASKS}
    sum((outputs[task] - k).square().mean() for k, task in enumerate(TASKS)).backward()
    assert_bit_equal(gradients(net), wanted)
    # A fork inside the recomputed part draws the same too.
    net.zero_grad()
    losses = checkpoint(lambda shared: net.losses(net.fork(shared)), net.backbone(image), use_reentrant=False)
    sum(losses.values()).backward()
    assert_bit_equal(gradients(net), wanted)


def test_accumulated_micro_batches_draw_the_same_and_add_up() -> None:
    net, first, second = Net(GradDrop(), telemetry_every=1), images(1), images(2)
    apart = [train_once(net, image) for image in (first, second)]
    net.fork.read_telemetry()
    net.zero_grad()
    for image in (first, second):
        sum(net(image).values()).backward()
    for name, value in gradients(net).items():
        torch.testing.assert_close(value, apart[0][name] + apart[1][name], rtol=1e-12, atol=1e-14)
    telemetry = net.fork.read_telemetry()
    assert telemetry is not None
    assert telemetry.passes == 2


def test_a_step_set_between_forward_and_backward_belongs_to_the_next() -> None:
    net, image = Net(GradDrop()), images()
    wanted = train_once(net, image)
    net.zero_grad()
    losses = net(image)
    net.fork.set_step(1)
    sum(losses.values()).backward()
    assert_bit_equal(gradients(net), wanted)


def test_resuming_from_the_state_draws_the_same() -> None:
    # Oracle 19.
    net, image = Net(GradDrop()), images()
    net.fork.set_step(41)
    state = copy.deepcopy(net.state_dict())
    wanted = train_once(net, image)
    resumed = Net(GradDrop())
    resumed.load_state_dict(state)
    assert resumed.fork.step.item() == 41
    generator = torch.get_rng_state()
    assert_bit_equal(train_once(resumed, image), wanted)
    assert torch.equal(torch.get_rng_state(), generator)


def test_aliases_are_apart() -> None:
    net = Net(GradDrop())
    shared = net.backbone(images())
    features = net.fork(shared)
    for task, loss in net.losses(features).items():
        for other in TASKS:
            gradient = torch.autograd.grad(loss, features[other], retain_graph=True, allow_unused=True)[0]
            assert (gradient is None) == (other != task)
    assert all(torch.equal(alias, shared) and alias.data_ptr() == shared.data_ptr() for alias in features.values())


def test_identity_outside_training_and_for_one_task() -> None:
    # Oracles 1 and 13.
    fork, shared = TaskFork(TASKS, GradDrop()), torch.randn(2, 3, 4, requires_grad=True)
    with torch.no_grad():
        assert all(alias is shared for alias in fork(shared).values())
    assert all(alias is not shared for alias in fork(shared).values())
    fork.eval()
    assert all(alias is shared for alias in fork(shared).values())
    frozen = torch.randn(2, 3)
    assert all(alias is frozen for alias in TaskFork(TASKS, GradDrop(), telemetry_every=1)(frozen).values())
    assert TaskFork(["box"], GradDrop())(shared)["box"] is shared


def test_a_task_without_gradient_keeps_its_place() -> None:
    # Oracle 21: its leak stays with it, and the others' gradients and leaks stay together.
    shared = torch.randn(3, 4, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    fork = TaskFork(TASKS, GradDrop(leak={"box": 0.9, "orientation": 0.2}, preserve_norm=False))
    weights = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    leaf = shared.clone().requires_grad_()
    features = fork(leaf)
    ((features["classification"] * weights[0]).sum() + (features["orientation"] * weights[1]).sum()).backward()
    zero = torch.zeros_like(shared)
    numbers = uniform((1, 4), 0, 0, "fork", "cpu")
    wanted = graddrop([weights[0], zero, weights[1]], shared, numbers, leak=[0, 0.9, 0.2], preserve_norm=False)
    assert leaf.grad is not None
    assert torch.equal(leaf.grad, wanted)


@pytest.mark.parametrize("task", TASKS)
def test_a_head_that_writes_into_its_features_is_named(task: str) -> None:
    net = Net(GradDrop(), in_place=task)
    with pytest.raises(RuntimeError, match=f'the head "{task}" modified its features in place'):
        sum(net(images()).values()).backward()


def test_writing_into_the_shared_features_is_noticed() -> None:
    net = Net(Sum())
    shared = net.backbone(images())
    losses = net.losses(net.fork(shared))
    with torch.no_grad():
        shared.add_(1)
    with pytest.raises(RuntimeError, match="shared features were modified in place after the fork"):
        sum(losses.values()).backward()


def test_autocast_and_types() -> None:
    for dtype in (torch.bfloat16, torch.float32):
        leaf = torch.randn(2, 6, 5, generator=torch.Generator().manual_seed(4)).to(dtype).requires_grad_()
        weights = torch.randn(3, 2, 6, 5, generator=torch.Generator().manual_seed(5)).to(dtype)
        features = TaskFork(TASKS, GradDrop())(leaf)
        sum((features[task] * weight).sum() for task, weight in zip(TASKS, weights, strict=True)).backward()
        wanted = graddrop(weights, leaf.detach(), uniform((1, 6, 5), 0, 0, "fork", "cpu"))
        assert leaf.grad is not None
        assert leaf.grad.dtype == dtype
        assert torch.equal(leaf.grad, wanted.to(dtype))  # combined in float32, rounded once
        leaf.grad = None
        features = TaskFork(TASKS, Sum())(leaf)
        sum((features[task] * weight).sum() for task, weight in zip(TASKS, weights, strict=True)).backward()
        assert torch.equal(leaf.grad, (weights[0].float() + weights[1].float() + weights[2].float()).to(dtype))
    net = Net(GradDrop()).float()
    with torch.autocast("cpu", torch.bfloat16):
        shared = net.backbone(images().float())
        losses = net.losses(net.fork(shared))
    sum(losses.values()).backward()
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


def test_the_probe_is_no_parameter_and_survives_copies() -> None:
    net = Net(GradDrop(), telemetry_every=1)
    assert {name.split(".")[0] for name, _ in net.named_parameters()} == {"backbone", "heads"}
    assert [name for name in net.state_dict() if name.startswith("fork")] == ["fork.step"]
    twin = copy.deepcopy(net).float()
    sum(twin.losses(twin.fork(twin.backbone(images().float()))).values()).backward()
    assert twin.fork.read_telemetry() is not None
    assert net.fork.read_telemetry() is None


def test_the_probe_follows_the_module_to_its_device() -> None:
    fork = TaskFork(TASKS, GradDrop(), telemetry_every=1).to("meta")
    leaf = torch.zeros(2, 3, device="meta", requires_grad=True)
    sum(alias.sum() for alias in fork(leaf).values()).backward()
    assert leaf.grad is not None


def test_wrong_settings() -> None:
    with pytest.raises(ValueError, match="at least one task"):
        TaskFork([], Sum())
    with pytest.raises(ValueError, match="tasks are box, box"):
        TaskFork(["box", "box"], Sum())
    with pytest.raises(ValueError, match="leak names wheel"):
        TaskFork(TASKS, GradDrop(leak={"wheel": 1.0}))
    fork = TaskFork(TASKS, Sum())
    with pytest.raises(ValueError, match="missing: orientation; unknown: velocity"):
        fork.weigh(dict.fromkeys(("box", "classification", "velocity"), torch.tensor(1.0)))
    with pytest.raises(ValueError, match="step is -1"):
        fork.set_step(-1)
