"""A command's start: what it imports takes seconds, in which Ctrl-C is no fault of the program's."""

from __future__ import annotations

import sys
from importlib import import_module

from .ending import exit_code, heed_signals
from .ranks import speaks


def start(module: str) -> None:
    """Run a module's `command`. Ctrl-C, SIGTERM and SIGHUP end it in one line, from its first import on."""
    heed_signals()
    try:
        import_module(module).command()
    except KeyboardInterrupt as interrupt:
        if speaks():
            print("error: stopped", file=sys.stderr)
        sys.exit(exit_code(interrupt))
