"""Making the videos of a run: shared out to processes, resumable, each with its settings beside it."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor

from fps_flex import Wan
from fps_flex.checks import show
from fps_flex.linears import Linears, check_linears
from fps_flex.wan import Residual
from fps_flex.weights import Which
from train.console import check_writable
from train.faults import ClipError
from train.pictures import draw_contact_sheet
from train.streams import open_video
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


@contextmanager
def memory_in_a_line() -> Iterator[None]:
    """Host memory that is full raises what a GPU's does. Raises torch.OutOfMemoryError."""
    allocator = "DefaultCPUAllocator: "
    try:
        yield
    except RuntimeError as error:
        if allocator not in str(error):
            raise
        what = str(error).partition(allocator)[2].splitlines()[0]
        raise torch.OutOfMemoryError(f"{what}: make smaller or shorter videos") from None
    except MemoryError:
        raise torch.OutOfMemoryError("the memory is full: make smaller or shorter videos") from None


@memory_in_a_line()
def make_videos(
    model: TextToVideo, settings: Settings, jobs: list[Job], out: Path, records: Path | None = None
) -> bool:
    """Make what is missing of this process's share of the jobs; returns whether the videos of all jobs are there.

    Under torchrun the jobs are dealt out to the processes, one to a GPU, which holds both of two experts. Files appear
    whole or not at all.
    records: folder of the JSON of each video's settings; None puts them beside the videos.
    Raises ValueError when a folder can't be written or holds videos made with other settings, for encoders that can't
    be loaded, and as `check_linears`; torch.OutOfMemoryError when the memory is full.
    """
    device = _device()
    check_linears(settings.linears, device)
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    records = records or out
    shared = _shared_record(model, settings)
    said = {job: {**asdict(job), **shared} for job in jobs}
    for record in (shared, *({"prompt": prompt} for prompt in {job.prompt for job in jobs})):
        _check_text(record)
    made = [path for folder in (records, out) for path in (folder, *folder.parents) if not os.path.exists(path)]
    for folder in (out, records):
        check_writable(folder, "--out")
    todo = [job for job in jobs[rank::world] if not _is_done(out, records, job, said[job])]
    if len(todo) < len(jobs[rank::world]):
        print(f"{len(jobs[rank::world]) - len(todo)} of {len(jobs[rank::world])} videos are there already", flush=True)
    if todo:
        prompts = sorted({job.prompt for job in todo} | {settings.negative_prompt})
        with _removed_if_refused(made):
            model.codec.load()
            states = _encode(model, prompts, device)
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


@contextmanager
def _removed_if_refused(folders: list[Path]) -> Iterator[None]:
    """Folders that a ValueError leaves empty."""
    try:
        yield
    except ValueError:
        for folder in folders:
            with suppress(OSError):  # it isn't empty, or another process has removed it
                folder.rmdir()
        raise


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
    """Pixels in -1 to 1. The noise depends on the seed alone, whatever the device. Raises ValueError for NaN."""
    device = wan.patch_embedding.weight.device
    shape = (1, model.codec.channels, *model.codec.latent_size(settings.clip.size))
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(job.seed)).to(device)
    text, no_text = (states[prompt].to(device) for prompt in (job.prompt, settings.negative_prompt))
    scheduler = build_scheduler(settings.sampler, settings.steps, settings.shift)
    latents = sample_latents(wan, scheduler, noise, text, no_text, settings.guidance, after_step, low)
    video = model.codec.decode(latents)[0].clamp(-1, 1)
    if video.isnan().any():
        raise ValueError("the codec gives pixels that aren't finite: look at its weights, and at guidance and shift")
    return video


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


def _check_text(record: dict[str, Any]) -> None:
    """Raises ValueError for what can't be written as text: bytes of a command line that are no UTF-8."""
    for name, value in record.items():
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise ValueError(f"{name} is {show(value)}, expected text in UTF-8") from None


def _is_done(out: Path, records: Path, job: Job, record: dict[str, Any]) -> bool:
    """The JSON is written last. Raises ValueError when it says other settings than today's."""
    file = records / f"{job.name}.json"
    video = out / f"{job.name}.mp4"
    if not (file.is_file() and video.is_file()):
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
        raise ValueError(f"{video} was made with {was}: choose another --out")
    if not _is_whole(video, record["clip"]["frames"]):
        print(f"{video} is broken: it is made again", flush=True)
        return False
    return True


def _is_whole(video: Path, frames: int) -> bool:
    """Whether each frame's data is there; it is not decoded."""
    try:
        with open_video(video) as (container, stream):
            return sum(packet.size > 0 and not packet.is_corrupt for packet in container.demux(stream)) == frames
    except ClipError:
        return False


def _says_the_same(one: Any, other: Any) -> bool:
    """Whether two values are the same JSON: to Python 1, 1.0 and true are equal, but as settings they differ."""
    return json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)


@memory_in_a_line()
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
