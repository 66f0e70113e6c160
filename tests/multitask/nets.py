"""A small net with a fork, and the reference that its gradients are compared with."""

import torch
from torch import Tensor, nn

from detection3d.multitask import GradDrop, Method, RandomSign, Sum, TaskFork, graddrop, uniform
from detection3d.multitask.positions import DensePositions

TASKS = ("classification", "box", "orientation")
METHODS = [
    Sum(),
    GradDrop(),
    GradDrop(leak={"box": 0.25}, preserve_norm=False),
    GradDrop(marginalize="batch+space", leak=0.1),
    GradDrop(marginalize="none", keep=lambda purity: purity**2 * (3 - 2 * purity)),
    RandomSign(),
]
METHOD_NAMES = ["sum", "batch", "leak", "batch+space", "none", "random sign"]


class Net(nn.Module):
    """A small convolutional backbone, the fork and a head for each task, in float64."""

    def __init__(self, method: Method, tasks: tuple[str, ...] = TASKS, **options: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.backbone = nn.Sequential(nn.Conv2d(2, 6, 3, padding=1), nn.BatchNorm2d(6))
        self.fork = TaskFork(tasks, method, seed=3, **options)
        self.heads = nn.ModuleDict(
            {
                task: nn.Sequential(nn.ReLU(), nn.Conv2d(6, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 1, 1))
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


def train_in_k_passes(net: Net, image: Tensor, step: int = 0) -> dict[str, Tensor]:
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
    """What the fork is to make of the gradients, by the pure function."""
    method = fork.method
    if isinstance(method, Sum):
        return torch.stack(at_fork).sum(0)
    assert isinstance(method, GradDrop)
    shape = DensePositions(method.marginalize).shape(shared.shape)
    sample_index = torch.arange(len(shared)) if method.marginalize == "none" else None
    return graddrop(
        at_fork,
        shared,
        uniform(shape, 3, step, "fork", "cpu", sample_index),
        leak=[method.leak.get(task, 0.0) for task in fork.tasks] if isinstance(method.leak, dict) else method.leak,
        keep=method.keep,
        marginalize=method.marginalize,
        preserve_norm=method.preserve_norm,
    )
