"""What a method at the fork costs a training step, against the plain sum without a fork."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from detection3d.benchmark.timing import Timing, time_in_turns
from detection3d.multitask import (
    MGDA,
    CAGrad,
    GradDrop,
    GradientPenalty,
    GradNorm,
    Method,
    PCGrad,
    RandomSign,
    Sum,
    TaskClipping,
    TaskFork,
    Uncertainty,
)

BASELINE = "no fork"
LINEAR_BATCH, LINEAR_WIDTH = 256, 512
CONV_BATCH, CONV_CHANNELS, CONV_SIZE = 8, 32, 64
HIDDEN = 8  # channels inside a small convolutional head


def methods() -> dict[str, Method]:
    """Return every method, with its usual settings."""
    return {
        "sum": Sum(),
        "clipping": TaskClipping(max_norm=1.0),
        "gradient penalty": GradientPenalty(weight=0.1),
        "mgda": MGDA(),
        "pcgrad": PCGrad(),
        "cagrad": CAGrad(),
        "gradnorm": GradNorm(),
        "gradnorm, graddrop": GradNorm(then=GradDrop()),
        "uncertainty": Uncertainty(),
        "random sign": RandomSign(),
        "graddrop": GradDrop(),
    }


@dataclass(frozen=True)
class NetShape:
    """A net with many heads.

    Attributes:
        kind: "linear" has features [batch, channels] and linear heads; "convolution" maps [batch, channels, size, size]
            and heads of two convolutions.
        tasks: number of heads, K.
        batch: samples.
        channels: of the shared feature.
        size: rows and columns of the shared map.
        depth: layers of the backbone.
    """

    kind: Literal["linear", "convolution"]
    tasks: int = 40
    batch: int = LINEAR_BATCH
    channels: int = LINEAR_WIDTH
    size: int = 1
    depth: int = 2


LINEAR = NetShape("linear")
CONVOLUTION = NetShape("convolution", batch=CONV_BATCH, channels=CONV_CHANNELS, size=CONV_SIZE, depth=4)


class ManyHeads(nn.Module):
    """A backbone, and a head with a squared loss for each task."""

    def __init__(self, shape: NetShape) -> None:
        super().__init__()
        width = shape.channels
        names = tuple(f"task{number}" for number in range(shape.tasks))
        if shape.kind == "linear":
            layers = [nn.Sequential(nn.Linear(width, width), nn.ReLU()) for _ in range(shape.depth)]
            heads = {name: nn.Linear(width, 1) for name in names}
        else:
            layers = [
                nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU())
                for _ in range(shape.depth)
            ]
            heads = {
                name: nn.Sequential(
                    nn.ReLU(), nn.Conv2d(width, HIDDEN, 3, padding=1), nn.ReLU(), nn.Conv2d(HIDDEN, 1, 1)
                )
                for name in names
            }
        self.backbone = nn.Sequential(*layers)
        self.heads = nn.ModuleDict(heads)
        self.names = names

    def losses(self, features: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return each head's loss; the targets differ, so that the gradients are in conflict."""
        return {
            name: (head(features[name]) - (-1.0) ** number).square().mean()
            for number, (name, head) in enumerate(self.heads.items())
        }


def many_heads_steps(
    shape: NetShape, chosen: Mapping[str, Method], device: torch.device, telemetry_every: int
) -> dict[str, Callable[[], None]]:
    """Return a whole training step for each method, and one without a fork under the name `BASELINE`.

    Args:
        shape: the net; every method trains a copy of its own.
        chosen: the methods by name.
        device: where to train.
        telemetry_every: as for `TaskFork`.
    """
    size = () if shape.kind == "linear" else (shape.size, shape.size)
    inputs = torch.randn(shape.batch, shape.channels, *size, device=device)

    def build(method: Method | None) -> Callable[[], None]:
        torch.manual_seed(0)
        net = ManyHeads(shape).to(device)
        fork = None if method is None else TaskFork(net.names, method, telemetry_every=telemetry_every).to(device)
        parameters = [*net.parameters(), *([] if fork is None else fork.parameters())]
        optimizer = torch.optim.AdamW(parameters, lr=1e-4, fused=device.type == "cuda")
        done = 0

        def step() -> None:
            nonlocal done
            done += 1
            shared = net.backbone(inputs)
            if fork is None:
                losses = net.losses({name: shared for name in net.names})  # noqa: C420 typed, unlike fromkeys
            else:
                fork.set_step(done)
                features = fork(shared)
                losses = fork.weigh(net.losses(features), features)
            torch.stack(list(losses.values())).sum().backward()
            if fork is not None:
                fork.update()
                if telemetry_every and done % telemetry_every == 0:
                    fork.read_telemetry()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

        return step

    return {BASELINE: build(None), **{name: build(method) for name, method in chosen.items()}}


@dataclass(frozen=True)
class CurvePoint:
    """Overhead of a method at one size.

    Attributes:
        shape: the net.
        baseline: a step without a fork.
        timing: a step with the method.
    """

    shape: NetShape
    baseline: Timing
    timing: Timing


def curve(
    shapes: Sequence[NetShape], method: Method, device: torch.device, *, rounds: int, telemetry_every: int
) -> list[CurvePoint]:
    """Time one method over several sizes of net."""
    points = []
    for shape in shapes:
        steps = many_heads_steps(shape, {"method": method}, device, telemetry_every)
        timings = time_in_turns(steps, device, rounds=rounds, calls_a_round=max(telemetry_every, 1))
        points.append(CurvePoint(shape, timings[BASELINE], timings["method"]))
    return points
