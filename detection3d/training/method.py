"""From the config's words to the method at the fork."""

from collections.abc import Callable, Mapping
from typing import assert_never

from torch import Tensor

from detection3d.config import GradDropConfig, IdentityConfig, RampConfig, RandomSignConfig, SigmoidConfig, SumConfig
from detection3d.config.multitask import Leak, MethodConfig
from detection3d.multitask import GradDrop, Identity, Method, Ramp, RandomSign, Sigmoid, Sum
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
        case never:
            raise NotImplementedError(never)


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
