"""The levels that come with vizdoom: Freedoom's, read from its WAD files."""

from __future__ import annotations

import random
import re
import struct
from dataclasses import dataclass
from math import atan2, degrees, hypot
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from .walls import find_walls

if TYPE_CHECKING:
    from jaxtyping import Float

WADS = ("freedoom1", "freedoom2")
PARTS = ("THINGS", "LINEDEFS", "SIDEDEFS", "VERTEXES", "SECTORS")
MAP = re.compile(r"E\dM\d|MAP\d\d")
# types of things: what turns the picture red or green for a while, a lamp, a barrel
APART = {2022, 2023, 2024, 2025, 2045, 2028, 2035}
# those that lie where a player can stand: starts, keys, weapons, ammunition, health
PICKED_UP = {1, 2, 3, 4, 5, 6, 8, 11, 13, 17, 38, 39, 40, 82} | set(range(2001, 2050)) - APART
DOORS = {1, 31, 117, 118}  # special types of lines: doors that open by hand, without a key


@dataclass(frozen=True)
class Door:
    """The middle of its line in units of the map, and the direction in degrees in which one goes through."""

    x: float
    y: float
    heading: float


@dataclass(frozen=True)
class Level:
    """wad: the file's name without its ending. map: its name in there. spots: x and y where one can stand.

    walls: both ends of lines that no player walks over.
    """

    wad: str
    map: str
    spots: tuple[tuple[int, int], ...]
    doors: tuple[Door, ...]
    walls: Float[np.ndarray, "w 2 2"]

    @property
    def name(self) -> str:
        """As captions say it."""
        return f"{self.wad} {self.map.lower()}"


def list_levels(folder: Path) -> list[Level]:
    """Of both WADs in the folder of vizdoom's package, in their order. Raises ValueError where one is missing."""
    levels = []
    for wad in WADS:
        file = folder / f"{wad}.wad"
        if not file.is_file():
            raise ValueError(f"no {file}: install vizdoom again, whose wheel holds it")
        levels += [_read_level(wad, name, parts) for name, parts in _read_maps(file.read_bytes()).items()]
    return levels


def share_out(levels: list[Level], held_out: int, seed: int) -> dict[str, list[Level]]:
    """The levels of each split, by chance from the seed: `held_out` of them are never trained on."""
    mixed = random.Random(f"levels {seed}").sample(levels, len(levels))
    return {"train": mixed[held_out:], "val": mixed[:held_out]}


def _read_maps(data: bytes) -> dict[str, dict[str, bytes]]:
    """The parts of each map that are read here, from a WAD's directory of lumps: offset, size, name."""
    count, start = struct.unpack_from("<ii", data, 4)
    maps: dict[str, dict[str, bytes]] = {}
    parts: dict[str, bytes] = {}
    for offset, size, raw in struct.iter_unpack("<ii8s", data[start : start + 16 * count]):
        name = raw.rstrip(b"\0").decode("latin-1")
        if MAP.fullmatch(name):
            parts = maps.setdefault(name, {})
        elif name in PARTS:
            parts.setdefault(name, data[offset : offset + size])
    return maps


def _read_level(wad: str, name: str, parts: dict[str, bytes]) -> Level:
    things = struct.iter_unpack("<hhhHH", parts["THINGS"])
    spots = tuple((x, y) for x, y, _, kind, _ in things if kind in PICKED_UP)
    corners = np.frombuffer(parts["VERTEXES"], "<i2").reshape(-1, 2)
    lines = list(struct.iter_unpack("<7H", parts["LINEDEFS"]))
    doors = tuple(_door(*corners[[a, b]].tolist()) for a, b, _, kind, *_ in lines if kind in DOORS)
    return Level(wad, name, spots, doors, find_walls(lines, corners, parts["SIDEDEFS"], parts["SECTORS"]))


def _door(start: list[int], end: list[int]) -> Door:
    """A door's line has whoever may open it on its right."""
    along, up = end[0] - start[0], end[1] - start[1]
    length = hypot(along, up) or 1.0
    return Door((start[0] + end[0]) / 2, (start[1] + end[1]) / 2, degrees(atan2(along / length, -up / length)))
