"""What stands in a player's way in a level, by its lines."""

from __future__ import annotations

import struct
from math import cos, radians, sin
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from jaxtyping import Float, Int

STEP = 24  # units that a player steps up
TALL = 56
HALF = 18  # of its width, and a little
IMPASSABLE = 1  # a line's flag
NONE = 0xFFFF  # the number of a side that isn't there


def find_walls(
    lines: list[tuple[int, ...]], corners: Int[np.ndarray, "c 2"], sides: bytes, sectors: bytes
) -> Float[np.ndarray, "w 2 2"]:
    """Both ends of each line that no player walks over when a level begins, a ledge to fall from among them."""
    sector_of_side = [sector for *_, sector in struct.iter_unpack("<hh8s8s8sH", sides)]
    heights = [(floor, ceiling) for floor, ceiling, *_ in struct.iter_unpack("<hh8s8s3h", sectors)]

    def is_open(flags: int, right: int, left: int) -> bool:
        if flags & IMPASSABLE or NONE in (right, left):
            return False
        (floor, ceiling), (other_floor, other_ceiling) = (heights[sector_of_side[side]] for side in (right, left))
        return abs(floor - other_floor) <= STEP and min(ceiling, other_ceiling) - max(floor, other_floor) >= TALL

    shut = [(a, b) for a, b, flags, _, _, right, left in lines if not is_open(flags, right, left)]
    return corners[np.array(shut, int).reshape(-1, 2)].astype(float)


def measure_room(walls: Float[np.ndarray, "w 2 2"], x: float, y: float, heading: float) -> float:
    """Units that one can walk from a place, in a direction in degrees, before a wall."""
    along = np.array([cos(radians(heading)), sin(radians(heading))])
    across = np.array([-along[1], along[0]])
    starts = np.array([x, y]) + across * np.array([[-HALF], [0], [HALF]])
    edges, to_wall = walls[:, 1] - walls[:, 0], walls[None, :, 0] - starts[:, None]
    with np.errstate(divide="ignore", invalid="ignore"):
        slant = _cross(along, edges)
        distance, share = _cross(to_wall, edges) / slant, _cross(to_wall, along) / slant
    met = (distance >= 0) & (share >= 0) & (share <= 1)
    return float(distance[met].min(initial=np.inf))


def _cross(a: Float[np.ndarray, "... 2"], b: Float[np.ndarray, "... 2"]) -> Float[np.ndarray, "..."]:
    return a[..., 0] * b[..., 1] - a[..., 1] * b[..., 0]
