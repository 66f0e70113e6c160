"""The metrics' configuration as Waymo's own `Config` message, and from its text form.

The message is that of metrics.proto; its text form is what Waymo's tools and papers pass around (`*.textproto`).
"""

from pathlib import Path

from google.protobuf import text_format

from detection3d.errors import DataError, UserError
from detection3d.evaluation.breakdowns import BREAKDOWNS, Breakdown
from detection3d.evaluation.metric_config import MetricConfig
from detection3d.protos import waymo_pb2


def read_metric_config(path: Path | str) -> MetricConfig:
    """Read a configuration from Waymo's text format.

    Args:
        path: the file, a `Config` message as text.

    Returns:
        The configuration.

    Raises:
        DataError: it isn't such a message, with the line; or it asks for what these metrics don't do.
    """
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UserError(f"{path}: can't be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise DataError(path, f"not a text file ({error}); give Waymo's Config message as text") from error
    message = waymo_pb2.Config()
    try:
        text_format.Parse(text, message)
    except text_format.ParseError as error:
        raise DataError(path, f"not Waymo's metrics Config as text: line {error}") from error
    try:
        return config_of_message(message)
    except UserError as error:
        raise DataError(path, str(error)) from error


def config_of_message(message: waymo_pb2.Config) -> MetricConfig:
    """Return the configuration that a message describes.

    Args:
        message: Waymo's Config.

    Returns:
        The configuration. Numbers are as float32 holds them.

    Raises:
        UserError: it leaves out what the official program needs, or asks for what these metrics don't do.
    """
    matcher = waymo_pb2.MatcherProto.Type.Name(message.matcher_type)
    if message.matcher_type != waymo_pb2.MatcherProto.TYPE_HUNGARIAN:
        raise UserError(f"matcher_type is {matcher}; these metrics do TYPE_HUNGARIAN, which the benchmark uses")
    if message.box_type != waymo_pb2.Config.TYPE_3D:
        kind = waymo_pb2.Config.BoxType.Name(message.box_type)
        raise UserError(f"box_type is {kind}; these metrics do TYPE_3D")
    if message.let_metric_config.enabled:
        raise UserError("let_metric_config is enabled; these metrics don't do LET-3D-AP, which is for cameras")
    if message.include_details_in_measurements:
        raise UserError("include_details_in_measurements is set; these metrics give no details; remove it")
    splits = tuple(_breakdown(number) for number in message.breakdown_generator_ids)
    if len(message.difficulties) != len(splits):
        raise UserError(
            f"{len(splits)} breakdown_generator_ids, but {len(message.difficulties)} difficulties; give one for each"
        )
    levels = tuple(tuple(item.levels) or (waymo_pb2.Label.LEVEL_2,) for item in message.difficulties)
    same = len(set(levels)) == 1
    return MetricConfig(
        breakdowns=splits,
        levels=levels[0] if same else MetricConfig.levels,
        levels_by_breakdown=() if same else levels,
        iou_thresholds=tuple(message.iou_thresholds),
        score_cutoffs=tuple(message.score_cutoffs),
        desired_cutoffs=message.num_desired_score_cutoffs,
        recall_step=message.desired_recall_delta,
        min_precision=message.min_precision,
        min_heading_accuracy=message.min_heading_accuracy,
    )


def message_of_config(config: MetricConfig) -> waymo_pb2.Config:
    """Return the message that describes a configuration."""
    return waymo_pb2.Config(
        score_cutoffs=config.score_cutoffs,
        num_desired_score_cutoffs=config.desired_cutoffs or None,
        breakdown_generator_ids=[split.name for split in config.breakdowns],
        difficulties=[
            waymo_pb2.Difficulty(levels=[waymo_pb2.Label.DifficultyLevel.Name(level) for level in config.levels_of(k)])
            for k in range(len(config.breakdowns))
        ],
        matcher_type=waymo_pb2.MatcherProto.TYPE_HUNGARIAN,
        iou_thresholds=config.iou_thresholds,
        box_type=waymo_pb2.Config.TYPE_3D,
        desired_recall_delta=config.recall_step,
        min_precision=config.min_precision,
        min_heading_accuracy=config.min_heading_accuracy,
    )


def _breakdown(number: int) -> Breakdown:
    name = waymo_pb2.Breakdown.GeneratorId.Name(number)  # type: ignore[arg-type]  # the stub asks for its own int
    if name not in BREAKDOWNS:
        raise UserError(f"breakdown {name} is none of those that these metrics do: {', '.join(BREAKDOWNS)}")
    return BREAKDOWNS[name]
