"""Which clips are drawn, and one reel of them: clips of a level from one game, the unit that a stopped run repeats."""

from __future__ import annotations

import logging
import os
import random
from collections import Counter
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np

from ..common.atomic import write_json
from ..common.videos import encode_pictures
from .actions import ACTIONS, write_caption
from .levels import Level
from .player import Player, playing
from .settings import Settings
from .takes import Retake, take

if TYPE_CHECKING:
    from jaxtyping import UInt8

REELS = ".reels"  # folder of what is known of finished reels, and of clips of the others, until all are
PER_REEL = 8  # clips at most: starting the game takes as long as some ten clips
TAKES = 12  # of an action, before the clip gets another one
GAMES = 5  # in which a reel is begun, before its level counts as one in which nothing can be filmed
# 40 dB and more for most clips; with less colour (yuv420p) no crf has it. A key frame in eight: a short cut from the
# middle is decoded from there
QUALITY = {"preset": "ultrafast", "crf": "8", "g": "8"}

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Reel:
    """name: of its record. first: number of its first clip in the split. actions: of each of its clips."""

    name: str
    split: str
    level: Level
    first: int
    actions: tuple[str, ...]

    @property
    def videos(self) -> list[str]:
        """Paths of its clips in the folder."""
        return [f"{self.split}/{self.first + i:06}.mp4" for i in range(len(self.actions))]

    def record(self, out: Path) -> Path:
        return out / REELS / f"{self.name}.json"

    def is_done(self, out: Path) -> bool:
        return self.record(out).is_file() and self.has_videos(out)

    def has_videos(self, out: Path) -> bool:
        return all((out / video).is_file() for video in self.videos)


def plan_reels(settings: Settings, levels: dict[str, list[Level]]) -> list[Reel]:
    """The levels of each split in turn, and the actions in blocks in which each comes once."""
    return [
        reel
        for split, count in (("train", settings.clips), ("val", settings.val_clips))
        for reel in _plan_split(split, count, levels[split], settings.seed)
    ]


def _plan_split(split: str, count: int, levels: list[Level], seed: int) -> list[Reel]:
    generator = random.Random(f"plan {split} {seed}")
    blocks = (generator.sample([*ACTIONS], len(ACTIONS)) for _ in range(ceil(count / len(ACTIONS))))
    actions = [action for block in blocks for action in block][:count]
    length = max(1, min(PER_REEL, count // len(levels)))
    return [
        Reel(f"{split}-{i:06}", split, levels[i % len(levels)], first, tuple(actions[first : first + length]))
        for i, first in enumerate(range(0, count, length))
    ]


def film_reel(reel: Reel, settings: Settings, out: Path) -> None:
    """Draw a reel's clips, then write its record: their rows of the metadata, how many takes failed, by why, and how
    many clips got another action than planned.

    Raises ValueError for a level in which nothing can be filmed.
    """
    failed = Counter[str]()
    for game in range(GAMES):
        again = f" game {game}" if game else ""  # in a rare game no take of a clip succeeds, whatever is done
        if rows := _play(reel, settings, out, random.Random(f"reel {reel.name} {settings.seed}{again}"), failed):
            replaced = sum(row["action"] != planned for row, planned in zip(rows, reel.actions, strict=True))
            write_json(reel.record(out), {"clips": rows, "failed": failed, "replaced": replaced})
            return
    why = ", ".join(failed)
    raise ValueError(f"nothing can be filmed in {reel.level.name}: {why}; choose another --seed or --frames")


def _play(
    reel: Reel, settings: Settings, out: Path, generator: random.Random, failed: Counter[str]
) -> list[dict[str, Any]] | None:
    """A game in which a reel's clips are drawn: their rows. None, and no clip is left, where one can't be."""
    skill, game_seed = generator.randint(1, 4), generator.getrandbits(31)
    size, rows = (settings.height, settings.width), []
    with TemporaryDirectory(dir=out / REELS) as aside, playing(reel.level, skill, game_seed, size) as player:
        places = {video: Path(aside, Path(video).name) for video in reel.videos}
        for (video, place), planned in zip(places.items(), reel.actions, strict=True):
            if (filmed := _film(player, reel.level, planned, settings, generator, failed)) is None:
                return None
            action, pictures = filmed
            _write(place, pictures, settings.fps)
            rows.append(_row(video, reel, action, skill))
        for video, place in places.items():
            os.replace(place, out / video)
    return rows


def _row(video: str, reel: Reel, action: str, skill: int) -> dict[str, Any]:
    level = reel.level.name
    caption = write_caption(level, action)
    told = {"video": video, "caption": caption, "split": reel.split, "source": level}
    return told | {"action": action, "skill": skill}


def _film(
    player: Player, level: Level, planned: str, settings: Settings, generator: random.Random, failed: Counter[str]
) -> tuple[str, UInt8[np.ndarray, "f h w 3"]] | None:
    """(action, clip): the planned action, or another where that can't be done in this level; None where none can."""
    others = [action for action in ACTIONS if action != planned]
    for name in (planned, *generator.sample(others, len(others))):
        action = ACTIONS[name]
        if action.opens and not level.doors:
            continue
        for _ in range(TAKES):
            player.start() if player.over else player.equip()
            try:
                return name, take(player, level, action, settings.frames, settings.tics, generator)
            except Retake as why:
                failed[str(why)] += 1
    return None


def _write(path: Path, pictures: UInt8[np.ndarray, "f h w 3"], fps: float) -> None:
    encode_pictures(path, pictures, fps, "yuv444p", QUALITY, threads=1)
