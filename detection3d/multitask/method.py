"""What the fork asks of a method, and the plain sum, which is the baseline.

A method's settings are a frozen dataclass. What a method learns (GradNorm's weights) lives in the fork's state, so that
checkpoints hold it.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from detection3d.multitask.arithmetic import gram_matrix, plain_sum, weighted_sum
from detection3d.multitask.positions import Marginalize, Positions
from detection3d.multitask.ranks import Ranks


@dataclass(frozen=True)
class Context:
    """What a method may know beside the gradients and the activation.

    Attributes:
        tasks: names of the K tasks, in the order of the gradients.
        words: the stream of the draw, from seed and fork name (`draw.stream_words`).
        step: int64 scalar, the optimizer step of the forward.
        positions: what counts as one position.
        ranks: whose statistics are summed.
        sample_index: int64 [B], global index of each sample; None takes the place in the batch.
    """

    tasks: tuple[str, ...]
    words: tuple[int, int]
    step: Tensor
    positions: Positions
    ranks: Ranks = field(default_factory=Ranks)
    sample_index: Tensor | None = None

    def uniform(self, activation: Tensor) -> Tensor:
        """Draw float32 numbers in [0, 1), one for each position, the same at every call within a step."""
        return self.positions.uniform(activation, self.words, self.step, self.sample_index, self.ranks)


@dataclass(frozen=True)
class Combination:
    """What a method makes of the gradients.

    Attributes:
        gradient: shaped like the activation, the one gradient that goes on to the backbone.
        coefficients: c_i before any rescaling of the whole, [K, ...], broadcasts onto the gradients.
        position_gradients: G, where the method needed it; telemetry then need not sum it again.
        gram: float64 [K, K], products of the gradients over all ranks, where the method needed them; likewise.
        learning: float64 [learning_size], what the method learns from, to be summed over passes and ranks.
    """

    gradient: Tensor
    coefficients: Tensor
    position_gradients: Tensor | None = None
    gram: Tensor | None = None
    learning: Tensor | None = None


class Method(ABC):
    """A way to settle the tasks' gradients at the fork.

    Every method has the form sum_i c_i g_i, possibly rescaled as a whole. A masking method's c_i depend on the
    position, a weighting method's do not.

    Attributes:
        marginalize: what counts as one position, for the method itself and for telemetry.
        channel_dim: the activation's channel dim.
    """

    marginalize: Marginalize = "batch"
    channel_dim: int = 1

    @abstractmethod
    def combine(self, gradients: Tensor, activation: Tensor, context: Context) -> Combination:
        """Make one gradient of the tasks'.

        Args:
            gradients: [K, ...], each shaped like the activation, in float32 or float64 (`working_dtype`).
            activation: A, [B, ...], of any floating type.
            context: names, step, positions, draw and ranks.
        """

    def check_tasks(self, tasks: tuple[str, ...]) -> None:  # noqa: B027 most methods take any tasks
        """Raise ValueError where the settings do not fit the names of the tasks."""

    def new_buffers(self, tasks: int) -> dict[str, Tensor]:
        """Return the state before the first step, kept in checkpoints and changed by `learn`."""
        return {}

    def new_parameters(self, tasks: int) -> dict[str, Tensor]:
        """Return what the optimizer of the model learns."""
        return {}

    def learning_size(self, tasks: int) -> int:
        """Return how many numbers `Combination.learning` holds; 0 where nothing is learnt from gradients."""
        return 0

    def weigh(self, losses: Tensor, state: Mapping[str, Tensor]) -> Tensor:
        """Return the losses [K] as they are to be added up.

        Args:
            losses: [K].
            state: buffers and parameters by name.
        """
        return losses

    def penalty(self, losses: Tensor, aliases: Sequence[Tensor], ranks: Ranks) -> Tensor | None:
        """Return a loss that is to be added to those of the tasks, or None.

        Args:
            losses: [K], as weighed.
            aliases: the K tensors that the fork handed out.
            ranks: among which DistributedDataParallel averages gradients.
        """
        return None

    def learn(self, learning: Tensor, losses: Tensor, state: Mapping[str, Tensor]) -> None:  # noqa: B027
        """Change the buffers after the backward passes of a step.

        Args:
            learning: float64 [learning_size], the sum of `Combination.learning` over passes and ranks.
            losses: float64 [K], each task's loss of the whole step before weighing.
            state: buffers and parameters by name.
        """


@dataclass(frozen=True)
class Sum(Method):
    """The plain sum of the gradients: what training without a fork does."""

    def combine(self, gradients: Tensor, activation: Tensor, context: Context) -> Combination:
        """Return the sum."""
        return Combination(plain_sum(gradients), ones(gradients))


class Weighting(Method):
    """A method that gives each task one weight, from the products of all pairs of gradients."""

    @abstractmethod
    def weights(self, gram: Tensor, context: Context) -> Tensor:
        """Return a weight for each task, float64 [K].

        Args:
            gram: float64 [K, K], products of the gradients over all samples and ranks.
            context: names, step and draw.
        """

    def combine(self, gradients: Tensor, activation: Tensor, context: Context) -> Combination:
        """Return the weighted sum."""
        gram = gram_matrix(gradients, context.ranks)
        weights = self.weights(gram, context).to(gradients.dtype)
        coefficients = weights.reshape(ones(gradients).shape)
        return Combination(weighted_sum(coefficients, gradients), coefficients, gram=gram)


def ones(gradients: Tensor) -> Tensor:
    """Return 1 for each task, [K, 1, ...] with as many dims as the gradients."""
    return gradients.new_ones((len(gradients),) + (1,) * (gradients.ndim - 1))
