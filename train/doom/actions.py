"""What a player does in a clip, and the captions that say it, of a small fixed vocabulary."""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Action:
    """One thing that is done throughout a clip.

    forward, side, turn: 1 forward or to the right, -1 backward or to the left, 0 not at all.
    """

    forward: int = 0
    side: int = 0
    turn: int = 0
    shoots: bool = False
    switches: bool = False
    opens: bool = False


ACTIONS = {
    "walks forward": Action(forward=1),
    "walks backward": Action(forward=-1),
    "steps to the left": Action(side=-1),
    "steps to the right": Action(side=1),
    "turns left": Action(turn=-1),
    "turns right": Action(turn=1),
    "shoots": Action(shoots=True),
    "walks forward and shoots": Action(forward=1, shoots=True),
    "turns left and shoots": Action(turn=-1, shoots=True),
    "turns right and shoots": Action(turn=1, shoots=True),
    "switches weapons": Action(switches=True),
    "opens a door": Action(forward=1, opens=True),
}
CAPTION = "{level}: the player {action}"  # level: as "freedoom2 map18"
LEVEL = r"(freedoom[12]) (e[1-4]m[1-9]|map\d\d)"
_PATTERN = re.compile(rf"(?P<level>{LEVEL}): the player (?P<action>{'|'.join(map(re.escape, ACTIONS))})")


def write_caption(level: str, action: str) -> str:
    return CAPTION.format(level=level, action=action)


def read_caption(caption: str) -> tuple[str, str]:
    """Level and action of a caption. Raises ValueError for a text that is none."""
    match = _PATTERN.fullmatch(caption)
    if match is None:
        raise ValueError(
            f"{caption!r} is no caption of train.doom, expected {CAPTION} with one of {', '.join(ACTIONS)}"
        )
    return match["level"], match["action"]
