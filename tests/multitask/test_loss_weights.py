"""Methods that change the losses: GradNorm's learnt weights, uncertainty, the gradient penalty."""

import copy
import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from detection3d.multitask import GradDrop, GradientPenalty, GradNorm, Method, Sum, TaskFork, Uncertainty

TASKS = ("a", "b", "c")


class Net(nn.Module):
    """A backbone and three heads whose losses differ in scale, in float64."""

    def __init__(self, method: Method) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.backbone = nn.Linear(4, 6)
        self.fork = TaskFork(TASKS, method)
        self.heads = nn.ModuleDict({task: nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 1)) for task in TASKS})
        self.double()

    def losses(self, features: dict[str, Tensor], scale: float = 1.0) -> dict[str, Tensor]:
        return {
            task: scale * 10.0**number * (head(features[task]) - 1).square().mean()
            for number, (task, head) in enumerate(self.heads.items())
        }


def inputs(seed: int = 0, samples: int = 8) -> Tensor:
    return torch.randn(samples, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def step(net: Net, batches: list[Tensor], scale: float = 1.0, loss_scale: float = 1.0) -> dict[str, float]:
    net.zero_grad()
    seen = dict.fromkeys(TASKS, 0.0)
    for batch in batches:
        features = net.fork(net.backbone(batch))
        losses = net.losses(features, scale)
        seen = {task: seen[task] + float(losses[task].detach()) for task in TASKS}
        (torch.stack(list(net.fork.weigh(losses, features).values())).sum() * loss_scale).backward()
    net.fork.update(loss_scale)
    return seen


def gradient_norms(net: Net, batches: list[Tensor], scale: float = 1.0) -> np.ndarray:
    """Norm of each task's unweighed gradient at the shared features of all batches."""
    squares = np.zeros(len(TASKS))
    for batch in batches:
        shared = net.backbone(batch)
        for number, loss in enumerate(net.losses(dict.fromkeys(TASKS, shared), scale).values()):
            squares[number] += float(torch.autograd.grad(loss, shared, retain_graph=True)[0].square().sum())
    return np.sqrt(squares)


def gradnorm_step(
    weights: np.ndarray, norms: np.ndarray, losses: np.ndarray, first: np.ndarray, alpha: float, rate: float
) -> np.ndarray:
    """The paper's Algorithm 1 in the logarithm of the weights, the slope by central differences over the mean norm."""
    ratio = losses / first
    mean = (weights * norms).mean()
    target = mean * (ratio / ratio.mean()) ** alpha

    def gap(candidate: np.ndarray) -> float:
        return float(np.abs(candidate * norms - target).sum())

    tiny = 1e-6 * np.eye(len(weights))
    slope = np.array([(gap(weights * np.exp(shift)) - gap(weights * np.exp(-shift))) / 2e-6 for shift in tiny])
    moved = weights * np.exp(-rate * slope / mean)
    return moved * len(moved) / moved.sum()


@pytest.mark.parametrize("then", [Sum(), GradDrop()], ids=["sum", "graddrop"])
@pytest.mark.parametrize("accumulate", [1, 3])
def test_gradnorm_learns_the_papers_weights(then: Method, accumulate: int) -> None:
    net = Net(GradNorm(alpha=0.7, learning_rate=0.05, then=then))
    optimizer = torch.optim.SGD([*net.backbone.parameters(), *net.heads.parameters()], lr=1e-3)
    weights, first = np.ones(3), np.zeros(0)
    for number in range(4):
        batches = [inputs(10 * number + part) for part in range(accumulate)]
        norms = gradient_norms(net, batches)
        losses = np.array(list(step(net, batches).values()))
        first = losses if number == 0 else first
        weights = gradnorm_step(weights, norms, losses, first, 0.7, 0.05)
        np.testing.assert_allclose(net.fork.state.loss_weight, weights, rtol=1e-6)
        optimizer.step()
    assert abs(weights - 1).max() > 0.05


def test_gradnorm_balances_losses_of_different_scales() -> None:
    net = Net(GradNorm(alpha=0.0, learning_rate=0.02))
    for number in range(400):
        step(net, [inputs(number % 5)])
    weighed = net.fork.state.loss_weight.numpy() * gradient_norms(net, [inputs(0)])
    before = gradient_norms(net, [inputs(0)])
    assert before.max() / before.min() > 20
    assert weighed.max() / weighed.min() < 2.5
    assert float(net.fork.state.loss_weight.sum()) == pytest.approx(3)


def test_gradnorm_weighs_the_losses() -> None:
    net = Net(GradNorm())
    net.fork.state.loss_weight.copy_(torch.tensor([0.5, 1.0, 1.5]))
    features = net.fork(net.backbone(inputs()))
    losses = net.losses(features)
    weighed = net.fork.weigh(losses, features)
    assert [float((weighed[task] / losses[task]).detach()) for task in TASKS] == pytest.approx([0.5, 1.0, 1.5])


@pytest.mark.parametrize("factor", [2.0**-40, 2.0**40])
def test_gradnorm_takes_no_notice_of_the_scale_of_losses_or_of_a_loss_scaler(factor: float) -> None:
    plain, scaled, both = Net(GradNorm()), Net(GradNorm()), Net(GradNorm())
    for number in range(3):
        step(plain, [inputs(number)])
        step(scaled, [inputs(number)], scale=factor)
        step(both, [inputs(number)], loss_scale=factor)
    torch.testing.assert_close(scaled.fork.state.loss_weight, plain.fork.state.loss_weight, rtol=1e-12, atol=0)
    torch.testing.assert_close(both.fork.state.loss_weight, plain.fork.state.loss_weight, rtol=1e-12, atol=0)


@pytest.mark.parametrize("bad", [math.inf, math.nan])
@pytest.mark.parametrize("steps", [0, 1])
def test_gradnorm_keeps_its_state_at_an_overflow(bad: float, steps: int) -> None:
    net = Net(GradNorm())
    for number in range(steps):
        step(net, [inputs(number)])
    before = copy.deepcopy(net.fork.state.state_dict())
    features = net.fork(net.backbone(inputs(1)))
    features["b"].register_hook(lambda gradient: gradient * bad)
    sum(net.fork.weigh(net.losses(features)).values()).backward()
    net.fork.update()
    assert all(torch.equal(value, before[name]) for name, value in net.fork.state.state_dict().items())
    after = copy.deepcopy(net.fork.state.loss_weight)
    step(net, [inputs(2)])  # and learns on
    assert not torch.equal(net.fork.state.loss_weight, after)


def test_gradnorm_with_a_task_that_has_no_objects_at_first() -> None:
    net = Net(GradNorm())
    seen = []
    for number in range(3):
        features = net.fork(net.backbone(inputs(number)))
        losses = net.losses(features)
        losses["b"] = losses["b"] * (0.0 if number == 0 else 1.0)
        seen.append(float(losses["b"].detach()))
        sum(net.fork.weigh(losses).values()).backward()
        net.fork.update()
        assert net.fork.state.loss_weight.isfinite().all()
        assert float(net.fork.state.first_loss[1]) == seen[min(number, 1)]  # the first that is not 0
    assert (net.fork.state.loss_weight > 0).all()


def test_gradnorm_takes_a_loss_below_0_for_one_of_0() -> None:
    found = []
    for value in (-2.0, 0.0):
        net = Net(GradNorm())
        step(net, [inputs()])
        before = net.fork.state.loss_weight.clone()
        features = net.fork(net.backbone(inputs(1)))
        losses = net.losses(features)
        losses["b"] = losses["b"] - losses["b"].detach() + value
        sum(net.fork.weigh(losses).values()).backward()
        net.fork.update()
        assert not torch.equal(net.fork.state.loss_weight, before)
        found.append(net.fork.state.loss_weight)
    assert torch.equal(*found)


@pytest.mark.parametrize(
    ("alpha", "first_norm", "grows"),
    # The first has half the mean loss, the second one and a half of it: with a mean norm of 1 their targets are
    # 0.5^alpha and 1.5^alpha. In each case one norm is above its target, the other one below.
    [(0.0, 0.95, True), (0.1, 0.97, False), (0.1, 0.92, True), (1.0, 0.4, True), (1.5, 0.4, False), (1.5, 0.15, True)],
)
def test_gradnorm_lets_slow_tasks_have_the_larger_gradient(alpha: float, first_norm: float, grows: bool) -> None:
    method = GradNorm(alpha=alpha)
    state = method.new_buffers(2)
    state["first_loss"].copy_(torch.tensor([1.0, 2.0]))
    norms = torch.tensor([first_norm, 2 - first_norm], dtype=torch.float64)
    method.learn(norms.square(), torch.tensor([0.3, 1.8], dtype=torch.float64), state)  # 0.3 and 0.9, of mean 0.6
    assert bool(state["loss_weight"][0] > 1) == grows


def test_gradnorm_starts_from_the_first_loss_above_0() -> None:
    method = GradNorm()
    state = method.new_buffers(2)
    for first, kept in ((-3.0, 0.0), (0.0, 0.0), (2.0, 2.0), (1.0, 2.0)):
        method.learn(torch.ones(2).double(), torch.tensor([first, 1.0], dtype=torch.float64), state)
        assert state["first_loss"].tolist() == [kept, 1.0]


def test_gradnorm_goes_on_from_a_checkpoint() -> None:
    net, straight = Net(GradNorm()), Net(GradNorm())
    for number in range(2):
        step(net, [inputs(number)])
    resumed = Net(GradNorm())
    resumed.load_state_dict(net.state_dict())
    step(resumed, [inputs(2)])
    for number in range(3):
        step(straight, [inputs(number)])
    assert torch.equal(resumed.fork.state.loss_weight, straight.fork.state.loss_weight)
    assert {"fork.state.loss_weight", "fork.state.first_loss"} <= set(net.state_dict())


def test_gradnorm_forgets_losses_of_steps_that_never_reached_the_backbone() -> None:
    net, fresh = Net(GradNorm()), Net(GradNorm())
    net.backbone.requires_grad_(False)
    for number in range(3):
        step(net, [inputs(number)])
    net.backbone.requires_grad_(True)
    seen = step(net, [inputs(3)])
    assert net.fork.state.first_loss.tolist() == pytest.approx(list(seen.values()), rel=1e-12)
    step(fresh, [inputs(3)])
    assert torch.equal(net.fork.state.loss_weight, fresh.fork.state.loss_weight)


def test_gradnorm_with_graddrop_drops_signs_of_weighed_gradients() -> None:
    weights = torch.tensor([0.2, 0.3, 2.5], dtype=torch.float64)
    net, plain = Net(GradNorm(then=GradDrop())), Net(GradDrop())
    net.fork.state.loss_weight.copy_(weights)
    for model, factors in ((net, torch.ones(3)), (plain, weights)):
        features = model.fork(model.backbone(inputs()))
        losses = model.losses(features)
        weighed = model.fork.weigh({task: losses[task] * factors[k] for k, task in enumerate(TASKS)})
        sum(weighed.values()).backward()
    torch.testing.assert_close(net.backbone.weight.grad, plain.backbone.weight.grad, rtol=1e-12, atol=1e-15)


def test_uncertainty_is_kendalls_loss_and_finds_its_minimum() -> None:
    net = Net(Uncertainty())
    assert "fork.state.log_variance" in dict(net.named_parameters())
    losses = {"a": torch.tensor(0.2), "b": torch.tensor(1.0), "c": torch.tensor(30.0)}
    optimizer = torch.optim.SGD(net.fork.parameters(), lr=0.1)
    for _ in range(2000):
        optimizer.zero_grad()
        weighed = net.fork.weigh(losses)
        sum(weighed.values()).backward()
        nn.utils.clip_grad_norm_(net.fork.parameters(), 1.0)
        optimizer.step()
    # exp(-s) L + s is least at s = log L, where it is 1 + log L.
    torch.testing.assert_close(
        net.fork.state.log_variance.detach(), torch.tensor([0.2, 1.0, 30.0]).log().double(), rtol=1e-3, atol=1e-3
    )
    assert [float(value.detach()) for value in weighed.values()] == pytest.approx(
        [1 + math.log(v) for v in (0.2, 1, 30)], 1e-3
    )


def penalised(net: Net, batch: Tensor) -> Tensor:
    features = net.fork(net.backbone(batch))
    return torch.stack(list(net.fork.weigh(net.losses(features), features).values())).sum()


def test_penalty_is_the_squared_norm_of_the_summed_gradient() -> None:
    net = Net(GradientPenalty(weight=0.3))
    shared = net.backbone(inputs())
    features = net.fork(shared)
    losses = net.losses(features)
    weighed = net.fork.weigh(losses, features)
    total = sum(net.losses(dict.fromkeys(TASKS, shared)).values())
    (gradient,) = torch.autograd.grad(total, shared)
    assert list(weighed) == [*TASKS, "penalty"]
    assert float(weighed["penalty"].detach()) == pytest.approx(0.3 * float(gradient.square().sum()), rel=1e-12)


def test_penalty_has_the_gradient_of_its_differences() -> None:
    net, batch = Net(GradientPenalty(weight=0.3)), inputs(samples=3)
    penalised(net, batch).backward()
    for name, parameter in net.named_parameters():
        values = parameter.data.view(-1)
        place = int(parameter.grad.abs().argmax())
        around = []
        for shift in (1e-6, -1e-6):
            values[place] += shift
            around.append(float(penalised(net, batch).detach()))
            values[place] -= shift
        wanted = (around[0] - around[1]) / 2e-6
        assert float(parameter.grad.view(-1)[place]) == pytest.approx(wanted, rel=1e-5), name


def test_penalty_shrinks_the_gradient_at_the_fork() -> None:
    norms = []
    for method in (Sum(), GradientPenalty(weight=1.0)):
        net = Net(method)
        optimizer = torch.optim.SGD(net.parameters(), lr=1e-4)
        for _ in range(200):
            optimizer.zero_grad()
            penalised(net, inputs()).backward()
            nn.utils.clip_grad_norm_(net.parameters(), 10.0)
            optimizer.step()
        shared = net.backbone(inputs())
        total = sum(net.losses(dict.fromkeys(TASKS, shared)).values())
        norms.append(float(torch.autograd.grad(total, shared)[0].norm()))
    assert norms[1] < norms[0]


def test_penalty_then_graddrop_combines_what_arrives_with_the_penalty() -> None:
    net = Net(GradientPenalty(weight=0.3, then=GradDrop(preserve_norm=False)))
    plain = Net(GradientPenalty(weight=0.3))
    for model in (net, plain):
        penalised(model, inputs()).backward()
    assert not torch.equal(net.backbone.weight.grad, plain.backbone.weight.grad)
    assert all(
        torch.equal(a.grad, b.grad) for a, b in zip(net.heads.parameters(), plain.heads.parameters(), strict=True)
    )


@pytest.mark.parametrize("outer", [GradNorm, Uncertainty])
def test_a_penalty_inside_another_method_is_of_the_weighed_losses(outer) -> None:
    net = Net(outer(then=GradientPenalty(weight=0.3)))
    with torch.no_grad():
        for value in net.fork.state.tensors().values():
            value.copy_(torch.tensor([0.5, 1.5, 1.0]))
    shared = net.backbone(inputs())
    features = net.fork(shared)
    weighed = net.fork.weigh(net.losses(features), features)
    alone = Net(Sum())
    by_itself = alone.backbone(inputs())
    method, state = net.fork.method, net.fork.state.tensors()
    total = method.weigh(torch.stack(list(alone.losses(dict.fromkeys(TASKS, by_itself)).values())), state).sum()
    (gradient,) = torch.autograd.grad(total, by_itself)
    assert list(weighed) == [*TASKS, "penalty"]
    assert float(weighed["penalty"].detach()) == pytest.approx(0.3 * float(gradient.square().sum()), rel=1e-12)


def test_penalty_without_features_and_in_evaluation() -> None:
    net = Net(GradientPenalty())
    features = net.fork(net.backbone(inputs()))
    with pytest.raises(ValueError, match=r"needs the fork's features: fork.weigh\(losses, features\)"):
        net.fork.weigh(net.losses(features))
    net.eval()
    with torch.no_grad():
        assert list(net.fork.weigh(net.losses(net.fork(net.backbone(inputs()))))) == list(TASKS)
    net.train()
    net.backbone.requires_grad_(False)
    features = net.fork(net.backbone(inputs()))
    with pytest.raises(ValueError, match="is the backbone frozen"):
        net.fork.weigh(net.losses(features), features)
    with pytest.raises(ValueError, match=r"weight is -1.0"):
        GradientPenalty(weight=-1.0)
