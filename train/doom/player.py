"""The game, played without a window: what is pressed, and what is seen."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import cv2
import numpy as np

from .levels import Level

if TYPE_CHECKING:
    from jaxtyping import UInt8
    from vizdoom import DoomGame, ScreenResolution

# columns and rows that the game can draw, by shape
SCREENS = {
    4 / 3: ((160, 120), (200, 150), (320, 240), (400, 300), (512, 384), (640, 480), (800, 600), (1024, 768)),
    16 / 9: ((256, 144), (320, 180), (400, 225), (512, 288), (640, 360), (800, 450), (1024, 576), (1280, 720)),
}
WEAPONS = (2, 3, 4)  # pistol, shotgun, chaingun, by the keys that take them in hand
TINTING = ("PowerStrength", "PowerIronFeet", "PowerInvulnerable", "PowerLightAmp")
BEGINNING = 10  # tics of a level of which the first few heed nobody
SETTLE = 30  # tics in which a new weapon comes up


class Press(NamedTuple):
    """What is pressed during a tic, in the order of _buttons.

    forward, side: three times the units per tic that one walks in the end. turn: degrees per tic, to the right.
    weapons: the key of each of WEAPONS.
    """

    forward: float = 0
    side: float = 0
    turn: float = 0
    attack: bool = False
    use: bool = False
    next_weapon: bool = False
    weapons: tuple[bool, ...] = (False,) * len(WEAPONS)

    def values(self) -> list[float]:
        *pressed, weapons = self
        return [float(x) for x in (*pressed, *weapons)]


class State(NamedTuple):
    """Where the player is, in units of the map and degrees, and how it is doing."""

    x: float
    y: float
    angle: float
    weapon: int
    ammunition: int


class Player:
    """One who plays a level. Its game must have been started anew for the same presses to give the same pictures."""

    def __init__(self, game: DoomGame, size: tuple[int, int]) -> None:
        self.game, self.size = game, size

    @property
    def over(self) -> bool:
        """Whether the player has died, or left the level."""
        return self.game.is_episode_finished() or self.game.is_player_dead()

    def start(self) -> None:
        """Begin the level; then no blow hurts, which would turn the picture red."""
        if self.game.get_episode_time() > 1:
            self.game.new_episode()
        self.press(Press(), BEGINNING)
        self.game.send_game_command("god")
        self.equip()

    def equip(self) -> None:
        """With all weapons and all that they shoot, and nothing that gives the picture another colour."""
        for power in TINTING:
            self.game.send_game_command(f"take {power}")
        self.game.send_game_command("give all")
        self.press(Press())

    def move_to(self, x: float, y: float, angle: float | None = None) -> None:
        self.game.send_game_command(f"warp {x:.0f} {y:.0f}")
        self.press(Press())
        if angle is not None:
            self.turn_to(angle)

    def turn_to(self, angle: float) -> None:
        if not self.over:
            self.press(Press(turn=(self.state().angle - angle + 180) % 360 - 180))

    def press(self, press: Press, tics: int = 1, seen: bool = True) -> None:
        """seen: whether the screen and the state are to be right afterwards, which takes the time of a drawing."""
        if not self.over:
            self.game.set_action(press.values())
            self.game.advance_action(tics, seen)

    def state(self) -> State:
        from vizdoom import GameVariable as V

        names = (V.POSITION_X, V.POSITION_Y, V.ANGLE, V.SELECTED_WEAPON, V.SELECTED_WEAPON_AMMO)
        x, y, angle, weapon, ammunition = map(self.game.get_game_variable, names)
        return State(x, y, angle, int(weapon), int(ammunition))

    def look(self) -> UInt8[np.ndarray, "h w 3"]:
        """What is on the screen, averaged down to cover the size and cropped at the top, away from the weapon, and at
        both sides."""
        height, width = self.size
        drawn = self.game.get_state().screen_buffer
        scale = max(height / drawn.shape[0], width / drawn.shape[1])
        rows, columns = (max(least, round(n * scale)) for least, n in zip(self.size, drawn.shape[:2], strict=True))
        picture = cv2.resize(drawn, (columns, rows), interpolation=cv2.INTER_AREA)
        left = (columns - width) // 2
        return picture[rows - height :, left : left + width]


def choose_screen(height: int, width: int) -> tuple[int, int]:
    """Columns and rows that are drawn for a picture: twice its own, where the game can, in the shape nearest to it."""
    shape = min(SCREENS, key=lambda ratio: abs(np.log(ratio * height / width)))
    fitting = [screen for screen in SCREENS[shape] if screen[0] >= 2 * width and screen[1] >= 2 * height]
    return fitting[0] if fitting else SCREENS[shape][-1]


@contextmanager
def playing(level: Level, skill: int, seed: int, size: tuple[int, int]) -> Iterator[Player]:
    """A game that has just been started: one that ran before would leave its mark. skill: 1 to 4, as at 5 the
    game takes no commands.
    """
    import vizdoom

    game = vizdoom.DoomGame()
    game.set_doom_game_path(str(Path(vizdoom.__file__).parent / f"{level.wad}.wad"))
    game.set_doom_config_path(os.path.abspath("vizdoom.ini"))
    game.set_doom_map(level.map)
    game.set_doom_skill(skill)
    game.set_seed(seed)
    game.set_episode_timeout(0)
    game.set_window_visible(False)
    game.set_sound_enabled(False)
    game.set_mode(vizdoom.Mode.PLAYER)
    _set_screen(game, choose_screen(*size))
    game.set_available_buttons(_buttons())
    game.init()
    try:
        player = Player(game, size)
        player.start()
        yield player
    finally:
        game.close()


def _set_screen(game: DoomGame, screen: tuple[int, int]) -> None:
    import vizdoom

    resolution: ScreenResolution = getattr(vizdoom.ScreenResolution, f"RES_{screen[0]}X{screen[1]}")
    game.set_screen_resolution(resolution)
    game.set_screen_format(vizdoom.ScreenFormat.RGB24)
    game.set_render_hud(False)
    game.set_render_crosshair(False)
    game.set_render_messages(False)
    game.add_game_args("+cl_showsecretmessage 0")


def _buttons() -> Sequence[object]:
    from vizdoom import Button

    names = (
        *("MOVE_FORWARD_BACKWARD_DELTA", "MOVE_LEFT_RIGHT_DELTA", "TURN_LEFT_RIGHT_DELTA", "ATTACK", "USE"),
        *("SELECT_NEXT_WEAPON", *(f"SELECT_WEAPON{key}" for key in WEAPONS)),
    )
    return [getattr(Button, name) for name in names]
