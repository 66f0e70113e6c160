"""The fork in a net: one backward pass equals K passes and a combination by hand, and the fork hides well."""

import copy

import pytest
import torch

from detection3d.multitask import GradDrop, Method, Sum, TaskFork, graddrop, uniform
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


@pytest.mark.parametrize("method", [Sum(), GradDrop(), GradDrop(leak={"task1": 0.5})], ids=["sum", "batch", "leak"])
@pytest.mark.parametrize(("tasks", "batch"), [(2, 1), (2, 3), (40, 1), (40, 2)])
def test_any_number_of_tasks_equals_as_many_passes(tasks: int, batch: int, method: Method) -> None:
    # Oracle 12.
    net, image = Net(method, tuple(f"task{k}" for k in range(tasks))), images(batch=batch)
    assert_bit_equal(train_once(net, image), train_in_k_passes(net, image))


def test_losses_and_head_gradients_are_those_without_a_fork() -> None:
    # Oracles 1 and 12.
    net, image = Net(GradDrop()), images()
    with_fork = net(image)
    found = train_once(net, image)
    net.zero_grad()
    losses = net.losses(dict.fromkeys(TASKS, net.backbone(image)))
    assert all(torch.equal(with_fork[task], losses[task]) for task in TASKS)
    sum(losses.values()).backward()
    plain = gradients(net)
    assert_bit_equal(
        {name: value for name, value in found.items() if name.startswith("heads")},
        {name: value for name, value in plain.items() if name.startswith("heads")},
    )
    assert not torch.allclose(found["backbone.0.weight"], plain["backbone.0.weight"])


@pytest.mark.parametrize("method", [Sum(), GradDrop(leak=1.0), GradDrop(strength=0.0)], ids=["sum", "leak", "strength"])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_the_backbone_trains_as_without_a_fork_where_nothing_is_dropped(method: Method, layout) -> None:
    # Oracle 7. Two tasks, whose sum autograd takes in the same order; in each memory format, which decides how the
    # convolutions before the fork add up.
    net = Net(method, TASKS[:2]).to(memory_format=layout)
    image = images().to(memory_format=layout)
    shared = net.backbone(image)
    arrived = []
    shared.register_hook(arrived.append)
    sum(net.losses(net.fork(shared)).values()).backward()
    assert arrived[0].is_contiguous(memory_format=layout)
    found = gradients(net)
    net.zero_grad()
    sum(net.losses(dict.fromkeys(net.fork.tasks, net.backbone(image))).values()).backward()
    assert_bit_equal(found, gradients(net))


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


def test_the_backbone_gets_a_gradient_of_its_own_type() -> None:
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
