"""The base of the config's sections, and the numbers that they hold."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Probability = Annotated[float, Field(ge=0, le=1)]
# Strict: "true" and "2.0" are no counts. Numbers with a point are lax, since YAML takes 1e-3 for a word.
PositiveInt = Annotated[int, Field(gt=0, strict=True)]
NonNegativeInt = Annotated[int, Field(ge=0, strict=True)]


class Section(BaseModel):
    """Base of every part of the tree: immutable, no key that it does not know, and no infinite number."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False)
