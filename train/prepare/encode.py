"""Encode clips and prompts once, and pack what comes out into the shards that training reads."""

from __future__ import annotations

import shutil
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from ..cached import INDEX, CachedClip, Index, is_prepared, read_index, read_tensors, trim_text, write_index
from ..codecs import Codec, TextEncoder
from ..videos import ClipError, read_clip
from .records import Clip, for_each, place, read_json, wait_for_all, write_json
from .standardise import read_pixels

SHARD_CLIPS = 128  # about 1 GB of 480p latents and text states


def encode(
    source: Path, clips: list[Clip], fps: float, codec: Codec, text: TextEncoder, batch_size: int, out: Path
) -> list[Clip]:
    """Latents and text states of each clip, in a file each; from out/clips where the mp4s are there, else the source.

    The same clips always form a batch, so that the same numbers come out whenever a run was stopped. Returns the clips,
    with a reason those that broke when they were read.
    """
    made, broken = out / "work" / "encoded", out / "work" / "broken"
    made.mkdir(parents=True, exist_ok=True)
    packed = _packed(out)
    device = _device()

    def done(clip: Clip) -> bool:
        return clip.name in packed or any(
            path.is_file() for path in (made / f"{clip.name}.safetensors", broken / f"{clip.name}.json")
        )

    def work(batch: list[Clip]) -> None:
        pixels: dict[str, Tensor] = {}
        for clip in batch:
            try:
                pixels[clip.name] = _pixels(source, clip, fps, out)
            except ClipError as error:
                write_json(broken / f"{clip.name}.json", f"unreadable: {error}")
        if pixels:
            latents = codec.encode(torch.stack(list(pixels.values())).to(device).float() / 127.5 - 1).bfloat16().cpu()
            whole = [clip for clip in batch if clip.name in pixels]
            states = text([clip.prompt for clip in whole], device).cpu()
            for clip, x, y in zip(whole, latents, states, strict=True):
                tensors = {"latents": x.contiguous(), "text": trim_text(y).contiguous()}
                save_whole(tensors, made / f"{clip.name}.safetensors")

    for_each("encode", form_batches(clips, batch_size), lambda batch: all(map(done, batch)), work)
    if place()[0] == 0:
        empty = text([""], device)[0].cpu()
        save_whole({"text": trim_text(empty).contiguous()}, out / "empty_prompt.safetensors")
    reasons = {path.stem: read_json(path) for path in broken.glob("*.json")}
    return [replace(clip, reasons=(reasons[clip.name],)) if clip.name in reasons else clip for clip in clips]


def form_batches(clips: list[Clip], batch_size: int) -> list[list[Clip]]:
    by_size = defaultdict(list)
    for clip in clips:
        by_size[clip.size].append(clip)
    return [same[i : i + batch_size] for same in by_size.values() for i in range(0, len(same), batch_size)]


def _pixels(source: Path, clip: Clip, fps: float, out: Path) -> Tensor:
    standardised = out / "clips" / f"{clip.name}.mp4"
    if standardised.is_file():
        return read_clip(standardised, clip.size[0], fps, *clip.size[1:])
    return read_pixels(source, clip, fps)


def pack(clips: list[Clip], val_share: float, fps: float, codec: Codec, text: TextEncoder, out: Path) -> None:
    """Shards of one size each, in the order of the clips' content hashes, and the index; all appear whole or not."""
    if place()[0] > 0:
        return wait_for_all()
    aside, packed = out / ".shards.part", _packed(out)
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir()
    held_out = choose_held_out(clips, val_share)
    cached: list[CachedClip] = []
    for group in _group(clips):
        size = group[0].size
        name = f"{size[0]}x{size[1]}x{size[2]}-{len({clip.shard for clip in cached}):05}.safetensors"
        tensors = {}
        for clip in group:
            latents, states = _read_encoded(clip, out, packed)
            tensors |= {f"{clip.name}/latents": latents, f"{clip.name}/text": states}
        save_file(tensors, aside / name, metadata={"format": "pt"})
        cached += [CachedClip(c.name, f"shards/{name}", c.size, c.prompt, c.name in held_out) for c in group]
    index = Index(out, fps, codec.spec(), text.spec(), text.length, cached)
    (out / INDEX).unlink(missing_ok=True)
    shutil.rmtree(out / "shards", ignore_errors=True)
    aside.rename(out / "shards")
    write_index(index)
    shutil.rmtree(out / "work" / "encoded", ignore_errors=True)
    wait_for_all()


def choose_held_out(clips: list[Clip], share: float) -> set[str]:
    """The clips for validation, by their content hashes: those in the lowest `share` of all hashes, at least one."""
    hashes = {clip.name: int(clip.digest[:16], 16) / 2**64 for clip in clips}
    chosen = {name for name, value in hashes.items() if value < share}
    return chosen or {min(hashes, key=hashes.get)}


def _group(clips: list[Clip]) -> list[list[Clip]]:
    """Clips of one size, in the order of their content hashes, in groups of up to SHARD_CLIPS."""
    return form_batches(sorted(clips, key=lambda clip: (clip.size, clip.digest)), SHARD_CLIPS)


def _packed(out: Path) -> dict[str, Path]:
    """The shard of each clip that was packed before."""
    if not is_prepared(out):
        return {}
    return {clip.name: out / clip.shard for clip in read_index(out).clips}


def _read_encoded(clip: Clip, out: Path, packed: dict[str, Path]) -> list[Tensor]:
    if clip.name in packed:
        return read_tensors(packed[clip.name], f"{clip.name}/latents", f"{clip.name}/text")
    return read_tensors(out / "work" / "encoded" / f"{clip.name}.safetensors", "latents", "text")


def save_whole(tensors: dict[str, Tensor], path: Path) -> None:
    aside = path.with_name(f".{path.name}.part")
    save_file(tensors, aside, metadata={"format": "pt"})
    aside.replace(path)


def _device() -> torch.device:
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", place()[0] % torch.cuda.device_count())
