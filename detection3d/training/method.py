"""From the config's words to the method at the fork."""

from collections.abc import Callable, Mapping
from typing import assert_never

from torch import Tensor

from detection3d.config import (
    CAGradConfig,
    ClippingConfig,
    GradDropConfig,
    GradientPenaltyConfig,
    GradNormConfig,
    IdentityConfig,
    MGDAConfig,
    PCGradConfig,
    RampConfig,
    RandomSignConfig,
    SigmoidConfig,
    SumConfig,
    UncertaintyConfig,
)
from detection3d.config.multitask import Leak, MethodConfig
from detection3d.multitask import (
    MGDA,
    CAGrad,
    GradDrop,
    GradientPenalty,
    GradNorm,
    Identity,
    Method,
    PCGrad,
    Ramp,
    RandomSign,
    Sigmoid,
    Sum,
    TaskClipping,
    Uncertainty,
)
from detection3d.multitask.schedule import Scheduled


def build_method(config: MethodConfig) -> Method:
    """Return the method that combines the tasks' gradients."""
    match config:
        case SumConfig():
            return Sum()
        case GradDropConfig():
            return GradDrop(
                leak=_leak(config.leak),
                keep=_keep(config.keep),
                marginalize=config.marginalize,
                preserve_norm=config.preserve_norm,
                strength=_share(config.strength),
            )
        case RandomSignConfig():
            return RandomSign(
                leak=_leak(config.leak),
                marginalize=config.marginalize,
                preserve_norm=config.preserve_norm,
                strength=_share(config.strength),
            )
        case ClippingConfig(max_norm=max_norm):
            return TaskClipping(max_norm)
        case MGDAConfig(normalize=normalize):
            return MGDA(normalize=normalize)
        case PCGradConfig():
            return PCGrad()
        case CAGradConfig(c=c):
            return CAGrad(c)
        case GradNormConfig(alpha=alpha, learning_rate=learning_rate, then=then):
            return GradNorm(alpha=alpha, learning_rate=learning_rate, then=build_method(then))
        case UncertaintyConfig(then=then):
            return Uncertainty(then=build_method(then))
        case GradientPenaltyConfig(weight=weight, then=then):
            return GradientPenalty(weight=weight, then=build_method(then))
        case never:
            assert_never(never)


def _share(value: float | RampConfig) -> Scheduled:
    return Ramp(value.first, value.last, value.start, value.stop) if isinstance(value, RampConfig) else value


def _leak(leak: Leak) -> Scheduled | Mapping[str, Scheduled]:
    return {task: _share(value) for task, value in leak.items()} if isinstance(leak, dict) else _share(leak)


def _keep(config: IdentityConfig | SigmoidConfig) -> Callable[[Tensor], Tensor]:
    match config:
        case IdentityConfig():
            return Identity()
        case SigmoidConfig(scale=scale):
            return Sigmoid(scale)
        case never:
            assert_never(never)
