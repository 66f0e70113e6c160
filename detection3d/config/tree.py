"""The whole run in one frozen tree: what a config file may say, checked in one place.

A config file in `configs/` is complete and readable on its own. `load_config(path, ["training.steps=100", ...])` reads
it, applies overrides and checks everything; an unknown key is an error that names the nearest known one.
"""

import math
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, PlainSerializer, model_validator

from detection3d.config.decode import DecodeConfig
from detection3d.config.model import ModelConfig
from detection3d.config.multitask import MultitaskConfig
from detection3d.config.section import NonNegative, NonNegativeInt, Positive, PositiveInt, Probability, Section
from detection3d.types.scene import ObjectType

FEW_SAMPLES = 4  # of a rank; with fewer, `sync_batch_norm: auto` takes the batch statistics of all ranks


def _object_type(value: Any) -> Any:
    if isinstance(value, str) and value in ObjectType.__members__:
        return ObjectType[value]
    if isinstance(value, int) and value in list(ObjectType):
        return ObjectType(value)
    raise ValueError(f"not an object type; types are {', '.join(ObjectType.__members__)}")


def _type_name(value: ObjectType) -> str:
    return value.name


WaymoType = Annotated[ObjectType, BeforeValidator(_object_type), PlainSerializer(_type_name, when_used="json")]


class ClassConfig(Section):
    """One class of the detector, and the object types that it stands for."""

    name: str
    types: Annotated[tuple[WaymoType, ...], Field(min_length=1)]  # labelled as any of these; detections carry the first
    nms_iou: Probability  # a detection with more BEV overlap with a better one of its class is dropped
    quality_exponent: Probability = 0.0  # a: the score is class score^(1 - a) * predicted IoU^a


class DataConfig(Section):
    """Where the prepared stores lie, and which points of them are used."""

    train: Path | None = None  # a store made by tools/prepare_waymo.py
    validation: Path | None = None
    returns: Annotated[tuple[Literal[1, 2], ...], Field(min_length=1)] = (1, 2)
    drop_no_label_zone_points: bool = False
    sweeps: PositiveInt = 1  # frames of a segment whose points are merged; above 1, points carry their age
    every: PositiveInt = 1  # train on every so many frames of a segment; sweeps come from those in between, too
    sampling: Literal["uniform", "class_balanced"] = "uniform"  # balanced: equal shares of frames with each class
    workers: NonNegativeInt = 4  # loader processes; 0 reads in the training process


class ObjectSamplingConfig(Section):
    """Objects of other frames, put into a training sample where they find room."""

    database: Path  # made by tools/make_object_database.py
    totals: Annotated[dict[str, PositiveInt], Field(min_length=1)]  # by class: a sample is filled up to so many objects
    off_for_last_steps: NonNegativeInt = 0  # of the training
    off_for_last_share: Probability = 0.0  # of the training; the longer of the two counts

    def steps_without(self, steps: int) -> int:
        """Return how many of the training's last steps are without."""
        return max(self.off_for_last_steps, round(self.off_for_last_share * steps))


class AugmentationConfig(Section):
    """Random changes of a whole sample, applied on the device. All zero switches them off."""

    flip_x: Probability = 0.0  # probability of y -> -y
    flip_y: Probability = 0.0  # probability of x -> -x
    rotation: NonNegative = 0.0  # radians about +z, uniform in +-rotation
    scale: Annotated[float, Field(ge=0, lt=1)] = 0.0  # uniform in 1 +- scale
    translation: NonNegative = 0.0  # metres, standard deviation along each axis
    point_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0  # largest share of points left out
    objects: ObjectSamplingConfig | None = None
    off_for_last_steps: NonNegativeInt = 0  # of the training: its end sees the data as they are
    off_for_last_share: Probability = 0.0  # of the training; the longer of the two counts

    def steps_without(self, steps: int) -> int:
        """Return how many of the training's last steps are without."""
        return max(self.off_for_last_steps, round(self.off_for_last_share * steps))


class LossConfig(Section):
    """Weights of the losses, and the shape of the heatmap's targets."""

    classification_weight: NonNegative = 1.0
    box_weight: NonNegative = 2.0
    orientation_weight: NonNegative = 2.0
    quality_weight: NonNegative = 1.0  # within its task; counts where a head predicts "quality"
    velocity_weight: NonNegative = 0.2  # within its task, against 1 of each other output; likewise
    iou_weight: NonNegative = 0.0  # within the box task, of a DIoU loss; the heading does not learn from it
    min_overlap: Annotated[float, Field(gt=0, lt=1)] = 0.1  # IoU that the Gaussian's radius stands for (CenterPoint)
    min_radius: NonNegativeInt = 2  # cells
    min_points: NonNegativeInt = 1  # objects with fewer lidar points are no targets


class TrainingConfig(Section):
    """Optimisation and bookkeeping."""

    steps: NonNegativeInt = 0  # either steps or epochs
    epochs: NonNegative = (
        0.0  # passes over the frames that the data section chooses; steps are made of them at the start
    )
    batch_size: PositiveInt  # samples of one step over all ranks
    learning_rate: Positive  # the one-cycle schedule's peak
    weight_decay: NonNegative = 0.01
    warmup: Annotated[float, Field(gt=0, lt=1)] = 0.1  # share of the steps up to the peak
    initial_divisor: Annotated[float, Field(gt=1)] = 10.0  # the first step's rate is the peak over this
    final_divisor: Annotated[float, Field(gt=1)] = 1e5  # the lowest rate is the peak over this
    tail: Annotated[float, Field(ge=0, lt=1)] = 0.0  # share of the steps at the end that keep the lowest rate
    clip_norm: Positive = 35.0  # of the gradient of all parameters
    ema_decay: Annotated[float, Field(ge=0, lt=1)] = 0.999  # 0 switches the average off
    ema_warmup: bool = False  # a short memory at first, so that a short run's average forgets the first weights, too
    accumulation: PositiveInt = 1  # micro-batches that a batch is done in, one after the other, to save memory
    # Batch statistics of all ranks' samples; false: of each rank's own, and no equality with one rank; auto: the
    # former where a rank has fewer than four samples at once.
    sync_batch_norm: Literal[True, False, "auto"] = True
    precision: Literal["float32", "bfloat16", "float16"] = "float32"  # of the dense part; the last two on CUDA only
    freeze: tuple[str, ...] = ()  # modules that stay as they are, such as backbone or neck
    cuda_graphs: bool = False  # replay the dense part's kernels, on CUDA; not with freeze or debug
    log_every: PositiveInt = 10  # steps
    map_every: NonNegativeInt = 500  # steps between maps of the tasks' conflict; 0 makes none
    checkpoint_every: PositiveInt = 500  # steps
    keep_checkpoints: PositiveInt = 2
    # Steps whose loss or gradient is not finite are left out; more of them in a row end the run. A bad frame spoils one
    # step and the order is random, so a row of four has its cause in the weights or in all of the data.
    max_skipped_in_a_row: NonNegativeInt = 3
    evaluate_every: NonNegativeInt = 0  # steps between evaluations on data.validation, and at the end; 0 makes none
    evaluate_frames: NonNegativeInt = 0  # of data.validation, evenly spaced; 0 takes all
    # Of the means in metrics.json: the checkpoint in which it is highest is kept beside the last ones.
    best_metric: Literal["LEVEL_1/AP", "LEVEL_1/APH", "LEVEL_2/AP", "LEVEL_2/APH"] = "LEVEL_2/APH"

    def synchronizes_norms(self, ranks: int) -> bool:
        """Tell whether so many ranks take their batch statistics from the samples of all of them."""
        if self.sync_batch_norm == "auto":
            return self.batch_size // self.accumulation // ranks < FEW_SAMPLES
        return self.sync_batch_norm

    @model_validator(mode="after")
    def _micro_batches_have_samples(self) -> "TrainingConfig":
        if self.accumulation > self.batch_size:
            raise ValueError(f"accumulation is {self.accumulation}, more than the {self.batch_size} samples of a batch")
        if self.cuda_graphs and self.batch_size % self.accumulation:
            raise ValueError(
                f"accumulation {self.accumulation} shares {self.batch_size} samples out unequally, and cuda_graphs are"
                " of one size; give a batch_size that it divides, or cuda_graphs=false"
            )
        return self

    @model_validator(mode="after")
    def _has_one_length(self) -> "TrainingConfig":
        if (self.steps > 0) == (self.epochs > 0):
            raise ValueError(f"give either steps or epochs above 0; found {self.steps} and {self.epochs:g}")
        return self

    @model_validator(mode="after")
    def _cycle_has_a_way_down(self) -> "TrainingConfig":
        if self.warmup + self.tail >= 1:
            raise ValueError(
                f"warmup ({self.warmup:g}) and tail ({self.tail:g}) leave no steps in which the rate falls; their sum"
                " must be below 1"
            )
        return self


class LoggingConfig(Section):
    """Where the numbers of a run go beside metrics.jsonl and TensorBoard."""

    wandb: str | None = None  # project of Weights & Biases; needs the extra "wandb"


class Config(Section):
    """A run."""

    seed: Annotated[int, Field(ge=0, lt=2**63, strict=True)] = 0
    classes: Annotated[tuple[ClassConfig, ...], Field(min_length=1)]
    data: DataConfig = DataConfig()
    augmentation: AugmentationConfig = AugmentationConfig()
    model: ModelConfig
    multitask: MultitaskConfig = MultitaskConfig()
    loss: LossConfig = LossConfig()
    training: TrainingConfig
    decode: DecodeConfig = DecodeConfig()
    logging: LoggingConfig = LoggingConfig()

    @model_validator(mode="after")
    def _classes_are_apart(self) -> "Config":
        types = [object_type for item in self.classes for object_type in item.types]
        if len(types) != len(set(types)):
            raise ValueError("classes: an object type belongs to one class only")
        if ObjectType.UNKNOWN in types:
            raise ValueError("classes: UNKNOWN marks padding and can't be a class")
        return self

    @model_validator(mode="after")
    def _loss_counts_once(self) -> "Config":
        method: Any = self.multitask.method
        while method is not None and not isinstance(method, str):
            if method.kind == "uncertainty" and self.training.accumulation > 1:
                raise ValueError(
                    "training.accumulation can't be used with multitask.method uncertainty: the term that it adds to"
                    " the loss would count once for each micro-batch"
                )
            method = getattr(method, "then", None)
        return self

    @model_validator(mode="after")
    def _outputs_fit_their_use(self) -> "Config":
        heads, loss = self.model.heads, self.loss
        rectified = [item.name for item in self.classes if item.quality_exponent > 0]
        if rectified and not (heads.predict("quality") and loss.quality_weight > 0):
            raise ValueError(
                f"classes: quality_exponent of {', '.join(rectified)} needs a quality that is learnt; add quality to"
                " model.heads.classification and give loss.quality_weight, or set the exponent to 0"
            )
        if heads.predict("velocity") and self.data.sweeps == 1:
            raise ValueError(
                "model.heads: velocity can't be told from a single sweep; set data.sweeps above 1 or leave it out"
            )
        if loss.iou_weight > 0 and not {"offset", "height", "size"} & set(heads.box):
            raise ValueError(
                "loss.iou_weight is a loss of the box head, which predicts none of offset, height and size; set it to 0"
            )
        return self

    @model_validator(mode="after")
    def _mirrored_range_is_the_range(self) -> "Config":
        low, high = self.model.point_range[:2], self.model.point_range[3:5]
        for axis, views in enumerate((("flip_y", "flip_both"), ("flip_x", "flip_both"))):
            mirrored = [view for view in self.decode.views if view in views]
            if mirrored and low[axis] != -high[axis]:
                raise ValueError(
                    f"decode.views: {mirrored[0]} mirrors {'xy'[axis]}, but model.point_range goes from {low[axis]:g}"
                    f" to {high[axis]:g} m there; make it symmetric or leave the view out"
                )
        return self

    @model_validator(mode="after")
    def _something_is_augmented(self) -> "Config":
        last = {"augmentation": self.augmentation.off_for_last_steps}
        if self.augmentation.objects is not None:
            last["augmentation.objects"] = self.augmentation.objects.off_for_last_steps
        for name, steps in last.items():
            if steps and self.training.epochs:
                raise ValueError(f"{name}.off_for_last_steps: training is stated in epochs; give off_for_last_share")
            if steps > self.training.steps:
                raise ValueError(
                    f"{name}.off_for_last_steps is {steps}, more than the {self.training.steps} training.steps"
                )
        return self

    def in_steps(self, frames: int) -> "Config":
        """Return the config with the training's length in steps, whichever way it was stated.

        Args:
            frames: of an epoch, after `data.every` and `data.sampling`.
        """
        if self.training.steps:
            return self
        samples = round(self.training.epochs * frames, 6)  # 1.1 * 100 is a little more than 110
        steps = max(1, math.ceil(samples / self.training.batch_size))
        training = self.training.model_copy(update={"steps": steps, "epochs": 0.0})
        return self.model_copy(update={"training": training})

    @model_validator(mode="after")
    def _evaluations_have_data(self) -> "Config":
        if self.training.evaluate_every and self.data.validation is None:
            raise ValueError(
                f"training.evaluate_every is {self.training.evaluate_every}, but data.validation is not set; give the"
                " folder of a prepared store, or 0"
            )
        return self

    @model_validator(mode="after")
    def _objects_fit(self) -> "Config":
        objects, names = self.augmentation.objects, [item.name for item in self.classes]
        if objects is None:
            return self
        unknown = [name for name in objects.totals if name not in names]
        if unknown:
            raise ValueError(
                f"augmentation.objects.totals: no class {', '.join(unknown)}; classes are {', '.join(names)}"
            )
        if self.data.sweeps > 1:
            raise ValueError(
                f"augmentation.objects can't be used with data.sweeps {self.data.sweeps}: an object of a single sweep"
                " among points of several would be told by that"
            )
        return self
