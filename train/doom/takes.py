"""One take of a clip: the player gets somewhere off camera, then does one thing throughout."""

from __future__ import annotations

import random
from math import atan2, cos, degrees, hypot, pi, radians, sin
from typing import TYPE_CHECKING

import numpy as np

from .actions import Action
from .levels import Door, Level
from .player import SETTLE, WEAPONS, Player, Press, State
from .walls import measure_room

if TYPE_CHECKING:
    from jaxtyping import UInt8

REACH = 56  # units from which a door is opened
WIDE = 16  # units from a player's middle to its edge
FREE = 0.6  # of the way that a player would go if nothing stood in it
VIEW = 96  # units of room to see something
MARGIN = 48  # units of room beyond the way that is gone
SEARCHES, HEADINGS = 12, 8  # places looked at for room, and directions in each
STILL = 0.4  # mean difference of two frames' pixels, in 0..255, below which nothing has moved


class Retake(Exception):
    """Why a clip has to be taken again, in a word or two."""


def take(
    player: Player, level: Level, action: Action, frames: int, tics: int, generator: random.Random
) -> UInt8[np.ndarray, "f h w 3"]:
    """A clip of `frames` frames, one every `tics` tics. Raises Retake."""
    door = generator.choice(level.doors) if action.opens else None
    hand = Hand(action, tics, generator, door)
    if door:
        _go_before(player, door, generator.uniform(80, 112))
    else:
        _wander(player, level, hand.needs(tics * frames), generator)
    weapon = generator.choice(WEAPONS)
    player.press(Press(weapons=tuple(key == weapon for key in WEAPONS)), seen=False)
    player.press(Press(), SETTLE)
    if not door:
        player.press(hand.press(player.state(), 0)._replace(attack=False, next_weapon=False), 6)  # into its stride
    return _film(player, hand, frames)


def _go_before(player: Player, door: Door, away: float) -> None:
    heading = radians(door.heading)
    player.move_to(door.x - away * cos(heading), door.y - away * sin(heading), door.heading)


def _wander(player: Player, level: Level, needs: list[tuple[float, float]], generator: random.Random) -> None:
    """Off camera, from a spot of the level a few steps anywhere, until there is room for what is to be done.

    needs: degrees from where the clip begins to look, and units of room there. Raises Retake where there is none.
    """
    for _ in range(SEARCHES):
        if level.spots:
            player.move_to(*generator.choice(level.spots))
        for _ in range(generator.randint(1, 3)):
            player.press(Press(turn=generator.uniform(-120, 120)), seen=False)
            player.press(Press(forward=25), generator.randint(6, 20), seen=False)
        player.press(Press())
        if player.over:
            raise Retake("left the level")
        x, y, angle, *_ = player.state()
        for _ in range(HEADINGS):
            heading = angle + generator.uniform(0, 360)
            if all(measure_room(level.walls, x, y, heading + way) >= room for way, room in needs):
                player.turn_to(heading)
                return
    raise Retake("no room")


class Hand:
    """What is pressed for an action, with small variations by chance."""

    def __init__(self, action: Action, tics: int, generator: random.Random, door: Door | None) -> None:
        self.action, self.tics, self.door = action, tics, door
        self.speed = generator.uniform(10, 20)
        self.turn = generator.uniform(1.2, 2.4)
        self.sway, self.phase = generator.uniform(0.1, 0.3), generator.uniform(0, 2 * pi)
        self.switch = generator.randint(22, 26)  # tics from weapon to weapon
        self.opened = False

    def press(self, state: State, tic: int) -> Press:
        action = self.action
        sway = 0.0 if action.turn else self.sway * sin(0.12 * tic + self.phase)
        return Press(
            forward=self.speed * action.forward,
            side=self.speed * action.side,
            turn=self.turn * action.turn + sway,
            attack=action.shoots,
            use=self._uses(state),
            next_weapon=action.switches and (tic - self.tics) % self.switch < self.tics,
        )

    def _uses(self, state: State) -> bool:
        """Once: a door that is used again closes."""
        if self.opened or self.door is None or beyond(self.door, state) < -REACH:
            return False
        self.opened = True
        return True

    def expected(self, tics: int) -> float:
        """Units that one gets in so many tics where nothing is in the way."""
        return self.speed / 3 * tics if self.action.forward or self.action.side else 0.0

    def needs(self, tics: int) -> list[tuple[float, float]]:
        """Room to go, if one goes, and to see something in the first view and in the middle one."""
        course = degrees(atan2(-self.action.side, self.action.forward))
        turned = -self.turn * self.action.turn * tics
        return [(course, self.expected(tics) + MARGIN), (0.0, VIEW), (turned / 2, VIEW)]


def beyond(door: Door, state: State) -> float:
    """Units that the player is behind a door's line; negative in front of it."""
    heading = radians(door.heading)
    return (state.x - door.x) * cos(heading) + (state.y - door.y) * sin(heading)


def _film(player: Player, hand: Hand, frames: int) -> UInt8[np.ndarray, "f h w 3"]:
    if player.over:
        raise Retake("left the level")
    states, pictures = [player.state()], [player.look()]
    while len(pictures) < frames:
        _press(player, hand.press(states[-1], hand.tics * len(states)), hand.tics)
        if player.over:
            raise Retake("left the level")
        states.append(player.state())
        pictures.append(player.look())
        if not hand.door:
            _check_way(hand, states)
    _check_done(hand, states)
    _check_motion(pictures)
    return np.stack(pictures)


def _press(player: Player, press: Press, tics: int) -> None:
    """With the key for another weapon pressed in the first tic alone: each tic of it would count."""
    if press.next_weapon and tics > 1:
        player.press(press, seen=False)
        press, tics = press._replace(next_weapon=False), tics - 1
    player.press(press, tics)


def _check_way(hand: Hand, states: list[State]) -> None:
    """Raises Retake when the player has been stopped, so early that little time is lost."""
    if len(states) % 8 == 0:
        went = hypot(states[-1].x - states[-8].x, states[-1].y - states[-8].y)
        if went < FREE * hand.expected(7 * hand.tics):
            raise Retake("stuck")


def _check_done(hand: Hand, states: list[State]) -> None:
    """Raises Retake when the action can't be seen."""
    first, last = states[0], states[-1]
    if hand.door and beyond(hand.door, last) < 1 - WIDE:
        raise Retake("the door stayed shut")
    if hand.action.shoots and last.ammunition >= first.ammunition:
        raise Retake("no shot")
    if hand.action.switches is (len({state.weapon for state in states}) < 2):
        raise Retake("no other weapon" if hand.action.switches else "another weapon")


def _check_motion(pictures: list[UInt8[np.ndarray, "h w 3"]]) -> None:
    """Raises Retake unless something moves from most frames to the next."""
    pairs = zip(pictures, pictures[1:], strict=False)
    moved = [np.abs(a.astype(np.int16) - b).mean() for a, b in pairs]
    if np.median(moved) < STILL:
        raise Retake("nothing moves")
