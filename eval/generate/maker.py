"""What makes the videos of a run: text states, on disk, and one or two transformers and a codec."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from typing import TYPE_CHECKING

import torch
from safetensors.torch import load, save
from torch import Tensor

from fps_flex.checks import show
from fps_flex.wan import Wan
from train.cached import pad_text, trim_text
from train.common.ranks import speaks

from .models import TextToVideo
from .sampling import LowNoise, build_scheduler, sample_latents
from .teams import Team

if TYPE_CHECKING:
    from jaxtyping import Float

    from .jobs import Job, Settings


logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Maker:
    """All that turns jobs into pixels, in memory but for the text states."""

    model: TextToVideo
    settings: Settings
    states: TextStates
    device: torch.device
    wan: Wan
    low: LowNoise | None
    team: Team

    def sample(self, job: Job, after_step: Callable[[], None]) -> Float[Tensor, "1 c f h w"]:
        """Latents, the same on all processes of the team. The noise depends on the seed alone, whatever the device.

        Raises ValueError for NaN.
        """
        settings, codec = self.settings, self.model.codec
        shape = (1, codec.channels, *codec.latent_size(settings.clip.size))
        noise = torch.randn(shape, generator=torch.Generator().manual_seed(job.seed)).to(self.device)
        text, no_text = (self.states[prompt].to(self.device) for prompt in (job.prompt, settings.negative_prompt))
        scheduler = build_scheduler(settings.sampler, settings.steps, settings.shift)
        how = settings.guidance, after_step, self.low, self.team.passes
        return sample_latents(self.wan, scheduler, noise, text, no_text, *how)

    def decode(self, latents: Float[Tensor, "1 c f h w"]) -> Float[Tensor, "3 f h w"]:
        """Pixels in -1 to 1. Raises ValueError for NaN."""
        video = self.model.codec.decode(latents)[0].clamp(-1, 1)
        if video.isnan().any():
            raise ValueError(
                "the codec gives pixels that aren't finite: look at its weights, and at guidance and shift"
            )
        return video


def load_maker(model: TextToVideo, settings: Settings, states: TextStates, device: torch.device, team: Team) -> Maker:
    """The transformer, or both of two experts, on the device. Raises ValueError where `linears` can't be had."""
    wan = model.load(device, settings.linears, settings.residual)
    second = model.load(device, settings.linears, settings.residual, low=True) if model.low else None
    for one in filter(None, (wan, second)):
        one.sequence = team.sequence
    low = second and LowNoise(second, settings.boundary, settings.low_noise_guidance)
    return Maker(model, settings, states, device, wan, low, team)


def encode_prompts(model: TextToVideo, prompts: list[str], device: torch.device, folder: Path) -> TextStates:
    """States of each prompt, on the disk of a folder; the encoder goes before the transformer comes."""
    states = TextStates(folder)
    cut = [prompt for prompt in prompts if model.text.count(prompt) > model.text.length]
    if cut and speaks():
        logger.warning(
            "%d of %d prompts are cut to the %d that the text encoder keeps (%s), the first of them: %s",
            len(cut), len(prompts), model.text.length, model.text.kind, show(cut[0]),
        )  # fmt: skip
    for prompt in prompts:
        states.add(prompt, model.text([prompt], device))
    model.text.unload()
    return states


class TextStates:
    """States of each prompt less the zeros at their end, in a file without a name, which goes with the process.

    folder: on whose disk.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._file = TemporaryFile(dir=folder)  # noqa: SIM115 - as long as the object is there
        self._where: dict[str, tuple[int, int, int]] = {}  # first byte, and how many; states with the zeros

    def add(self, prompt: str, states: Float[Tensor, "1 l e"]) -> None:
        """Raises ValueError where the disk is full."""
        data = save({"states": trim_text(states[0]).cpu().contiguous()})
        try:
            start = self._file.seek(0, 2)
            self._file.write(data)
            self._file.flush()
        except OSError as error:
            raise ValueError(f"text states can't be kept in {self.folder} ({error.strerror}): make room") from None
        self._where[prompt] = start, len(data), states.shape[1]

    def __getitem__(self, prompt: str) -> Float[Tensor, "1 l e"]:
        start, count, length = self._where[prompt]
        self._file.seek(start)
        return pad_text(load(self._file.read(count))["states"], length)[None]
