"""A part of a picture."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Box:
    """A rectangle, in fractions of the picture's height and width from its top left corner.

    Raises ValueError when it is empty or leads out of the picture.
    """

    top: float
    bottom: float
    left: float
    right: float

    def __post_init__(self) -> None:
        if not (0 <= self.top < self.bottom <= 1 and 0 <= self.left < self.right <= 1):
            raise ValueError(f"{self}: expected 0 <= top < bottom <= 1 and 0 <= left < right <= 1")

    @property
    def height(self) -> float:
        return self.bottom - self.top

    @property
    def width(self) -> float:
        return self.right - self.left


WHOLE = Box(0.0, 1.0, 0.0, 1.0)
