"""Kinds of numbers that configurations of detectors and methods take."""

from typing import Annotated

from pydantic import AfterValidator, Field


def _rising(value: tuple[float, float]) -> tuple[float, float]:
    if value[0] >= value[1]:
        raise ValueError("expected [low, high] with low < high")
    return value


Count = Annotated[int, Field(ge=1)]
"""How many of something that there must be."""
Whole = Annotated[int, Field(ge=0)]
"""How many of something that may be left out."""
Length = Annotated[float, Field(gt=0)]
"""Metres, or another measure above 0."""
Weight = Annotated[float, Field(ge=0)]
"""Of a term, which 0 leaves out; or a threshold."""
Rising = Annotated[tuple[float, float], AfterValidator(_rising)]
"""From low to high."""
