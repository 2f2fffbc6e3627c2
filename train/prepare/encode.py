"""Encode clips and prompts once, each into a file of its own."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from fps_flex.checks import is_finite

from ..cached import trim_text
from ..common.ranks import rank_and_world
from ..common.videos import ClipError, read_clip
from ..common.work import find_device, for_each
from ..index import EMPTY_PROMPT
from .encoded import Encoded, save_whole
from .pack import form_batches
from .records import Clip, why_unreadable
from .settings import Settings
from .standardise import find_mp4, read_pixels


def encode(settings: Settings, clips: list[Clip], encoded: Encoded) -> list[Clip]:
    """Latents and text states of each clip, from out/clips where the mp4s are there, else the source.

    The same clips always form a batch, so that the same numbers come out whenever a run was stopped. Returns the clips,
    with a reason those that broke when they were read, and those that came out with values that aren't finite.
    """
    device = find_device()
    for_each(
        "encode",
        form_batches(clips, settings.batch_size),
        lambda batch: all(map(encoded.is_done, batch)),
        lambda batch: _encode_batch(settings, batch, encoded, device),
    )
    if rank_and_world()[0] == 0:
        empty = settings.text([""], device)[0].cpu()
        save_whole({"text": trim_text(empty).contiguous()}, settings.out / EMPTY_PROMPT)
    found = ((clip, encoded.why_not(clip)) for clip in clips)
    return [replace(clip, reasons=(reason,)) if reason else clip for clip, reason in found]


def _encode_batch(settings: Settings, batch: list[Clip], encoded: Encoded, device: torch.device) -> None:
    pixels: dict[str, Tensor] = {}
    for clip in batch:
        try:
            pixels[clip.name] = _pixels(settings.source, clip, settings.fps, settings.out)
        except ClipError as error:
            encoded.give_up(clip, why_unreadable(error, settings.source / clip.video))
    if not pixels:
        return
    videos = torch.stack(list(pixels.values())).to(device).float() / 127.5 - 1
    latents = settings.codec.encode(videos).bfloat16().cpu()
    whole = [clip for clip in batch if clip.name in pixels]
    states = settings.text([clip.prompt for clip in whole], device).cpu()
    for clip, x, y in zip(whole, latents, states, strict=True):
        if is_finite(x, y):
            encoded.save(clip, x, trim_text(y))
        else:
            what = "the text states aren't" if is_finite(x) else "the latents aren't"
            encoded.give_up(clip, f"not finite: {what}")


def _pixels(source: Path, clip: Clip, fps: float, out: Path) -> Tensor:
    mp4 = find_mp4(clip, out)
    return read_pixels(source, clip, fps) if mp4 is None else read_clip(mp4, clip.size[0], fps, *clip.size[1:])
