"""A method that changes the losses and leaves the gradients to another one."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from detection3d.multitask.method import Combination, Context, Method, Sum
from detection3d.multitask.positions import Marginalize
from detection3d.multitask.ranks import Ranks


@dataclass(frozen=True)
class Wrapping(Method):
    """Passes everything on to `then`; subclasses change what they are about.

    Attributes:
        then: what combines the gradients of the changed losses.
    """

    then: Method = field(default_factory=Sum)

    @property
    def marginalize(self) -> Marginalize:  # pyright: ignore[reportIncompatibleVariableOverride] a view of `then`
        """What counts as one position."""
        return self.then.marginalize

    @property
    def channel_dim(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The activation's channel dim."""
        return self.then.channel_dim

    def check_tasks(self, tasks: tuple[str, ...]) -> None:
        """Raise ValueError where the settings do not fit the names of the tasks."""
        self.then.check_tasks(tasks)

    def new_buffers(self, tasks: int) -> dict[str, Tensor]:
        """Return the state before the first step."""
        return self.then.new_buffers(tasks)

    def new_parameters(self, tasks: int) -> dict[str, Tensor]:
        """Return what the optimizer of the model learns."""
        return self.then.new_parameters(tasks)

    def learning_size(self, tasks: int) -> int:
        """Return how many numbers `Combination.learning` holds."""
        return self.then.learning_size(tasks)

    def weigh(self, losses: Tensor, state: Mapping[str, Tensor]) -> Tensor:
        """Return the losses [K] as they are to be added up."""
        return self.then.weigh(losses, state)

    def penalty(self, losses: Tensor, aliases: Sequence[Tensor], ranks: Ranks) -> Tensor | None:
        """Return a loss that is to be added to those of the tasks, or None."""
        return self.then.penalty(losses, aliases, ranks)

    def learn(self, learning: Tensor, losses: Tensor, state: Mapping[str, Tensor]) -> None:
        """Change the buffers after the backward passes of a step."""
        self.then.learn(learning, losses, state)

    def combine(self, gradients: Tensor, activation: Tensor, context: Context) -> Combination:
        """Make one gradient of the tasks'."""
        return self.then.combine(gradients, activation, context)
