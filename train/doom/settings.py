"""What a folder of clips is drawn with."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from fps_flex.checks import require, show

from ..common.atomic import write_json

RECORD = "doom.json"  # in a folder: what it was drawn with
METADATA = "metadata.jsonl"  # the last file of a finished folder
TICS = 35  # of the game, in a second
LICENCE = "Freedoom's levels, pictures and monsters: BSD 3-clause, https://freedoom.github.io"
INSTALL = 'the game is not installed: pip install ".[study]"'
MOST_SIDE = {"height": 720, "width": 1280}


@dataclass(frozen=True)
class Settings:
    """All but workers that train.doom was told; __main__.py says what each is. Raises ValueError for what can't be."""

    clips: int
    val_clips: int
    seed: int
    frames: int
    fps: float
    height: int
    width: int
    levels_held_out: int

    def __post_init__(self) -> None:
        for name in ("clips", "val_clips"):
            require(f"--{name}", getattr(self, name), least=1, most=1_000_000)
        require("--seed", self.seed, least=0, below=2**32)
        require("--frames", self.frames, least=2, most=1000)
        require("--fps", self.fps, least=1, most=TICS)
        for name, most in MOST_SIDE.items():
            require(f"--{name}", getattr(self, name), least=16, most=most)
            if getattr(self, name) % 2:
                raise ValueError(f"--{name} is {getattr(self, name)}, expected an even number of pixels")
        require("--levels_held_out", self.levels_held_out, least=1)

    @property
    def tics(self) -> int:
        """Tics of the game from frame to frame: whole ones, so that motion is even."""
        return max(1, round(TICS / self.fps))

    def describe(self) -> dict[str, Any]:
        made_by = {f"{name}_version": version(name) for name in ("vizdoom", "av")}
        return asdict(self) | {"tics_per_frame": self.tics, **made_by, "licence": LICENCE}


def begin(out: Path, settings: Settings) -> None:
    """Write down what a folder is drawn with. Raises ValueError for one that was drawn with anything else."""
    record, file = settings.describe(), out / RECORD
    if not file.is_file():
        other = sorted(path.name for path in out.iterdir() if not path.name.startswith("."))
        if other:
            raise ValueError(f"{out} holds {other[0]}, which train.doom didn't draw: choose another --out")
        write_json(file, record)
        return
    try:
        before = json.loads(file.read_text(encoding="utf-8"))
    except ValueError:
        before = None
    if not isinstance(before, dict):
        raise ValueError(f"{file} is broken, and says no longer what {out} was drawn with: choose another --out")
    for name, value in record.items():
        was = before.get(name)
        if was != value:
            raise ValueError(f"{out} was drawn with {name} {show(was)}, now {show(value)}: choose another --out")
