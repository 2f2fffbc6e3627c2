"""What one process of several says to the others when it fails alone, and how they hear it while they wait for it."""

from __future__ import annotations

import os
import sys
import threading
import time
from datetime import timedelta

import torch.distributed as dist
from lightning.fabric.plugins.environments import LightningEnvironment
from lightning.pytorch import Trainer

from .common.work import tells_of_a_lost_process

FAILED = "fps_flex/failed"
LOOK_EVERY = 0.5  # seconds
ELSEWHERE = "another process of this run failed: its own line says why"
FIRST_IS_GONE = "the first process of this run is gone: its own line says why, unless it was killed"
GRACE = 30.0  # seconds to save and end in
ROLL_CALL, HERE = "fps_flex/roll-call", "fps_flex/here"
TIMED_OUT = ("Timed out", "timed out", "timeout")  # gloo, NCCL, the store
ANSWER_WITHIN = 10.0  # seconds


class Peers:
    """The processes of a run, once they have found each other. Does nothing where there is one alone.

    A process that fails leaves the others waiting in a collective that it will never join. So it says why in the
    processes' store and ends; a thread in each of the others looks there, and frees the main one: gloo's collectives
    end with the other process, NCCL's must be aborted.

    missing: the ranks that didn't answer when this process had waited in vain and called the roll.
    """

    def __init__(self) -> None:
        self._why: str | None = None  # another one failed
        self.missing: list[int] = []
        self._over = threading.Event()
        self._thread: threading.Thread | None = None

    def watch(self) -> None:
        """Begin to listen; all processes must have joined."""
        if dist.is_available() and dist.is_initialized() and self._thread is None:
            self._thread = threading.Thread(target=self._look, daemon=True, name="peers")
            self._thread.start()

    def check(self) -> None:
        """Raises RuntimeError where another process has failed: an aborted sum of gradients looks like a finished one.

        To be called once it is waited for, and before what it is for.
        """
        if self._why:
            raise RuntimeError(self._why)

    def fail(self, reason: str) -> str:
        """Tell the others why this process ends, and leave them. Returns the first reason that any of them gave.

        The reason is told before the connections break, so whoever fails for that finds it.
        """
        several = dist.is_available() and dist.is_initialized()
        if "DataLoader worker" in reason:
            whose = f"process {dist.get_rank()}: " if several else ""
            reason = f"{whose}{reason} (out of host memory? fewer --data.workers take less)"
        if not several:  # alone, or the listening thread has aborted NCCL's groups
            self._over.set()
            return self._why or reason
        if any(words in reason for words in TIMED_OUT):
            reason = self._call_the_roll(reason)
        self._over.set()
        if tells_of_a_lost_process(reason):
            reason = "another process of this run is gone without a word (killed, or out of host memory?)"
        try:
            store = dist.distributed_c10d._get_default_store()
            if not store.check([FAILED]):
                store.set(FAILED, reason)
            reason = store.get(FAILED).decode()
        except RuntimeError:
            reason = FIRST_IS_GONE  # it held the store
        # so that a save waits for nobody
        if dist.get_backend() == "nccl":
            dist.distributed_c10d._abort_process_group()  # all of them, those of a sequence too; none is left then
        else:
            dist.destroy_process_group()
        return reason

    def _call_the_roll(self, reason: str) -> str:
        """Which processes don't answer, after a wait in vain; where all do, that one of them is slow."""
        store = dist.distributed_c10d._get_default_store().clone()  # the listening thread uses the other
        store.set_timeout(timedelta(seconds=ANSWER_WITHIN))
        try:
            store.set(ROLL_CALL, "")
            time.sleep(ANSWER_WITHIN)
            others = [rank for rank in range(dist.get_world_size()) if rank != dist.get_rank()]
            self.missing = [rank for rank in others if not store.check([f"{HERE}/{rank}"])]
        except RuntimeError:
            self.missing = [0]  # which holds the store
        if not self.missing:
            return f"a process was waited for in vain, though all answer: raise --parallel.timeout ({reason})"
        ranks = ", ".join(map(str, self.missing))
        return f"no answer from process {ranks} within --parallel.timeout: it is stopped, or its machine is gone"

    def _look(self) -> None:
        store = dist.distributed_c10d._get_default_store()
        while not self._over.wait(LOOK_EVERY):
            why = ELSEWHERE
            try:
                if store.check([ROLL_CALL]):
                    store.set(f"{HERE}/{dist.get_rank()}", "")
                if not store.check([FAILED]):
                    continue
            except RuntimeError:
                why = FIRST_IS_GONE  # it held the store
            self._why = why
            if dist.is_initialized() and dist.get_backend() == "nccl":
                dist.distributed_c10d._abort_process_group()  # all of them: those of a sequence too
            if not self._over.wait(GRACE):
                print("error: another process of this run failed, and this one doesn't end", file=sys.stderr)
                os._exit(1)
            return

    def __enter__(self) -> Peers:
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()


def exit_code(trainer: Trainer, code: int) -> int:
    """What this process may end with. Where Lightning started it, the run's own is the first process's.

    Lightning kills all of a run a few seconds after one that it started ended in error, and with it the first
    process's last save.
    """
    environment = getattr(trainer.strategy, "cluster_environment", None)
    started_by_the_first = isinstance(environment, LightningEnvironment) and not trainer.is_global_zero
    return 0 if started_by_the_first else code
