"""Sample videos while a run trains and at its end: the same prompts and noise each time.

With the averaged weights, or, where no average is kept, with those in training.
"""

from __future__ import annotations

import logging
from functools import partial
from pathlib import Path

import lightning as L
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import WandbLogger

from fps_flex.checks import require

from .common.pictures import draw_contact_sheet, side_by_side
from .common.refusals import one_line
from .common.videos import write_video
from .module import FlowModule
from .stopping import Stopped, StopRequest

logger = logging.getLogger(__name__)


class SampleVideo(Callback):
    """sample.mp4 and sample.png in the run folder at the end; while it trains, the same by steps in its samples folder.

    Args:
        prompts: what to sample; none takes those of the first validation clips.
        count: how many of them.
        steps: Euler steps.
        guidance: 1 follows the prompt alone, more stresses it.
        every_n_steps: optimizer steps from one sample to the next while it trains; none samples at the end alone.

    Raises ValueError for a value out of range, and for prompts that are none.
    """

    def __init__(
        self,
        prompts: list[str] | None = None,
        count: int = 4,
        steps: int = 50,
        guidance: float = 5.0,
        every_n_steps: int | None = None,
    ) -> None:
        require("sample.count", count, least=1)
        require("sample.steps", steps, least=1)
        require("sample.guidance", guidance, least=0)
        if every_n_steps is not None:
            require("sample.every_n_steps", every_n_steps, least=1)
        if prompts is not None and not all([prompts, *prompts]):
            raise ValueError(
                f"sample.prompts is {prompts}, expected prompts, or null for those of the validation clips"
            )
        self.prompts, self.count, self.steps, self.guidance = prompts, count, steps, guidance
        self.every_n_steps = every_n_steps
        self.stop = StopRequest()
        self._step = 0

    def on_train_start(self, trainer: L.Trainer, pl_module: FlowModule) -> None:
        """Draws first what a run that goes on was stopped in the middle of, or before."""
        self._step = trainer.global_step
        trainer.fit_loop.epoch_loop.after_batch.append(partial(self._after_batch, trainer, pl_module))
        if self._is_due(trainer) and not trainer.strategy.broadcast(all(x.exists() for x in _of_step(trainer))):
            self.stop.listen()  # Lightning has set its own handlers
            self._draw(trainer, pl_module, _of_step(trainer))

    def on_train_end(self, trainer: L.Trainer, pl_module: FlowModule) -> None:
        """Not on_fit_end: by then Lightning has moved the model to the CPU."""
        end = tuple(Path(trainer.default_root_dir) / name for name in ("sample.mp4", "sample.png"))
        self._draw(trainer, pl_module, end, *([_of_step(trainer)] if self._is_of_series(trainer) else []))

    def _after_batch(self, trainer: L.Trainer, pl_module: FlowModule) -> None:
        if trainer.global_step > self._step:
            self._step = trainer.global_step
            if self._is_due(trainer):
                self._draw(trainer, pl_module, _of_step(trainer))

    def _is_due(self, trainer: L.Trainer) -> bool:
        """The last step's is drawn at the end, once for both."""
        return self._is_of_series(trainer) and trainer.global_step != trainer.max_steps

    def _is_of_series(self, trainer: L.Trainer) -> bool:
        return bool(self.every_n_steps and trainer.global_step and trainer.global_step % self.every_n_steps == 0)

    def _draw(self, trainer: L.Trainer, module: FlowModule, *files: tuple[Path, Path]) -> None:
        """On all processes, which stop together or not at all. What goes wrong here costs the sample, not the run.

        files: video and contact sheet, each pair the same.
        """
        data, device = trainer.datamodule, trainer.strategy.root_device
        try:
            prompts = self.prompts or [data.val_set[i]["prompt"] for i in range(min(self.count, len(data.val_set)))]
            prompts = prompts[: self.count]
            with trainer.precision_plugin.forward_context():
                how = (prompts, data.size, self.steps, self.guidance)
                videos = module.sample(*how, after_step=lambda: self.stop.obey(device)).cpu()
            if trainer.is_global_zero:
                for video, sheet in files:
                    video.parent.mkdir(parents=True, exist_ok=True)
                    draw_contact_sheet(sheet, videos, prompts)
                    write_video(video, side_by_side(videos), data.fps)
                _show(trainer, files[0][0], prompts)
        except Stopped:
            raise
        except Exception as error:
            then = "training goes on" if files[0] == _of_step(trainer) else "the weights are saved"
            logger.warning("no sample was drawn (%s); %s", one_line(error), then)


def _of_step(trainer: L.Trainer) -> tuple[Path, Path]:
    stem = Path(trainer.default_root_dir) / "samples" / f"step{trainer.global_step:06d}"
    return stem.with_suffix(".mp4"), stem.with_suffix(".png")


def _show(trainer: L.Trainer, video: Path, prompts: list[str]) -> None:
    """In the logs that can hold a video."""
    for log in trainer.loggers:
        if isinstance(log, WandbLogger):
            log.log_video("sample", [str(video)], step=trainer.global_step, caption=["; ".join(prompts)])
