"""What settles the gradients at the fork: one section for each method."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag, model_validator

from detection3d.config.section import NonNegative, NonNegativeInt, Positive, PositiveInt, Probability, Section


class RampConfig(Section):
    """A straight line between two steps, constant before and after."""

    first: Probability  # up to step `start`
    last: Probability  # from step `stop` on
    start: NonNegativeInt
    stop: PositiveInt

    @model_validator(mode="after")
    def _has_a_length(self) -> "RampConfig":
        if self.start >= self.stop:
            raise ValueError(f"a ramp from step {self.start} to step {self.stop} has no length; stop comes after start")
        return self


def _share_kind(value: Any) -> str:
    return (
        "over the steps"
        if isinstance(value, RampConfig) or (isinstance(value, dict) and "first" in value)
        else "number"
    )


Share = Annotated[
    Annotated[Probability, Tag("number")] | Annotated[RampConfig, Tag("over the steps")], Discriminator(_share_kind)
]


def _leak_kind(value: Any) -> str:
    return "by task" if isinstance(value, dict) and "first" not in value else "for all"


Leak = Annotated[
    Annotated[Share, Tag("for all")]
    | Annotated[dict[Literal["classification", "box", "orientation"], Share], Tag("by task")],
    Discriminator(_leak_kind),
]


def _kind(value: Any) -> Any:
    return {"kind": value} if isinstance(value, str) else value


class IdentityConfig(Section):
    """The positive sign is kept with a probability equal to the purity, as in the paper."""

    kind: Literal["identity"] = "identity"


class SigmoidConfig(Section):
    """The probability is sigmoid(4 scale (purity - 1/2)); gradients that all tasks agree on may be dropped too."""

    kind: Literal["sigmoid"] = "sigmoid"
    scale: Positive = 1.0


class SumConfig(Section):
    """The baseline: gradients are added, as backpropagation does."""

    kind: Literal["sum"] = "sum"


class ClippingConfig(Section):
    """Each task's gradient is clipped at the fork; see `multitask.TaskClipping`."""

    kind: Literal["clipping"] = "clipping"
    max_norm: Positive = 1.0


class MGDAConfig(Section):
    """The shortest vector in the convex hull of the gradients; see `multitask.MGDA`."""

    kind: Literal["mgda"] = "mgda"
    normalize: Literal["none", "norm"] = "none"  # divide each gradient by its norm first


class PCGradConfig(Section):
    """Conflicting gradients are projected onto each other's normal planes; see `multitask.PCGrad`."""

    kind: Literal["pcgrad"] = "pcgrad"


class CAGradConfig(Section):
    """The best worst-case descent near the sum; see `multitask.CAGrad`."""

    kind: Literal["cagrad"] = "cagrad"
    c: Annotated[float, Field(ge=0, lt=1)] = 0.5  # how far from the sum, as a share of its norm


class SignConfig(Section):
    """What GradDrop and its control have in common; see `multitask.GradDrop`."""

    leak: Leak = 0.0  # share that is never dropped: a number, a ramp, or either by task
    marginalize: Literal["none", "batch", "batch+space"] = "batch"
    preserve_norm: bool = True
    strength: Share = 1.0  # 0 is the sum


class RandomSignConfig(SignConfig):
    """GradDrop whose sign is picked at random; see `multitask.RandomSign`."""

    kind: Literal["random_sign"] = "random_sign"


class GradDropConfig(SignConfig):
    """Gradient sign dropout; see `multitask.GradDrop`."""

    kind: Literal["graddrop"] = "graddrop"
    keep: Annotated[IdentityConfig | SigmoidConfig, Field(discriminator="kind"), BeforeValidator(_kind)] = (
        IdentityConfig()
    )


Combining = Annotated[
    SumConfig | ClippingConfig | MGDAConfig | PCGradConfig | CAGradConfig | RandomSignConfig | GradDropConfig,
    Field(discriminator="kind"),
    BeforeValidator(_kind),
]


class GradNormConfig(Section):
    """Loss weights learnt from the gradients' norms; see `multitask.GradNorm`."""

    kind: Literal["gradnorm"] = "gradnorm"
    alpha: NonNegative = 1.5  # 0 equalises the norms; more favours tasks that train slowly
    learning_rate: Positive = 0.025
    then: Combining = SumConfig()  # what combines the weighed gradients


class UncertaintyConfig(Section):
    """Loss weights learnt as the tasks' noise; see `multitask.Uncertainty`."""

    kind: Literal["uncertainty"] = "uncertainty"
    then: Combining = SumConfig()


class GradientPenaltyConfig(Section):
    """A penalty on the squared norm of the gradient at the fork; see `multitask.GradientPenalty`."""

    kind: Literal["gradient_penalty"] = "gradient_penalty"
    weight: Positive = 0.1
    then: Combining = SumConfig()


MethodConfig = (
    SumConfig
    | ClippingConfig
    | MGDAConfig
    | PCGradConfig
    | CAGradConfig
    | RandomSignConfig
    | GradDropConfig
    | GradNormConfig
    | UncertaintyConfig
    | GradientPenaltyConfig
)


class MultitaskConfig(Section):
    """How the gradients of the three tasks are combined at the fork."""

    method: Annotated[MethodConfig, Field(discriminator="kind"), BeforeValidator(_kind)] = GradDropConfig()
    sync: Literal["full", "none"] = "full"  # whether statistics are summed over the ranks
    debug: bool = False  # check every step for gradients that go around the fork; slow
