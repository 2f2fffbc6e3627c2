"""Stops by a signal: a handler only notes it, and all processes act on it together where the state is sound.

That is after a batch, a validation batch or a step of sampling. A handler that did more could come in the middle of an
optimizer step, or on one process while another waits for it.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import torch
import torch.distributed

from .common.ending import is_ignored

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)


class Stopped(Exception):
    """The run was told to stop, and all its processes know. number: of the signal. since: when, by time.monotonic."""

    def __init__(self, number: int, since: float) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.number, self.since = number, since

    def seconds_since(self) -> float:
        return time.monotonic() - self.since

    @property
    def exit_code(self) -> int:
        """As a shell tells it: 130 for Ctrl-C, 143 for SIGTERM, 129 for SIGHUP."""
        return 128 + self.number


class StopRequest:
    """Whether, and since when, this process has been told to stop."""

    def __init__(self) -> None:
        self.number, self.since = 0, 0.0

    @contextmanager
    def restored_after(self) -> Iterator[None]:
        """Puts back the handlers that were there, whatever `listen` has set since."""
        before = {number: signal.getsignal(number) for number in SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def listen(self) -> None:
        """From now on a signal is only noted; a second one changes nothing, since launchers repeat them.

        A SIGHUP that is ignored stays so. A SIGINT doesn't: a script's shell has all that it starts in the background
        ignore it, and whoever sends it there means to stop the run.
        """
        for number in SIGNALS:
            if number != signal.SIGHUP or not is_ignored(number):
                signal.signal(number, self._note)

    def obey(self, device: torch.device) -> None:
        """Raises Stopped on all processes if any has been told to stop: all must call it at the same point."""
        number = self.number
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            told = torch.tensor(number, device=device)
            torch.distributed.all_reduce(told, op=torch.distributed.ReduceOp.MAX)
            number = int(told)
        if number:
            raise Stopped(number, self.since or time.monotonic())

    def _note(self, number: int, frame: FrameType | None) -> None:
        if not self.number:
            self.number, self.since = number, time.monotonic()


@contextmanager
def signals_blocked() -> Iterator[None]:
    """Processes and threads started meanwhile never get the signals that stop a run."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def obey_parent_alone(*_: Any) -> None:
    """In a process started under `signals_blocked`: end when the parent says so, and on nobody else's SIGTERM.

    Who stops a job signals all its processes; loaders that died of it would take the parent's last save with them.
    """
    parent = os.getppid()

    def wait() -> None:
        while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
            pass
        os._exit(0)

    threading.Thread(target=wait, daemon=True, name="obey-parent").start()
