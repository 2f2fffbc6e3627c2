"""Generate videos from prompts, with any checkpoint.

python -m eval.generate --config configs/generate.yaml --checkpoint CKPT --prompt "a red circle" --out videos
torchrun --nproc-per-node 8 -m eval.generate --checkpoint CKPT --prompts FILE --out videos
"""

from __future__ import annotations

import json
import logging
import os
import re
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from jsonargparse import ArgumentError, auto_cli
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor

from fps_flex import FPSAttention, Wan
from fps_flex.weights import Which
from train.console import check_writable, one_line, stop
from train.pictures import draw_contact_sheet
from train.videos import read_clip, write_video

from .models import Clip, TextToVideo, describe, open_model
from .sampling import Sampler, build_scheduler, list_regimes, sample_latents


@dataclass(frozen=True)
class Job:
    """One video to make: name.mp4."""

    name: str
    prompt: str
    seed: int


@dataclass(frozen=True)
class Settings:
    """What all videos of a run share."""

    checkpoint: str
    weights: Which
    negative_prompt: str
    sampler: Sampler
    steps: int
    guidance: float
    shift: float
    clip: Clip


def main(
    checkpoint: str,
    out: Path,
    prompt: str | None = None,
    prompts: Path | None = None,
    count: int = 1,
    seed: int = 0,
    negative_prompt: str | None = None,
    sampler: Sampler = "unipc",
    steps: int = 50,
    guidance: float = 5.0,
    shift: float | None = None,
    frames: int | None = None,
    height: int | None = None,
    width: int | None = None,
    fps: float | None = None,
    weights: Which = "average",
    attention: FPSAttention | None = None,
    encoders: str | None = None,
) -> None:
    """Generate videos from prompts; a run that was stopped goes on where it was.

    Args:
        checkpoint: a .ckpt of train.fit, or Wan2.1 as released, official or diffusers: a folder or a file.
        out: folder for the videos, each with a JSON of its settings beside it.
        prompt: what to show.
        prompts: a text file with a prompt a line, in place of `prompt`.
        count: videos of each prompt.
        seed: of the first video; each further one has the next.
        negative_prompt: what guidance leads away from; none takes the text encoder's own.
        sampler: unipc or euler.
        steps: of the sampler.
        guidance: 1 follows the prompt alone, more stresses it.
        shift: of the noise levels; none takes that of training, or for released weights 3 below 720p, else 5.
        frames: none takes those of training, or 81.
        height: rows of pixels; none takes those of training, or 480.
        width: columns of pixels; none takes those of training, or 832.
        fps: frames a second; none takes those of training, or 16.
        weights: of a .ckpt, the averaged or the live ones.
        attention: none takes that of training, or dense attention for released weights.
        encoders: folder with vae/, text_encoder/ and tokenizer/; none looks beside released weights.
    """
    model = open_model(checkpoint, weights, encoders, attention)
    given = {"frames": frames, "height": height, "width": width, "fps": fps}
    clip = replace(model.clip, **{name: value for name, value in given.items() if value is not None})
    model.check(clip.size)
    settings = Settings(
        checkpoint,
        weights,
        model.text.negative_prompt if negative_prompt is None else negative_prompt,
        sampler,
        steps,
        guidance,
        shift or model.shift or (5.0 if min(clip.height, clip.width) >= 720 else 3.0),
        clip,
    )
    build_scheduler(sampler, steps, settings.shift)
    make_videos(model, settings, plan_jobs(read_prompts(prompt, prompts), count, seed), out)


def read_prompts(prompt: str | None, prompts: Path | None) -> list[str]:
    """Raises ValueError unless exactly one is given and it holds a prompt."""
    if (prompt is None) == (prompts is None):
        raise ValueError("expected either --prompt TEXT or --prompts FILE")
    if prompt is not None:
        return [prompt]
    try:
        lines = [line.strip() for line in prompts.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{prompts} can't be read as text ({error}): expected a prompt a line") from None
    if not any(lines):
        raise ValueError(f"{prompts} holds no prompt: expected one a line")
    return [line for line in lines if line]


def plan_jobs(prompts: list[str], count: int, seed: int) -> list[Job]:
    """`count` videos of each prompt, each with a seed of its own. Raises ValueError below 1."""
    if count < 1:
        raise ValueError(f"count is {count}, expected at least 1 video of each prompt")
    every = [prompt for prompt in prompts for _ in range(count)]
    return [
        Job(f"{i:04}-{re.sub(r'[^a-z0-9]+', '-', prompt.lower())[:40].strip('-')}-seed{seed + i}", prompt, seed + i)
        for i, prompt in enumerate(every)
    ]


def make_videos(model: TextToVideo, settings: Settings, jobs: list[Job], out: Path) -> None:
    """Make what is missing of this process's share of the jobs, and a contact sheet once all are there.

    Under torchrun the jobs are dealt out to the processes, one to a GPU. Files appear whole or not at all.
    Raises ValueError when `out` can't be written or holds videos made with other settings.
    """
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    check_writable(out, "--out")
    shared = _shared_record(model, settings)
    records = {job: {**asdict(job), **shared} for job in jobs}
    todo = [job for job in jobs[rank::world] if not _is_done(out, job, records[job])]
    if len(todo) < len(jobs[rank::world]):
        print(f"{len(jobs[rank::world]) - len(todo)} of {len(jobs[rank::world])} videos are there already", flush=True)
    if todo:
        device = _device()
        model.codec.load()
        states = _encode(model, sorted({job.prompt for job in todo} | {settings.negative_prompt}), device)
        wan = model.load(device)
        with _progress(enabled=rank == 0) as progress:
            bar = progress.add_task("steps", total=len(todo) * settings.steps)
            for job in todo:
                video = _make(wan, model, settings, job, states, lambda: progress.advance(bar))
                write_video(out / f"{job.name}.mp4", video, settings.clip.fps)
                _write_whole(out / f"{job.name}.json", json.dumps(records[job], indent=1, ensure_ascii=False) + "\n")
                progress.console.print(f"wrote {out / job.name}.mp4", soft_wrap=True, highlight=False)
    if all((out / f"{job.name}.json").is_file() for job in jobs):
        _draw_contacts(out, jobs[:8], settings.clip)


def _make(wan: Wan, model: TextToVideo, settings: Settings, job: Job, states: dict[str, Tensor], after_step) -> Tensor:
    """Pixels [3, F, H, W] in -1 to 1. The noise depends on the seed alone, whatever the device."""
    device = wan.patch_embedding.weight.device
    shape = (1, model.codec.channels, *model.codec.latent_size(settings.clip.size))
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(job.seed)).to(device)
    text, no_text = (states[prompt].to(device) for prompt in (job.prompt, settings.negative_prompt))
    scheduler = build_scheduler(settings.sampler, settings.steps, settings.shift)
    latents = sample_latents(wan, scheduler, noise, text, no_text, settings.guidance, after_step)
    return model.codec.decode(latents)[0].clamp(-1, 1)


def _encode(model: TextToVideo, prompts: list[str], device: torch.device) -> dict[str, Tensor]:
    """States [1, L, E] of each prompt in host memory; the encoder goes before the transformer comes."""
    states = {prompt: model.text([prompt], device).cpu() for prompt in prompts}
    model.text.unload()
    return states


def _shared_record(model: TextToVideo, settings: Settings) -> dict[str, Any]:
    """Every setting that all videos depend on, and what made them, as plain data."""
    scheduler = build_scheduler(settings.sampler, settings.steps, settings.shift)
    record = {
        **asdict(settings),
        **describe(model),
        "regimes": list_regimes(model.attention, scheduler),
        "versions": {name: version(name) for name in ("torch", "diffusers")},
    }
    return json.loads(json.dumps(record))


def _is_done(out: Path, job: Job, record: dict[str, Any]) -> bool:
    """The JSON is written last. Raises ValueError when it says other settings than today's."""
    file = out / f"{job.name}.json"
    if not (file.is_file() and (out / f"{job.name}.mp4").is_file()):
        return False
    made = json.loads(file.read_text(encoding="utf-8"))
    other = [name for name in record if name != "versions" and made.get(name) != record[name]]
    if other:
        was = ", ".join(f"{name} {made.get(name)} (now {record[name]})" for name in other)
        raise ValueError(f"{out / job.name}.mp4 was made with {was}: choose another --out")
    return True


def _draw_contacts(out: Path, jobs: list[Job], clip: Clip) -> None:
    videos = [read_clip(out / f"{job.name}.mp4", clip.frames, clip.fps, clip.height, clip.width) for job in jobs]
    captions = [f"{job.prompt[:80]} (seed {job.seed})" for job in jobs]
    draw_contact_sheet(out / "contact.png", torch.stack(videos).float() / 127.5 - 1, captions)


def _device() -> torch.device:
    if not torch.cuda.is_available():
        return torch.device("cpu")
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
    torch.cuda.set_device(device)
    return device


def _progress(enabled: bool) -> Progress:
    return Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("left"),
        TimeRemainingColumn(), console=Console(stderr=True), disable=not enabled,
    )  # fmt: skip


def _write_whole(path: Path, text: str) -> None:
    aside = path.with_name(f".{path.name}.part")
    aside.write_text(text, encoding="utf-8")
    aside.replace(path)


def command(args: list[str] | None = None) -> None:
    """args: the command line, without the command; by default this process's own."""
    logging.basicConfig(format="%(message)s")
    logging.getLogger("fps_flex").setLevel(logging.INFO)
    try:
        auto_cli(main, args=args, as_positional=False, exit_on_error=False, description=__doc__.splitlines()[0])
    except (ValueError, ArgumentError) as error:
        stop(one_line(error), code=2)
    except KeyboardInterrupt:
        stop("stopped; the same command goes on with what is missing", code=130)


if __name__ == "__main__":
    command()
