"""Which of the three heads predicts what."""

from typing import Annotated, Literal, get_args

from pydantic import Field, model_validator

from detection3d.config.section import Section

Output = Literal["heatmap", "quality", "offset", "height", "size", "velocity", "heading"]
OPTIONAL: tuple[Output, ...] = ("quality", "velocity")
REQUIRED: tuple[Output, ...] = tuple(name for name in get_args(Output) if name not in OPTIONAL)

Outputs = Annotated[tuple[Output, ...], Field(min_length=1)]


class HeadsConfig(Section):
    """The outputs of each task's head, in the order of its channels. An output's loss reaches its own head alone."""

    classification: Outputs = ("heatmap",)  # and "quality": how well the cell's box overlaps its object
    box: Outputs = ("offset", "height", "size")  # and "velocity", for data.sweeps above 1
    orientation: Outputs = ("heading",)

    @model_validator(mode="after")
    def _each_output_has_one_head(self) -> "HeadsConfig":
        named = [output for outputs in self.by_task().values() for output in outputs]
        twice = sorted({output for output in named if named.count(output) > 1})
        if twice:
            raise ValueError(f"{', '.join(twice)} is predicted twice; give each output to one head")
        missing = [output for output in REQUIRED if output not in named]
        if missing:
            raise ValueError(f"no head predicts {', '.join(missing)}; add it to one")
        return self

    def by_task(self) -> dict[str, tuple[Output, ...]]:
        """Return the outputs of each task, in the order of the tasks."""
        return {"classification": self.classification, "box": self.box, "orientation": self.orientation}

    def predict(self, output: Output) -> bool:
        """Tell whether any head predicts this output."""
        return any(output in outputs for outputs in self.by_task().values())
