"""From the config's words to the method at the fork."""

from collections.abc import Mapping
from typing import assert_never

from detection3d.config import GradDropConfig, MultitaskConfig, SumConfig
from detection3d.multitask import GradDrop, Method, Sum


def build_method(config: MultitaskConfig) -> Method:
    """Return the method that combines the tasks' gradients."""
    match config.method:
        case SumConfig():
            return Sum()
        case GradDropConfig(leak=leak, marginalize=marginalize, preserve_norm=preserve_norm):
            chosen: float | Mapping[str, float] = {**leak} if isinstance(leak, dict) else leak
            return GradDrop(leak=chosen, marginalize=marginalize, preserve_norm=preserve_norm)
        case never:
            assert_never(never)
