"""Making the videos of a run: shared out to processes, resumable, each with its settings beside it."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor

from fps_flex import Wan
from fps_flex.linears import Linears, check_linears
from fps_flex.wan import Residual
from fps_flex.weights import Which
from train.console import check_writable
from train.pictures import draw_contact_sheet
from train.videos import read_clip, write_video
from train.whole import write_text

from .models import Clip, TextToVideo, describe
from .sampling import LowNoise, Sampler, build_scheduler, list_regimes, sample_latents

if TYPE_CHECKING:
    from jaxtyping import Float


@dataclass(frozen=True)
class Job:
    """One video to make: name.mp4."""

    name: str
    prompt: str
    seed: int


@dataclass(frozen=True)
class Settings:
    """What all videos of a run share. low_noise to low_noise_guidance: of the second of two experts, or None."""

    checkpoint: str
    weights: Which
    negative_prompt: str
    sampler: Sampler
    steps: int
    guidance: float
    shift: float
    linears: Linears
    residual: Residual
    clip: Clip
    low_noise: str | None = None
    boundary: float | None = None
    low_noise_guidance: float | None = None


def make_videos(
    model: TextToVideo, settings: Settings, jobs: list[Job], out: Path, records: Path | None = None
) -> bool:
    """Make what is missing of this process's share of the jobs; returns whether the videos of all jobs are there.

    Under torchrun the jobs are dealt out to the processes, one to a GPU, which holds both of two experts. Files appear
    whole or not at all.
    records: folder of the JSON of each video's settings; None puts them beside the videos.
    Raises ValueError when a folder can't be written or holds videos made with other settings, and as `check_linears`.
    """
    device = _device()
    check_linears(settings.linears, device)
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    check_writable(out, "--out")
    records = records or out
    check_writable(records, "--out")
    shared = _shared_record(model, settings)
    said = {job: {**asdict(job), **shared} for job in jobs}
    todo = [job for job in jobs[rank::world] if not _is_done(out, records, job, said[job])]
    if len(todo) < len(jobs[rank::world]):
        print(f"{len(jobs[rank::world]) - len(todo)} of {len(jobs[rank::world])} videos are there already", flush=True)
    if todo:
        model.codec.load()
        states = _encode(model, sorted({job.prompt for job in todo} | {settings.negative_prompt}), device)
        wan = model.load(device, settings.linears, settings.residual)
        second = model.load_low(device, settings.linears, settings.residual)
        low = second and LowNoise(second, settings.boundary, settings.low_noise_guidance)
        with _progress(enabled=rank == 0) as progress:
            bar = progress.add_task("steps", total=len(todo) * settings.steps)
            for job in todo:
                started = time.perf_counter()
                video = _make(wan, low, model, settings, job, states, lambda: progress.advance(bar))
                write_video(out / f"{job.name}.mp4", video, settings.clip.fps)
                write_text(records / f"{job.name}.json", json.dumps(said[job], indent=1, ensure_ascii=False) + "\n")
                progress.console.print(f"wrote {out / job.name}.mp4", soft_wrap=True, highlight=False, markup=False)
                if job is todo[0] and len(todo) > 1 and rank == 0:
                    line = _say_what_is_left(time.perf_counter() - started, len(todo) - 1, world, device)
                    progress.console.print(line, soft_wrap=True, highlight=False)
    return all((records / f"{job.name}.json").is_file() for job in jobs)


def _say_what_is_left(seconds: float, more: int, world: int, device: torch.device) -> str:
    """more: videos of this process, of `world` that have about as many."""
    hours, kind = seconds * more / 3600, "GPU" if device.type == "cuda" else "CPU"
    total = f"the first video took {seconds:.1f} s: about {hours * world:.2g} {kind}-hours to go"
    return total if world == 1 else f"{total}, {hours:.2g} h on {world} of them"


def _make(
    wan: Wan,
    low: LowNoise | None,
    model: TextToVideo,
    settings: Settings,
    job: Job,
    states: dict[str, Tensor],
    after_step: Callable[[], None],
) -> Float[Tensor, "3 f h w"]:
    """Pixels in -1 to 1. The noise depends on the seed alone, whatever the device."""
    device = wan.patch_embedding.weight.device
    shape = (1, model.codec.channels, *model.codec.latent_size(settings.clip.size))
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(job.seed)).to(device)
    text, no_text = (states[prompt].to(device) for prompt in (job.prompt, settings.negative_prompt))
    scheduler = build_scheduler(settings.sampler, settings.steps, settings.shift)
    latents = sample_latents(wan, scheduler, noise, text, no_text, settings.guidance, after_step, low)
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


def _is_done(out: Path, records: Path, job: Job, record: dict[str, Any]) -> bool:
    """The JSON is written last. Raises ValueError when it says other settings than today's."""
    file = records / f"{job.name}.json"
    if not (file.is_file() and (out / f"{job.name}.mp4").is_file()):
        return False
    try:
        made = json.loads(file.read_text(encoding="utf-8"))
    except ValueError:
        print(f"{file} is broken: its video is made again", flush=True)
        return False
    if not isinstance(made, dict):
        raise ValueError(f"{file} holds no video's settings: choose another --out")
    other = [name for name in record if name != "versions" and not _says_the_same(made.get(name), record[name])]
    if other:
        was = ", ".join(f"{name} {made.get(name)} (now {record[name]})" for name in other)
        raise ValueError(f"{out / job.name}.mp4 was made with {was}: choose another --out")
    return True


def _says_the_same(one: Any, other: Any) -> bool:
    """Whether two values are the same JSON: to Python 1, 1.0 and true are equal, but as settings they differ."""
    return json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)


def draw_contacts(path: Path, folder: Path, jobs: list[Job], clip: Clip) -> None:
    """A contact sheet of the jobs' videos."""
    videos = [read_clip(folder / f"{job.name}.mp4", clip.frames, clip.fps, clip.height, clip.width) for job in jobs]
    captions = [f"{job.prompt[:80]} (seed {job.seed})" for job in jobs]
    draw_contact_sheet(path, torch.stack(videos).float() / 127.5 - 1, captions)


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
