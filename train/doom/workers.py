"""Processes that draw reels, each with games of its own.

Not a data loader's, in which the game dies: they are started anew, and not forked.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import tempfile
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from pathlib import Path

from ..common.ending import undisturbed
from ..common.work import progress_bar
from ..stopping import signals_blocked
from .reels import Reel, film_reel
from .settings import Settings

MOST_FILES = 64  # that a process has open when it begins; a few


def film_all(reels: list[Reel], settings: Settings, out: Path, workers: int) -> None:
    """Draw reels. Raises ValueError where a process was killed, or the game ended, which leaves what is done."""
    if not reels:
        return
    workers = min(workers, len(reels))
    folder = tempfile.TemporaryDirectory(prefix="train-doom-", ignore_cleanup_errors=True)
    with folder as scratch, progress_bar() as progress:
        bar = progress.add_task("clips", total=sum(len(reel.actions) for reel in reels))
        with signals_blocked():  # else a SIGHUP to all meets its resource tracker, whose end shows tracebacks
            pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _begin, (scratch,))
        try:
            with signals_blocked():  # else Ctrl-C meets processes that have not begun, and each shows a traceback
                filmed = {pool.submit(_film, reel, settings, out.absolute()): reel for reel in reels}
            for done in as_completed(filmed):
                done.result()
                progress.advance(bar, len(filmed.pop(done).actions))
        except BrokenProcessPool:
            raise ValueError("a process that draws was killed: the same command goes on where it was") from None
        finally:
            with undisturbed():
                pool.shutdown(cancel_futures=True)
                _end_games(scratch)


def _end_games(scratch: str) -> None:
    """Of processes that were killed: their games live on. They are told by the folder of their settings, on Linux."""
    for command in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            if f"-config\0{scratch}/".encode() in command.read_bytes():
                os.kill(int(command.parent.name), signal.SIGKILL)


def _begin(scratch: str) -> None:
    """The game writes its settings into the current folder. Ctrl-C is for the process that waits.

    A game outlives a process that is killed: were files of this one its own too, those who wait for their end would
    not see it.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())  # blocked until here
    with open(os.devnull, "w") as nowhere:
        for number in (1, 2):
            os.dup2(nowhere.fileno(), number)
    for number in range(3, MOST_FILES):
        with suppress(OSError):
            os.set_inheritable(number, False)
    os.chdir(tempfile.mkdtemp(dir=scratch))


def _film(reel: Reel, settings: Settings, out: Path) -> None:
    from vizdoom import ViZDoomUnexpectedExitException

    try:
        film_reel(reel, settings, out)
    except ViZDoomUnexpectedExitException:
        raise ValueError(f"the game ended in {reel.level.name}: the same command goes on where it was") from None
    except OSError as error:
        raise ValueError(f"{out} can't be written ({error}): the same command goes on where it was") from None
