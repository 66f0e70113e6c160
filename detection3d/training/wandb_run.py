"""A run's numbers in Weights & Biases, beside TensorBoard; without network with WANDB_MODE=offline."""

import uuid
from typing import Any

import numpy as np

from detection3d.config import Config
from detection3d.errors import UserError
from detection3d.files import own_name, replace_file
from detection3d.training.run_folder import RunFolder


class WandbRun:
    """The run in a project of W&B, the same one each time that it goes on.

    Args:
        project: of W&B.
        config: the run's.
        folder: the run's; W&B keeps its files in `wandb/` there, and the run's id in `wandb_id`.

    Raises:
        UserError: wandb is not installed, or can't reach its server.
    """

    def __init__(self, project: str, config: Config, folder: RunFolder) -> None:
        try:
            import wandb  # pyright: ignore[reportMissingImports] an extra of its own
        except ModuleNotFoundError as error:
            raise UserError(
                "logging.wandb is set, but wandb is not installed: pip install 'detection3d[wandb]', or set"
                " logging.wandb=null"
            ) from error
        path = folder.root / "wandb_id"
        if not path.is_file():
            replace_file(path, uuid.uuid4().hex[:8].encode())
        self._image = wandb.Image
        try:
            self._run = wandb.init(
                project=project,
                id=path.read_text().strip(),
                resume="allow",
                name=own_name(folder.root),
                dir=str(folder.root),
                config=config.model_dump(mode="json"),
            )
        except wandb.errors.Error as error:
            reason = " ".join(str(error).split())
            raise UserError(
                f"W&B: {reason}; log in with `wandb login`, or set WANDB_MODE=offline and send the run later with"
                f" `wandb sync {folder.root / 'wandb'}/offline-run-*`"
            ) from error
        # An axis of our own: W&B's step can't go back to the checkpoint that a killed run goes on from.
        self._run.define_metric("*", step_metric="step")

    def log(self, step: int, values: dict[str, Any]) -> None:
        """Send numbers of a step."""
        self._run.log({"step": step, **values})

    def log_image(self, step: int, name: str, image: np.ndarray) -> None:
        """Send a picture, uint8 [H, W, 3]."""
        self._run.log({"step": step, name: self._image(image)})

    def close(self, *, failed: bool) -> None:
        """Finish; W&B shows a run that failed as such."""
        self._run.finish(exit_code=int(failed))


def open_wandb(config: Config, folder: RunFolder) -> WandbRun | None:
    """Return the run in W&B, None where the config names no project."""
    return None if config.logging.wandb is None else WandbRun(config.logging.wandb, config, folder)
