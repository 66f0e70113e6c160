"""The fork's debug mode: what it finds, in which words, and that it changes nothing where all is well."""

import re
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from detection3d.multitask import GradDrop, Method, Sum, TaskFork
from detection3d.multitask import fork as fork_module

TASKS = ("class", "box")
Losses = dict[str, Tensor]


class Net(nn.Module):
    """A linear backbone, the fork and two heads on [B, 6], in float64."""

    def __init__(self, method: Method | None = None, debug: bool = True, tasks: tuple[str, ...] = TASKS) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.backbone = nn.Linear(3, 6)
        self.fork = TaskFork(tasks, GradDrop() if method is None else method, debug=debug)
        self.heads = nn.ModuleDict({task: nn.Sequential(nn.ReLU(), nn.Linear(6, 2)) for task in tasks})
        self.double()

    def losses(self, features: dict[str, Tensor]) -> Losses:
        return {task: (head(features[task]) - k).square().mean() for k, (task, head) in enumerate(self.heads.items())}

    def forward(self, shared: Tensor) -> Tensor:
        features = self.fork(shared)
        return torch.stack(list(self.fork.weigh(self.losses(features), features).values())).sum()


def points(seed: int = 1) -> Tensor:
    return torch.randn(4, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def gradients(net: Net, *leaves: Tensor) -> list[Tensor]:
    found = [value.grad for value in (*net.parameters(), *leaves)]
    return [gradient.clone() for gradient in found if gradient is not None]


def plain(net: Net) -> None:
    net(net.backbone(points())).backward()


def two_forwards(net: Net) -> None:
    (net(net.backbone(points(1))) + net(net.backbone(points(2)))).backward()


def twice_on_one_tensor(net: Net) -> None:
    shared = net.backbone(points())
    (net(shared) + 2 * net(shared) + 3 * net(shared)).backward()


def accumulated(net: Net) -> None:
    for seed in (1, 2):
        net(net.backbone(points(seed))).backward()


def two_backwards(net: Net) -> None:
    loss = net(net.backbone(points()))
    loss.backward(retain_graph=True)
    loss.backward()


def checkpointed_from_the_fork(net: Net) -> None:
    checkpoint(net, net.backbone(points()), use_reentrant=False).backward()


def checkpointed_from_the_input(net: Net) -> None:
    checkpoint(lambda x: net(net.backbone(x)), points(), use_reentrant=False).backward()


def checkpointed_heads(net: Net) -> None:
    features = net.fork(net.backbone(points()))
    losses = {task: checkpoint(net.heads[task], features[task], use_reentrant=False).square().sum() for task in TASKS}
    sum(net.fork.weigh(losses, features).values()).backward()


SOUND = [
    plain,
    two_forwards,
    twice_on_one_tensor,
    accumulated,
    two_backwards,
    checkpointed_from_the_fork,
    checkpointed_from_the_input,
    checkpointed_heads,
]


@pytest.mark.parametrize("train", SOUND, ids=lambda train: train.__name__)
@pytest.mark.parametrize("method", [Sum(), GradDrop(), GradDrop(marginalize="none")], ids=["sum", "batch", "none"])
def test_a_sound_net_trains_with_the_same_bits(train: Callable[[Net], None], method: Method) -> None:
    watched, free = Net(method), Net(method, debug=False)
    train(watched)
    train(free)
    for found, wanted in zip(gradients(watched), gradients(free), strict=True):
        assert torch.equal(found, wanted)


def test_a_leaf_may_go_through_the_fork_in_every_step() -> None:
    found = []
    for debug in (True, False):
        net, leaf = Net(debug=debug), torch.linspace(-1, 1, 12, dtype=torch.float64).reshape(2, 6).requires_grad_()
        for _ in range(3):
            net(leaf).backward()
        (net(leaf) + net(leaf)).backward()
        found.append(gradients(net, leaf))
    assert all(torch.equal(*pair) for pair in zip(*found, strict=True))


def test_an_overflow_is_not_taken_for_a_detour() -> None:
    for bad in (float("inf"), float("nan")):
        net = Net()
        shared = net.backbone(points())
        features = net.fork(shared)
        features["box"].register_hook(lambda gradient, bad=bad: gradient * bad)
        sum(net.losses(features).values()).backward()
        assert not net.backbone.weight.grad.isfinite().any()


def test_nothing_to_check_where_the_fork_is_the_identity() -> None:
    frozen = Net()
    frozen.backbone.requires_grad_(False)
    plain(frozen)
    assert frozen.backbone.weight.grad is None
    alone = Net(tasks=("box",))
    plain(alone)
    assert alone.backbone.weight.grad is not None
    evaluated = Net().eval()
    plain(evaluated)  # also in evaluation mode gradients may be asked for
    assert evaluated.backbone.weight.grad is not None
    with torch.no_grad():
        net = Net()
        net(net.backbone(points()))


def losses_of(net: Net, features: dict[str, Tensor], **others: Tensor) -> Losses:
    """Losses of the heads on their features, some of them on other tensors."""
    return net.losses({**features, **others})


def test_a_head_that_reads_around_the_fork_is_named() -> None:
    net = Net()
    shared = net.backbone(points())
    for extra in (shared, shared[:, :6], shared * 1):
        features = net.fork(shared)
        losses = losses_of(net, features, box=features["box"] + extra)
        message = re.escape(
            'the loss of task "box" reads the shared features around the fork; its head must read fork(shared)["box"]'
        )
        with pytest.raises(RuntimeError, match=message):
            net.fork.weigh(losses, features)
    leaf = torch.ones(2, 6, dtype=torch.float64, requires_grad=True)
    features = net.fork(leaf)
    with pytest.raises(RuntimeError, match='"class" reads the shared features around the fork'):
        net.fork.weigh(losses_of(net, features, **{"class": features["class"] + leaf}), features)
    # What lies before the shared features, and other outputs of the function that made them, are no detour.
    image = points().requires_grad_()
    shared, other = net.backbone(image).unsqueeze(0).repeat(2, 1, 1).unbind()
    features = net.fork(shared)
    beside = features["box"] + other + image.sum()
    sum(net.fork.weigh(losses_of(net, features, box=beside), features).values()).backward()


@pytest.mark.parametrize("leaf", [True, False], ids=["leaf", "inner"])
@pytest.mark.parametrize("forwards", [1, 2])
@pytest.mark.parametrize("checkpointed", [True, False], ids=["checkpoint", "stored"])
def test_gradients_that_arrive_around_the_fork_are_found(leaf: bool, forwards: int, checkpointed: bool) -> None:
    # Without weigh, only what arrives at the shared features tells.
    net = Net()

    def total(shared: Tensor) -> Tensor:
        features = net.fork(shared)
        return sum(losses_of(net, features, box=features["box"] + 0.1 * shared).values())

    image = points().requires_grad_()
    inputs = [torch.full((2, 6), 0.5 + k).double().requires_grad_() for k in range(forwards)]
    shared = inputs if leaf else [net.backbone(image) for _ in range(forwards)]
    losses = [checkpoint(total, value, use_reentrant=False) if checkpointed else total(value) for value in shared]
    message = re.escape(
        "reached the shared features around the fork: a head or a loss reads them directly. Hand it the alias of its"
        " task, fork(shared)[...], one of class, box"
    )
    with pytest.raises(RuntimeError, match=message):
        sum(losses).backward()


def test_an_extra_loss_on_the_shared_features_is_found_and_measured() -> None:
    net = Net()
    shared = net.backbone(points())
    loss = net(shared) + 3 * shared[0, 0]
    with pytest.raises(RuntimeError, match=r"a gradient of norm 3 reached the shared features around the fork"):
        loss.backward()


def test_a_task_that_never_reaches_its_alias() -> None:
    net = Net()
    shared = net.backbone(points())
    features = net.fork(shared)
    missed = re.escape('the loss of task "box" does not depend on its features at the fork; its head must read')
    for instead in (shared, shared.detach(), features["class"]):
        with pytest.raises(RuntimeError, match=missed):
            net.fork.weigh(losses_of(net, features, box=instead), features)
    with pytest.raises(RuntimeError, match=missed):
        net.fork.weigh({**net.losses(features), "box": torch.tensor(0.0)}, features)
    # Left out of the sum, or never weighed.
    with pytest.raises(RuntimeError, match=r"no gradient came back from the fork's features of: class\. Either"):
        net.losses(features)["box"].backward()


def test_a_call_of_the_fork_for_each_head_is_found() -> None:
    # Each call would combine one task's gradient with nothing.
    net = Net()
    shared = net.backbone(points())
    losses = net.losses({task: net.fork(shared)[task] for task in TASKS})
    with pytest.raises(RuntimeError, match="no gradient came back from the fork's features of: "):
        sum(losses.values()).backward()


def test_a_loss_that_reaches_another_tasks_features() -> None:
    net = Net()
    features = net.fork(net.backbone(points()))
    outputs = {task: net.heads[task](features[task]) for task in TASKS}
    losses = {"class": outputs["class"].sum(), "box": (outputs["box"] * outputs["class"]).sum()}
    with pytest.raises(RuntimeError, match=r'loss of task "box" reaches the features of: class\. Its gradient'):
        net.fork.weigh(losses, features)
    detached = {**losses, "box": (outputs["box"] * outputs["class"].detach()).sum()}
    zero = {**detached, "box": detached["box"] + 0 * outputs["class"].sum()}
    for sound in (detached, zero):
        assert net.fork.weigh(sound, features).keys() == set(TASKS)


def test_features_that_do_not_fit() -> None:
    net = Net()
    features = net.fork(net.backbone(points()))
    losses = net.losses(features)
    with pytest.raises(
        ValueError, match=re.escape("needs the features that it returned: fork.weigh(losses, features)")
    ):
        net.fork.weigh(losses)
    with pytest.raises(ValueError, match="the features of box are missing; give weigh all that the fork returned"):
        net.fork.weigh(losses, {"class": features["class"]})
    with pytest.raises(ValueError, match="missing: box; unknown: wheel"):
        net.fork.weigh({"class": losses["class"], "wheel": losses["box"]}, features)


@pytest.mark.parametrize("debug", [True, False])
@pytest.mark.parametrize("task", TASKS)
def test_a_head_that_writes_into_its_features_is_named(task: str, debug: bool) -> None:
    net = Net(debug=debug)
    net.heads[task][0] = nn.ReLU(inplace=True)
    features = net.fork(net.backbone(points()))
    message = (
        f'the head "{task}" modified its features in place, and with them those of the others; make its first'
        r" operation out of place, such as ReLU\(inplace=False\)"
    )
    with pytest.raises(RuntimeError, match=message):
        sum(net.losses(features).values()).backward()


def test_writing_into_the_shared_features_is_noticed() -> None:
    net = Net(Sum(), debug=False)
    shared = net.backbone(points())
    losses = net.losses(net.fork(shared))
    with torch.no_grad():
        shared.add_(1)
    with pytest.raises(RuntimeError, match="shared features were modified in place after the fork"):
        sum(losses.values()).backward()


def test_nothing_is_checked_without_debug(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("called without debug")

    monkeypatch.setattr(fork_module, "FlowCheck", refuse)
    monkeypatch.setattr(fork_module, "check_flow", refuse)
    net = Net(debug=False)
    shared = net.backbone(points())
    features = net.fork(shared)
    assert not shared._backward_hooks
    losses = losses_of(net, features, box=shared)
    sum(net.fork.weigh(losses).values()).backward()
    assert net.backbone.weight.grad is not None
    with pytest.raises(AssertionError, match="called without debug"):
        Net()(Net().backbone(points()))


def test_settings_that_no_fork_takes() -> None:
    with pytest.raises(ValueError, match="a fork needs at least one task, found none"):
        TaskFork([], Sum())
    with pytest.raises(ValueError, match="tasks are box, box; each needs a name of its own"):
        TaskFork(["box", "box"], Sum())
    with pytest.raises(ValueError, match="leak names wheel; the tasks are class, box"):
        TaskFork(TASKS, GradDrop(leak={"wheel": 1.0}))
    with pytest.raises(ValueError, match=r"leak is 1\.5; it must lie in \[0, 1\]"):
        TaskFork(TASKS, GradDrop(leak=1.5))
    with pytest.raises(ValueError, match=r'leak of task "box" is -0\.1; it must lie in \[0, 1\]'):
        TaskFork(TASKS, GradDrop(leak={"box": -0.1}))
    with pytest.raises(ValueError, match=r"strength is nan; it must lie in \[0, 1\]"):
        TaskFork(TASKS, GradDrop(strength=float("nan")))
    with pytest.raises(ValueError, match=r"keep falls between the purities 0\.5 and 0\.501"):
        TaskFork(TASKS, GradDrop(keep=lambda purity: 0.5 - (purity - 0.5).abs()))
    with pytest.raises(ValueError, match=r'marginalize is "space"; choose one of "batch", "batch\+space"'):
        TaskFork(TASKS, GradDrop(marginalize="space"))
    with pytest.raises(ValueError, match='sync is "some"; choose "full" or "none"'):
        TaskFork(TASKS, Sum(), sync="some")
    with pytest.raises(ValueError, match="telemetry_every is -1; give a number of steps"):
        TaskFork(TASKS, Sum(), telemetry_every=-1)
    with pytest.raises(ValueError, match="step is -1; it counts from 0"):
        TaskFork(TASKS, Sum()).set_step(-1)
    fork = TaskFork(TASKS, GradDrop(channel_dim=3, marginalize="batch+space"))
    with pytest.raises(ValueError, match="an activation of 2 dims has no batch dim, or no channel dim 3"):
        sum(alias.sum() for alias in fork(torch.ones(2, 3, requires_grad=True)).values()).backward()
