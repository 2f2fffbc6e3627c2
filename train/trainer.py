"""Lightning's Trainer with the options that a run of this project has, each checked, and its loop made to resume."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any, Literal

import lightning as L
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.callbacks.timer import Timer
from lightning.pytorch.loggers import Logger
from lightning.pytorch.loops import _FitLoop, _TrainingEpochLoop
from lightning.pytorch.strategies import Strategy
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from fps_flex.checks import require

from .parallel import STRATEGIES, launched_as

Precision = Literal["32-true", "bf16-mixed"]
PROFILERS = ("simple", "advanced", "pytorch")


class Trainer(L.Trainer):
    """Lightning's Trainer; its loops have no epochs here, so a run ends by steps or by time.

    Args:
        accelerator: cpu, gpu or auto.
        strategy: how several processes train together: auto (as --parallel says), ddp, or a class of Lightning's with
            its options.
        devices: how many, or a list of which, or auto; under torchrun all of its processes.
        num_nodes: machines.
        precision: 32-true, or bf16-mixed: weights, gradients and optimizer in fp32, the computation in bf16.
        logger: beside the CSV that every run keeps; none has no other.
        callbacks: further ones.
        max_steps: optimizer steps of the whole run, resumed parts included; -1 leaves its end to max_time.
        max_time: of the whole run, as DD:HH:MM:SS.
        val_check_interval: batches from one validation to the next.
        log_every_n_steps: optimizer steps from one line of the log to the next.
        accumulate_grad_batches: batches whose gradients make one optimizer step.
        gradient_clip_val: the largest norm of all gradients; none clips nothing.
        enable_progress_bar: whether to show one.
        deterministic: whether operations that are not are refused.
        benchmark: whether cuDNN may try out its kernels.
        profiler: simple, advanced or pytorch.
        detect_anomaly: whether to look for the operation that makes a NaN; slow.
        default_root_dir: set by --run.

    Raises ValueError for a value out of range, and for a run that would never end.
    """

    def __init__(
        self,
        accelerator: str = "auto",
        strategy: Strategy | str = "auto",
        devices: list[int] | int | str = "auto",
        num_nodes: int = 1,
        precision: Precision = "32-true",
        logger: Logger | list[Logger] | bool = False,
        callbacks: list[Callback] | None = None,
        max_steps: int = -1,
        max_time: str | None = None,
        val_check_interval: int = 200,
        log_every_n_steps: int = 10,
        accumulate_grad_batches: int = 1,
        gradient_clip_val: float | None = None,
        enable_progress_bar: bool = True,
        deterministic: bool = False,
        benchmark: bool | None = None,
        profiler: str | None = None,
        detect_anomaly: bool = False,
        default_root_dir: str | None = None,
    ) -> None:
        require_end(max_steps, max_time)
        for name, value in (
            ("num_nodes", num_nodes),
            ("val_check_interval", val_check_interval),
            ("log_every_n_steps", log_every_n_steps),
            ("accumulate_grad_batches", accumulate_grad_batches),
        ):
            require(f"trainer.{name}", value, least=1)
        if gradient_clip_val is not None:
            require("trainer.gradient_clip_val", gradient_clip_val, above=0)
        if isinstance(strategy, str) and strategy not in STRATEGIES:
            raise ValueError(f"trainer.strategy is {strategy!r}, expected {', '.join(STRATEGIES)} or a class's path")
        if profiler is not None and profiler not in PROFILERS:
            raise ValueError(f"trainer.profiler is {profiler!r}, expected one of {', '.join(PROFILERS)}")
        devices, num_nodes = launched_as(devices, num_nodes)
        try:
            super().__init__(
                accelerator=accelerator,
                strategy=strategy,
                devices=devices,
                num_nodes=num_nodes,
                precision=precision,
                logger=logger,
                callbacks=callbacks,
                max_steps=max_steps,
                max_epochs=-1,
                max_time=max_time,
                val_check_interval=val_check_interval,
                check_val_every_n_epoch=None,
                num_sanity_val_steps=-1,
                log_every_n_steps=log_every_n_steps,
                accumulate_grad_batches=accumulate_grad_batches,
                gradient_clip_val=gradient_clip_val,
                enable_progress_bar=enable_progress_bar,
                enable_model_summary=False,
                deterministic=deterministic,
                benchmark=benchmark,
                profiler=profiler,
                detect_anomaly=detect_anomaly,
                use_distributed_sampler=False,
                default_root_dir=default_root_dir,
            )
        except MisconfigurationException as error:
            asked = f"trainer.accelerator {accelerator}, devices {devices}, num_nodes {num_nodes}, strategy {strategy}"
            raise ValueError(f"{asked}: {error}") from None
        self.fit_loop = FitLoop(self, max_epochs=-1)
        self.fit_loop.epoch_loop = EpochLoop(self, max_steps=max_steps)


def require_end(max_steps: int, max_time: str | None) -> None:
    """Raises ValueError unless one of them ends the run."""
    if max_steps != -1:
        require("trainer.max_steps", max_steps, least=1)
    elif max_time is None:
        raise ValueError("trainer.max_steps is -1, and trainer.max_time none: expected one of them, to end the run by")
    if max_time is not None:
        try:
            duration = timedelta(seconds=Timer(max_time).time_remaining() or 0)
        except (MisconfigurationException, ValueError, OverflowError):
            raise ValueError(f"trainer.max_time is {max_time!r}, expected DD:HH:MM:SS") from None
        require("trainer.max_time", duration.total_seconds(), above=0)


class EpochLoop(_TrainingEpochLoop):
    """Lightning's, with a place after a batch and its line in the log, and before the validation that may follow.

    (Lightning's own hook at a batch's end comes before the line: a run that ended there would lose it.)
    after_batch: called in turn. began: when the batch in work was asked for, by time.perf_counter.
    """

    def __init__(self, trainer: L.Trainer, max_steps: int) -> None:
        super().__init__(trainer, max_steps=max_steps)
        self.after_batch: list[Callable[[], None]] = []
        self.began = 0.0

    def advance(self, data_fetcher: Any) -> None:
        self.began = time.perf_counter()
        super().advance(data_fetcher)
        for call in self.after_batch:
            call()


class FitLoop(_FitLoop):
    """Lightning's, which leaves at once where all steps are done, though their validation or the sample may be missing.

    A run has one epoch without end. validation_owed: whether the validation after the last step is still to be run.
    """

    validation_owed = False

    @property
    def skip(self) -> bool:
        return False

    @property
    def done(self) -> bool:
        return super().done and not (self.validation_owed and self.epoch_loop.restarting)

    def state_at(self, step: int, validated: bool) -> dict[str, Any]:
        """The state that Lightning goes on from as if it had stopped right after an optimizer step.

        validated: whether the validation that may be due after that step was run to its end.
        """
        batches = step * self.trainer.accumulate_grad_batches
        due = step > 0 and batches % self.trainer.val_check_interval == 0
        self.validation_owed = due and not validated
        state = copy.deepcopy(self.state_dict())
        _count(state["epoch_progress"], ready=1, started=1, processed=0, completed=0)
        # as if saved at the end of a batch, or, where validation is due, at the end of all that belongs to one
        done = batches if due else batches - 1
        _count(state["epoch_loop.batch_progress"], ready=batches, started=batches, processed=batches, completed=done)
        _count(state["epoch_loop.scheduler_progress"], ready=step, completed=step)
        optimizer = state["epoch_loop.automatic_optimization.optim_progress"]["optimizer"]
        _count(optimizer["step"], ready=step, completed=step)
        _count(optimizer["zero_grad"], ready=step, started=step, completed=step)
        state["epoch_loop.state_dict"]["_batches_that_stepped"] = step - 1  # counted when a step's validation is over
        if self.validation_owed:  # begun, and no batch of it done
            _count(state["epoch_loop.val_loop.batch_progress"], ready=1, started=1, processed=0, completed=0)
        return state


def _count(progress: dict[str, Any], **counts: int) -> None:
    progress["total"].update(counts)
    progress["current"].update(counts)
