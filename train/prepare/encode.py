"""Encode clips and prompts once, each into a file of its own."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from ..cached import trim_text
from ..codecs import Codec, TextEncoder
from ..index import EMPTY_PROMPT, is_finite
from ..videos import ClipError, read_clip
from .pack import content_of, find_packed, form_batches, save_whole
from .records import NOW, Clip, for_each, place, read_json, why_unreadable, write_json
from .standardise import find_mp4, read_pixels


def encode(
    source: Path, clips: list[Clip], fps: float, codec: Codec, text: TextEncoder, batch_size: int, out: Path
) -> list[Clip]:
    """Latents and text states of each clip, in a file each; from out/clips where the mp4s are there, else the source.

    The same clips always form a batch, so that the same numbers come out whenever a run was stopped. Returns the clips,
    with a reason those that broke when they were read, and those that came out with values that aren't finite.
    """
    made, broken = out / "work" / "encoded", out / "work" / "broken"
    made.mkdir(parents=True, exist_ok=True)
    packed = find_packed(out)
    device = _device()

    content = {clip.name: content_of(clip, out) for clip in clips}

    def done(clip: Clip) -> bool:
        name = content[clip.name]
        if name in packed or (made / f"{name}.safetensors").is_file():
            return True
        reason = broken / f"{name}.json"
        return reason.is_file() and not read_json(reason).startswith(NOW)

    def work(batch: list[Clip]) -> None:
        pixels: dict[str, Tensor] = {}
        for clip in batch:
            try:
                pixels[clip.name] = _pixels(source, clip, fps, out)
            except ClipError as error:
                write_json(broken / f"{content[clip.name]}.json", why_unreadable(error, source / clip.video))
        if pixels:
            latents = codec.encode(torch.stack(list(pixels.values())).to(device).float() / 127.5 - 1).bfloat16().cpu()
            whole = [clip for clip in batch if clip.name in pixels]
            states = text([clip.prompt for clip in whole], device).cpu()
            for clip, x, y in zip(whole, latents, states, strict=True):
                if is_finite(x, y):
                    tensors = {"latents": x.contiguous(), "text": trim_text(y).contiguous()}
                    save_whole(tensors, made / f"{content[clip.name]}.safetensors")
                else:
                    what = "the text states aren't" if is_finite(x) else "the latents aren't"
                    write_json(broken / f"{content[clip.name]}.json", f"not finite: {what}")

    for_each("encode", form_batches(clips, batch_size), lambda batch: all(map(done, batch)), work)
    if place()[0] == 0:
        empty = text([""], device)[0].cpu()
        save_whole({"text": trim_text(empty).contiguous()}, out / EMPTY_PROMPT)
    reasons = {
        path.stem: read_json(path)
        for path in broken.glob("*.json")
        if not (made / f"{path.stem}.safetensors").is_file()
    }
    found = ((clip, reasons.get(content[clip.name])) for clip in clips)
    return [replace(clip, reasons=(reason,)) if reason else clip for clip, reason in found]


def _pixels(source: Path, clip: Clip, fps: float, out: Path) -> Tensor:
    mp4 = find_mp4(clip, out)
    return read_pixels(source, clip, fps) if mp4 is None else read_clip(mp4, clip.size[0], fps, *clip.size[1:])


def _device() -> torch.device:
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", place()[0] % torch.cuda.device_count())
