"""From the heads' maps to boxes."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from detection3d.config.section import PositiveInt, Probability, Section

View = Literal["identity", "flip_x", "flip_y", "flip_both"]


class DecodeConfig(Section):
    """From the heads' maps to boxes."""

    score_threshold: Probability = 0.1  # of the class score, before the quality counts
    local_maxima: bool = False  # candidates are cells that no neighbour of their class surpasses, of the eight
    max_peaks: PositiveInt = 500  # candidates of a frame, over all classes
    max_detections: PositiveInt = 300  # kept of a frame
    # Mirrored scenes that are detected in too, each for the price of one: flip_x is y -> -y, flip_y is x -> -x.
    views: Annotated[tuple[View, ...], Field(min_length=1)] = ("identity",)

    @model_validator(mode="after")
    def _views_differ(self) -> "DecodeConfig":
        if len(set(self.views)) < len(self.views):
            raise ValueError(f"views: {', '.join(self.views)} names one twice; give each once")
        return self
