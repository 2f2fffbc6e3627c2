"""What happens around training: averaged weights, a sample video and the loss curve."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback, EMAWeightAveraging, RichProgressBar

from .module import FlowModule, NonFiniteLoss
from .pictures import draw_contact_sheet, draw_loss_curve, side_by_side
from .videos import write_video


class AverageWeights(EMAWeightAveraging):
    """An exponential moving average of the weights, which validation and sampling use.

    Args:
        decay: of the average, a step.
    """

    def __init__(self, decay: float = 0.99) -> None:
        super().__init__(decay=decay)
        self._averaged_in_place = False

    def on_validation_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        super().on_validation_epoch_start(trainer, pl_module)
        self._averaged_in_place = self._average_model is not None

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        super().on_validation_epoch_end(trainer, pl_module)
        self._averaged_in_place = False

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """A run stopped while it validates must not save the averaged weights as the live ones."""
        if self._averaged_in_place:
            self.on_validation_epoch_end(trainer, pl_module)


class Progress(RichProgressBar):
    """Lightning's, without what says nothing here: a last epoch (runs end by steps) and a number of the log."""

    def _get_train_description(self, current_epoch: int) -> str:
        return f"Epoch {current_epoch}".ljust(len(self.validation_description))

    def get_metrics(self, trainer: L.Trainer, pl_module: L.LightningModule) -> dict[str, Any]:
        return {name: value for name, value in super().get_metrics(trainer, pl_module).items() if name != "v_num"}


class SaveStopped(Callback):
    """When a run stops early, save what it has: interrupted.ckpt, or, where the loss is not finite, not-finite.ckpt.

    `--ckpt_path last` goes on from the first, but not from the second: its weights may not be finite either.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        finite = not isinstance(exception, NonFiniteLoss)
        path = self.folder / ("interrupted.ckpt" if finite else "not-finite.ckpt")
        trainer.save_checkpoint(path)
        if trainer.is_global_zero:
            then = "--ckpt_path last goes on from" if finite else "its weights are in"
            print(f"stopped at step {trainer.global_step}; {then} {path}")


class SampleVideo(Callback):
    """At the end, sample videos with the averaged weights: sample.mp4 and sample.png in the run folder.

    Args:
        prompts: what to sample; none takes those of the first validation clips.
        count: how many of them.
        steps: Euler steps.
        guidance: 1 follows the prompt alone, more stresses it.
    """

    def __init__(
        self, prompts: list[str] | None = None, count: int = 4, steps: int = 50, guidance: float = 5.0
    ) -> None:
        self.prompts, self.count, self.steps, self.guidance = prompts, count, steps, guidance

    def on_train_end(self, trainer: L.Trainer, pl_module: FlowModule) -> None:
        """Not on_fit_end: by then Lightning has moved the model to the CPU."""
        if not trainer.is_global_zero:
            return
        data = trainer.datamodule
        prompts = self.prompts or [data.val_set[i]["prompt"] for i in range(min(self.count, len(data.val_set)))]
        with trainer.precision_plugin.forward_context():
            videos = pl_module.sample(prompts[: self.count], data.size, self.steps, self.guidance).cpu()
        folder = Path(trainer.default_root_dir)
        write_video(folder / "sample.mp4", side_by_side(videos), data.fps)
        draw_contact_sheet(folder / "sample.png", videos, prompts)


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
            draw_loss_curve(folder / "loss.png", read_losses(folder))


def read_losses(folder: Path) -> dict[str, dict[int, float]]:
    """Step -> value of train/loss and val/loss, from every part of a run; where parts overlap, the later one counts."""
    losses: dict[str, dict[int, float]] = {"train/loss": {}, "val/loss": {}}
    parts = sorted(folder.glob("logs/version_*/metrics.csv"), key=lambda path: int(path.parent.name.split("_")[1]))
    for part in parts:
        with part.open(newline="") as file:
            rows: list[dict[str, Any]] = list(csv.DictReader(file))
        for name, values in losses.items():
            new = {int(row["step"]): float(row[name]) for row in rows if row.get(name)}
            first = min(new, default=0)
            losses[name] = {step: value for step, value in values.items() if step < first} | new
    return losses
