"""What every part of the station file has in common."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
)

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Millimetres = Annotated[float, Field(ge=0.0)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
"""A part of a topic and of an event's source: letters, digits, dot, dash, underscore."""
ChunkLines = Annotated[
    Annotated[int, Field(ge=1, le=4096), Tag("lines")] | Annotated[Literal["auto"], Tag("auto")],
    # told apart before they are judged: a number that is too large is then one fault, not two
    Discriminator(lambda value: "auto" if value == "auto" else "lines"),
]
QueueFrames = Annotated[int, Field(ge=2, le=4096)]


class Section(BaseModel):
    """A part of the station file. Values are frozen; unknown keys are faults."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
