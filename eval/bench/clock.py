"""The steps of a measured training: each noise level held for some, and what they take."""

from __future__ import annotations

import time
from contextlib import ExitStack
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback

from train.module import FlowModule

from ..timing import forget_peak, peak_gb, wait
from .processes import Exchanged
from .sizes import Level


class Clock(Callback):
    """Holds each noise level for its steps; seconds of each step after the warm-up and peak memory, a level.

    warmup, steps: of each level, the first ones untimed. exchanges: whether to count what attention sends: in a step
    more of each level, after all that are timed, since a profiler counts.
    """

    def __init__(self, levels: list[Level], warmup: int, steps: int, exchanges: bool) -> None:
        self.exchanged = [Exchanged() for _ in levels]
        self.levels, self.warmup, self.each = levels, warmup, warmup + steps
        self.timed = self.each * len(levels)
        self.steps = self.timed + (len(levels) if exchanges else 0)
        self.seconds: list[list[float]] = [[] for _ in levels]
        self.peaks: list[float] = [0.0 for _ in levels]

    def on_train_batch_start(self, trainer: L.Trainer, module: FlowModule, batch: Any, step: int) -> None:
        counts = step >= self.timed
        index = step - self.timed if counts else step // self.each
        if not counts and step % self.each == 0:
            forget_peak()
        sigma = self.levels[index].sigma
        module.noise_levels = sigma, sigma
        self._counting = ExitStack()
        if counts:
            self._counting.enter_context(self.exchanged[index].counted())
        wait()
        self._start = time.perf_counter()

    def on_train_batch_end(self, trainer: L.Trainer, module: FlowModule, outputs: Any, batch: Any, step: int) -> None:
        wait()
        seconds = time.perf_counter() - self._start
        self._counting.close()
        if step >= self.timed:
            return
        if step % self.each >= self.warmup:
            self.seconds[step // self.each].append(seconds)
        self.peaks[step // self.each] = peak_gb(module.device)
