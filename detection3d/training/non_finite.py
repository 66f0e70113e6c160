"""Numbers that are no numbers any more end a run before they reach a checkpoint."""

from typing import TYPE_CHECKING

import torch

from detection3d.errors import UserError
from detection3d.training.state import TrainState
from detection3d.types.tensors import Batch

if TYPE_CHECKING:
    from detection3d.training.step import StepResult


def refuse_non_finite(result: "StepResult", state: TrainState, batch: Batch) -> None:
    """Look at a step's losses and, unless a scaler leaves steps out on its own, at the gradient's norm.

    Args:
        result: of the step.
        state: after it.
        batch: of this rank.

    Raises:
        UserError: one is not finite. The norm is that of all ranks, so all of them end in the same step; the frames are
            named by the rank whose losses they spoilt.
    """
    values = {task: float(loss.detach()) for task, loss in result.losses.as_dict().items()}
    values["gradient norm"] = 0.0 if state.scaler.is_enabled() else float(result.gradient_norm)
    wrong = [name for name, value in values.items() if not torch.isfinite(torch.tensor(value))]
    if not wrong:
        return
    if wrong == ["gradient norm"] and state.ranks.size > 1:
        where = "the losses of this rank's frames are finite, so look at the other ranks' messages first"
    else:
        where = "frames of the batch: " + ", ".join(f"{name} at {timestamp}" for name, timestamp in batch.keys)
    raise UserError(
        f"step {state.step}: not finite: {', '.join(wrong)}; {where}. The last checkpoint is intact. Look at the"
        " frames with their labels, or lower training.learning_rate"
    )


def refuse_non_finite_state(state: TrainState) -> None:
    """Look at what is to be saved: in float16 an overflow reaches running statistics in steps that are left out.

    Raises:
        UserError: weights or statistics are not finite.
    """
    saved = state.model.state_dict()
    wrong = [name for name, value in saved.items() if value.is_floating_point() and not value.isfinite().all()]
    if wrong:
        raise UserError(
            f"step {state.step}: not finite: {', '.join(wrong[:5])}{' ...' if wrong[5:] else ''}. The last checkpoint"
            " is intact. Lower training.learning_rate, or use bfloat16 or float32"
        )
