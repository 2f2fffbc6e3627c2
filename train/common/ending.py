"""Signals that end a command as Ctrl-C does: in one line, once what it started has ended too."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

ENDING = (signal.SIGTERM, signal.SIGHUP)  # of a scheduler or `timeout`, and of a terminal that is closed


class Interrupted(KeyboardInterrupt):
    """number: of the signal."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


def exit_code(interrupt: KeyboardInterrupt) -> int:
    """As a shell tells it: 130 for Ctrl-C, 143 for SIGTERM, 129 for SIGHUP."""
    return 128 + (interrupt.number if isinstance(interrupt, Interrupted) else signal.SIGINT)


def is_ignored(number: int) -> bool:
    """As `nohup` has SIGHUP: the commands that it starts are to outlive their terminal."""
    return signal.getsignal(number) == signal.SIG_IGN


def heed_signals() -> None:
    """From now on SIGTERM and SIGHUP raise Interrupted, but one that is ignored."""
    for number in ENDING:
        if not is_ignored(number):
            signal.signal(number, _interrupt)


def _interrupt(number: int, frame: FrameType | None) -> NoReturn:
    """Once: launchers repeat them, and a second one would cut short what the first one ends."""
    for one in ENDING:
        signal.signal(one, signal.SIG_IGN)
    raise Interrupted(number)


@contextmanager
def undisturbed() -> Iterator[None]:
    """No signal cuts short what is done meanwhile, an impatient second Ctrl-C among them."""
    before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, *ENDING)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
