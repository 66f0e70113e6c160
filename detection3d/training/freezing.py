"""Parts of the detector that training leaves as they are."""

import difflib
from collections.abc import Sequence

from torch import nn

from detection3d.config import Config
from detection3d.errors import UserError
from detection3d.model.detector import Detector

WITHOUT_MEETING = ("sum", "uncertainty")  # methods that do as they say where no gradients meet at the fork
_AFTER_FORK = ("fork", "heads")


def freeze(model: Detector, names: Sequence[str]) -> None:
    """Take modules out of training: no gradients, no weight decay, and running statistics as they are.

    Args:
        model: changed in place, before its optimiser, its average and its parallel form are made.
        names: of submodules, such as backbone or neck.stages.0.

    Raises:
        UserError: there is no such module, or nothing is left to train.
    """
    known = [name for name, _ in model.named_modules() if name]
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
            advice = f"did you mean {near[0]!r}?" if near else f"parts are {', '.join(dict(model.named_children()))}"
            raise UserError(f"training.freeze: the detector has no module {name!r}; {advice}")
        if name.split(".")[0] == "fork":
            raise UserError("training.freeze: the fork is no layer; for a plain sum set multitask.method=sum")
        module = model.get_submodule(name)
        module.eval()
        module.requires_grad_(False)
    if not any(weight.requires_grad for name, weight in model.named_parameters() if not name.startswith("fork.")):
        raise UserError(f"training.freeze: {', '.join(names)} leaves nothing to train")


def refuse_methods_without_effect(model: Detector, config: Config) -> None:
    """Stop where all that the tasks share is frozen, and the config asks for a method that combines their gradients.

    Raises:
        UserError: it does.
    """
    kind = config.multitask.method.kind
    if kind not in WITHOUT_MEETING and not _something_shared_trains(model):
        raise UserError(
            f"training.freeze leaves nothing to train before the fork, so no gradients meet there and"
            f" multitask.method={kind} would do nothing; set multitask.method=sum, or freeze less"
        )


def describe_frozen(model: nn.Module, names: Sequence[str], *, from_random: bool) -> str:
    """Say what is frozen.

    Args:
        model: the detector.
        names: of the frozen modules.
        from_random: whether the run begins with random weights.
    """
    frozen = sum(weight.numel() for weight in model.parameters() if not weight.requires_grad)
    warning = "; they are random, since the run begins without --initialize-from" if from_random else ""
    return f"frozen: {', '.join(names)}, {frozen / 1e6:.2f} M weights{warning}"


def _something_shared_trains(model: Detector) -> bool:
    return any(
        weight.requires_grad and name.split(".")[0] not in _AFTER_FORK for name, weight in model.named_parameters()
    )
