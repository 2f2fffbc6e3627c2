"""A command's start: what it imports takes seconds, in which Ctrl-C is no fault of the program's."""

from __future__ import annotations

import signal
import sys
from importlib import import_module
from typing import NoReturn


def start(module: str) -> None:
    """Run a module's `command`. Ctrl-C and SIGTERM end it in one line, from its first import on."""
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        import_module(module).command()
    except KeyboardInterrupt:
        print("error: stopped", file=sys.stderr)
        sys.exit(130)


def _interrupt(*_: object) -> NoReturn:
    raise KeyboardInterrupt
