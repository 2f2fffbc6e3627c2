"""What happens around training: averaged weights, the progress bar and the loss curve."""

from __future__ import annotations

import csv
import logging
import math
import time
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback, RichProgressBar

from fps_flex.checks import require
from fps_flex.wan.lora import copy_trained, trained

from .common.pictures import draw_loss_curve
from .common.refusals import one_line
from .module import FlowModule
from .shares import local_part

logger = logging.getLogger(__name__)


class AverageWeights(Callback):
    """An exponential moving average of the weights, which validation and sampling use.

    It is a model of its own, `module.average`: the trained weights are never moved out of their place for it.

    Args:
        decay: of the average, a step; null keeps no average, 4 bytes a trained parameter less, and the weights in
            training are validated, sampled from and saved in its place.

    Raises ValueError outside of 0 to 1.
    """

    def __init__(self, decay: float | None = 0.99) -> None:
        if decay is not None:
            require("ema.decay", decay, least=0, below=1)
        self.decay = decay
        self._step = 0

    def setup(self, trainer: L.Trainer, pl_module: FlowModule, stage: str) -> None:
        if self.decay is not None:
            pl_module.average = copy_trained(pl_module.model).requires_grad_(False)

    def on_train_start(self, trainer: L.Trainer, pl_module: FlowModule) -> None:
        self._step = trainer.global_step

    @torch.no_grad()
    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: FlowModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """After each optimizer step; that after the first is the weights themselves."""
        if self.decay is not None and trainer.global_step > self._step:
            self._step = trainer.global_step
            live, average = trained(pl_module.model), dict(pl_module.average.named_parameters())
            # each process its own rows: as DTensors they take the host ten times as long
            pairs = ([local_part(x[name]) for name in live] for x in (average, live))
            torch._foreach_lerp_(*pairs, 1 - self.decay if self._step > 1 else 1.0)


class Progress(RichProgressBar):
    """Lightning's, without what says nothing here: a last epoch (runs end by steps) and a number of the log.

    Reading a loss waits for the GPU, which then waits for the next step: in training it is read once a second.
    """

    _read_at: float = -math.inf
    _shown: dict[str, Any] | None = None

    def _get_train_description(self, current_epoch: int) -> str:
        return f"Epoch {current_epoch}".ljust(len(self.validation_description))

    def get_metrics(self, trainer: L.Trainer, pl_module: L.LightningModule) -> dict[str, Any]:
        if self._shown is None or not trainer.training or time.monotonic() - self._read_at >= 1:
            shown = super().get_metrics(trainer, pl_module)
            self._shown = {name: value for name, value in shown.items() if name != "v_num"}
            self._read_at = time.monotonic()
        return dict(self._shown)


class KeepThreads(Callback):
    """As many as there were beside a GPU: Lightning, where it starts processes, gives each its share of all cores."""

    def __init__(self) -> None:
        self.threads = torch.get_num_threads()

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if trainer.strategy.root_device.type != "cpu":
            torch.set_num_threads(self.threads)


class LogFirstValidation(Callback):
    """Log the validation before the first step, which Lightning takes for a check, as that of step 0."""

    def on_sanity_check_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        metrics = {name: value.item() for name, value in trainer.callback_metrics.items() if name.startswith("val/")}
        for log in trainer.loggers:
            log.log_metrics(metrics, step=0)


class LossCurve(Callback):
    """At the end, train/loss and val/loss over all steps of the run, resumed parts included: loss.png."""

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.is_global_zero:
            folder = Path(trainer.default_root_dir)
            for log in trainer.loggers:
                log.save()
            try:
                draw_loss_curve(folder / "loss.png", read_losses(folder))
            except Exception as error:
                logger.warning("no loss curve was drawn (%s)", one_line(error))


def read_losses(folder: Path) -> dict[str, dict[int, float]]:
    """Step -> value of train/loss, val/loss and val/error, from every part of a run; where parts overlap, the later one
    counts.
    """
    losses: dict[str, dict[int, float]] = {"train/loss": {}, "val/loss": {}, "val/error": {}}
    parts = sorted(folder.glob("logs/version_*/metrics.csv"), key=lambda path: int(path.parent.name.split("_")[1]))
    for part in parts:
        with part.open(newline="") as file:
            rows: list[dict[str, Any]] = list(csv.DictReader(file))
        new = {name: {int(row["step"]): float(row[name]) for row in rows if row.get(name)} for name in losses}
        # a step's validation comes after it, so a part that begins with one took the step from the part before
        first_train = min([*new["train/loss"], *(step + 1 for step in new["val/loss"])], default=math.inf)
        first_val = min([*new["train/loss"], *new["val/loss"]], default=math.inf)
        for name, first in (("train/loss", first_train), ("val/loss", first_val), ("val/error", first_val)):
            losses[name] = {step: value for step, value in losses[name].items() if step < first} | new[name]
    return losses
