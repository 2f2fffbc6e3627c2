"""When a run saves, what a checkpoint says of where it was, and how a resumed run goes on from there.

All of a checkpoint is as of the last optimizer step: batches of the next one that were already summed are taken again.
"""

from __future__ import annotations

import logging
import math
import os
import secrets
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning as L
import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch.callbacks import Callback, Checkpoint
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy

from fps_flex.checks import require
from fps_flex.wan.trained import STATES, read_training_checkpoint

from .common.atomic import beside, put_in_place
from .common.refusals import one_line
from .module import NotFinite
from .peers import Peers
from .sharding import Together
from .shares import reason_of
from .stopping import Stopped, StopRequest

if TYPE_CHECKING:
    from .module import FlowModule

logger = logging.getLogger(__name__)

LAST, BEST, INTERRUPTED, NOT_FINITE = "last.ckpt", "best.ckpt", "interrupted.ckpt", "not-finite.ckpt"
RESUMABLE = (LAST, INTERRUPTED, BEST)


class WholeCheckpoints(TorchCheckpointIO):
    """Lightning's own holds a checkpoint in memory once more, and moves it from /tmp, which copies it over the last.

    error: why the last save failed, and None where it didn't. Kept and not raised, because all processes of a run wait
    for each other after a save.
    """

    error: str | None = None

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Where it can't be written, what was there stays."""
        path, self.error = Path(path), None
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with beside(path, over_folder=True) as temporary, temporary.open("wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
        except (OSError, RuntimeError) as error:
            self.error = f"{path} can't be written ({reason_of(error)})"

    def load_checkpoint(self, path: str | Path, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Also of a folder that several processes wrote, all of it."""
        if not Path(path).is_dir():
            return super().load_checkpoint(path, *args, **kwargs)
        loaded = read_training_checkpoint(Path(path))
        for optimizer in loaded["optimizer_states"]:
            optimizer["state"] = {index: dict(momentum) for index, momentum in optimizer["state"].items()}
        return loaded | {name: dict(loaded[name]) for name in STATES if name in loaded}


class SaveError(RuntimeError):
    """A checkpoint can't be written."""


class CountSteps(Callback):
    """Ends a step for the checkpoints before its log, in which processes wait for each other: it is whole by then."""

    def __init__(self, checkpoints: Checkpoints) -> None:
        self.checkpoints = checkpoints

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: FlowModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.checkpoints.count(trainer, pl_module)


class Checkpoints(Checkpoint):
    """Saves last.ckpt as training goes and at its end, best.ckpt after a validation that found it best.

    Where a run stops early it saves interrupted.ckpt, or, where it isn't finite, not-finite.ckpt with the weights from
    before that step.

    Args:
        every_n_train_steps: optimizer steps from one last.ckpt to the next.

    Raises ValueError below 1.
    """

    def __init__(self, every_n_train_steps: int = 200) -> None:
        require("checkpoint.every_n_train_steps", every_n_train_steps, least=1)
        self.every_n_train_steps = every_n_train_steps
        self.stop, self.peers = StopRequest(), Peers()
        self.options: dict[str, Any] = {}  # of the run, as a checkpoint keeps them
        self.run_id = secrets.token_hex(8)  # kept when it is resumed; not of the generators that the run draws from
        self.reason: str | None = None  # why another process, or else this one, failed alone
        self.best = math.inf
        self._step, self._taken, self._validated = 0, [0], False
        self._resumed = False
        self._saved: dict[str, int] = {}  # the step in each file

    def setup(self, trainer: L.Trainer, pl_module: FlowModule, stage: str) -> None:
        self.folder = checkpoint_folder(trainer.default_root_dir)
        self.io = trainer.strategy.checkpoint_io = WholeCheckpoints()
        pl_module.before_step = self.peers.check
        self.peers.watch()
        self.stop.listen()

    def on_sanity_check_start(self, trainer: L.Trainer, pl_module: FlowModule) -> None:
        self.stop.listen()  # Lightning has set its own handlers since on_fit_start
        pl_module.is_sound = True  # all of a checkpoint is in its place by now

    def on_train_start(self, trainer: L.Trainer, pl_module: FlowModule) -> None:
        self.stop.listen()
        pl_module.is_sound = True
        self._positions = trainer.datamodule.positions
        trainer.fit_loop.epoch_loop.after_batch.insert(0, partial(self._after_batch, trainer, pl_module))
        if self._resumed:
            if trainer.is_global_zero:
                self._set_aside_what_went_further()
                self.best = _best_so_far(self.folder)
            self.best = trainer.strategy.broadcast(self.best)

    def count(self, trainer: L.Trainer, pl_module: FlowModule) -> None:
        """A batch is over, and with it a step or not."""
        taken = next(self._positions)
        if trainer.global_step > self._step:
            self._step, self._taken, self._validated = trainer.global_step, taken, False
            pl_module.is_sound = True

    def _after_batch(self, trainer: L.Trainer, pl_module: FlowModule) -> None:
        if self._step % self.every_n_train_steps == 0 and self._saved.get(LAST) != self._step > 0:
            self._save(trainer, LAST)
        self.stop.obey(trainer.strategy.root_device)

    def on_validation_batch_end(self, trainer: L.Trainer, *_: Any, **__: Any) -> None:
        self.stop.obey(trainer.strategy.root_device)

    def on_validation_end(self, trainer: L.Trainer, pl_module: FlowModule) -> None:
        if trainer.sanity_checking:
            return
        self._validated = True
        score = float(trainer.callback_metrics.get("val/loss", math.inf))
        if score < self.best:
            self.best = score
            self._save(trainer, BEST)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: FlowModule) -> None:
        """There is one epoch, which ends with training."""
        if self._saved.get(LAST) != self._step:
            self._save(trainer, LAST)

    def on_train_end(self, trainer: L.Trainer, pl_module: FlowModule) -> None:
        """A run that was stopped after its last step only has an end, and no epoch's."""
        self.on_train_epoch_end(trainer, pl_module)

    def on_exception(self, trainer: L.Trainer, pl_module: FlowModule, exception: BaseException) -> None:
        """Saves what is sound, unless nothing was trained or it is saved already."""
        if not isinstance(exception, TOGETHER):
            self.reason = self.peers.fail(one_line(exception))
        if not pl_module.is_sound or self._step == 0 or isinstance(exception, SaveError):
            return
        if not _can_save(trainer):
            self._tell_where_to_go_on(trainer)
            return
        name = NOT_FINITE if isinstance(exception, NotFinite) else INTERRUPTED
        saved = [file for file, step in self._saved.items() if step == self._step and file in RESUMABLE]
        if name == NOT_FINITE or not saved:
            try:
                self._save(trainer, name)
            except (SaveError, NotFinite) as error:
                print(f"error: {error}", file=sys.stderr)
                return
            saved = [name]
        then = "its weights are in" if name == NOT_FINITE else "--ckpt_path last goes on from"
        if trainer.is_global_zero:
            print(f"stopped at step {self._step}; {then} {self.folder / saved[0]}", flush=True)

    def _tell_where_to_go_on(self, trainer: L.Trainer) -> None:
        """Of processes that share the model: one that failed took its share along."""
        steps = {file: step for file, step in self._saved.items() if file in RESUMABLE}
        if steps and trainer.is_global_zero:
            file = max(steps, key=lambda file: steps[file])
            print(f"stopped after step {self._step}; --ckpt_path last goes on from step {steps[file]}, "
                  f"{self.folder / file}", flush=True)  # fmt: skip

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: FlowModule, checkpoint: dict[str, Any]) -> None:
        position = {"step": self._step, "taken": self._taken, "validated": self._validated}
        record = {"position": position, "val_loss": self.best, "options": self.options, "run_id": self.run_id}
        checkpoint["fps_flex"] = record

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: FlowModule, checkpoint: dict[str, Any]) -> None:
        position = checkpoint["fps_flex"]["position"]
        self._step, self._taken, self._validated = position["step"], position["taken"], position["validated"]
        self._resumed, self.run_id = True, checkpoint["fps_flex"]["run_id"]
        pl_module.is_sound = False  # the optimizer's state comes after
        trainer.datamodule.taken = self._taken
        checkpoint["loops"]["fit_loop"] = trainer.fit_loop.state_at(self._step, self._validated)
        path = Path(trainer.ckpt_path)
        if path.parent.resolve() == self.folder.resolve():
            self._saved = {path.name: self._step}

    def _save(self, trainer: L.Trainer, name: str) -> None:
        """Raises SaveError, on all processes, where it can't be written, and NotFinite where it had better not be."""
        if name != NOT_FINITE:
            trainer.lightning_module.check_weights()
        for log in trainer.loggers:
            log.save()
        trainer.save_checkpoint(self.folder / name)
        if error := trainer.strategy.broadcast(self.io.error):
            raise SaveError(f"{error}: make room; what was saved before is whole, and --ckpt_path last goes on from it")
        self._saved[name] = self._step

    def _set_aside_what_went_further(self) -> None:
        """A run that goes back must not take, as its last, a checkpoint from the way that it left."""
        for name in RESUMABLE:
            path = self.folder / name
            if (step := trained_steps(path) or 0) > self._step:
                temporary = path.with_name(f"{path.stem}-step{step}.ckpt")
                put_in_place(path, temporary)
                logger.warning(
                    "going on from step %d, so %s of step %d is now %s", self._step, name, step, temporary.name
                )


TOGETHER = (Stopped, NotFinite, SaveError, Together)  # what all processes raise at the same point


def checkpoint_folder(run: str | Path) -> Path:
    return Path(run) / "checkpoints"


def trained_steps(path: Path) -> int | None:
    """How many optimizer steps a checkpoint has behind it; None where it can't be read."""
    try:
        return read_training_checkpoint(path)["fps_flex"]["position"]["step"]
    except (ValueError, KeyError):
        return None


def _best_so_far(folder: Path) -> float:
    """The lowest val/loss of a run, as best.ckpt has it: a last.ckpt of the same step was saved before it."""
    try:
        return float(read_training_checkpoint(folder / BEST)["fps_flex"]["val_loss"])
    except (ValueError, KeyError):
        return math.inf


def _can_save(trainer: L.Trainer) -> bool:
    """Whether the processes are together, or this one has all of the state by itself."""
    return isinstance(trainer.strategy, (SingleDeviceStrategy, DDPStrategy)) or torch.distributed.is_initialized()
