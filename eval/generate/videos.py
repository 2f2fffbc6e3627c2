"""Making the videos of a run: shared out to processes, resumable, each with its settings beside it."""

from __future__ import annotations

import json
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch

from fps_flex.checks import show
from fps_flex.choice import describe_choice
from fps_flex.wan.sequence import Call
from train.common.console import writable
from train.common.faults import ClipError
from train.common.pictures import draw_contact_sheet
from train.common.ranks import rank_and_world, speaks
from train.common.refusals import one_line
from train.common.videos import encode_video, read_clip, unfinished
from train.common.work import compute_dtype, find_device, progress_bar

from ..timing import peak_gb
from .jobs import Clip, Job, Settings
from .maker import Maker, encode_prompts, load_maker
from .models import TextToVideo
from .records import Records
from .sampling import build_scheduler, list_regimes, mean_density
from .teams import Team

SHOWN = 10  # lines about videos that are made again

logger = logging.getLogger(__name__)


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
def make_videos(kept: Records, jobs: list[Job], team: Team | None = None) -> bool:
    """Make what is missing of this process's share of the jobs; returns whether the videos of all jobs are there.

    Under torchrun the jobs are dealt out to the processes, one to a GPU, which holds both of two experts, or to teams
    of them. Files appear whole or not at all. team: None is one process.
    Videos that are broken, or of weights that lay where others lie now, are made again. Raises ValueError when a folder
    can't be written, or holds videos made with other settings or what is no video of such a run, for encoders that
    can't be loaded, and where a team can't share a video; torch.OutOfMemoryError when the memory is full.
    """
    device, team, model, settings = find_device(), team or Team(*rank_and_world()), kept.model, kept.settings

    def check() -> None:
        """Before anything is looked for or made."""
        _check_attention(model, settings.clip, device, team)
        for record in (kept.shared, *({"prompt": prompt} for prompt in {job.prompt for job in jobs})):
            _check_text(record)

    def load() -> Maker:
        if team.leads:
            model.codec.load()
            _say_attention(model, settings, device)
        prompts = sorted({job.prompt for job in todo} | {settings.negative_prompt})
        return load_maker(model, settings, encode_prompts(model, prompts, device, kept.folder), device, team)

    team.together(check, everyone=True)
    with ExitStack() as stack:
        team.together(lambda: team.leads and stack.enter_context(writable(kept.videos, kept.folder)), everyone=True)
        mine = jobs[team.number :: team.count]
        todo = team.together(lambda: _find_todo(kept, jobs, mine) if team.leads else [], everyone=True)
        todo = team.from_leader(todo)
        if todo:
            _make_all(team.together(load), kept, todo)
    return kept.count_missing(jobs) == 0


@torch.no_grad()
def _check_attention(model: TextToVideo, clip: Clip, device: torch.device, team: Team) -> None:
    """Raises ValueError for an attention that the device can't compute, or the team can't share."""
    config, dtype = model.weights.config, compute_dtype(device)
    model.attention.check_model(config.layers, config.head_dim)
    plan = model.attention.plan(model.grid(clip.size), torch.zeros(1, device=device))
    model.attention.engine_for(torch.empty(1, config.heads, 1, config.head_dim, dtype=dtype, device=device))
    team.sequence.share(Call(model.attention, plan, torch.zeros(1), config.heads, config.head_dim, dtype))


def _say_attention(model: TextToVideo, settings: Settings, device: torch.device) -> None:
    """What it takes on this grid, and how many steps meet each of its regimes."""
    attention, grid, config = model.attention, model.grid(settings.clip.size), model.weights.config
    if attention.is_dense or not speaks():
        return
    print(describe_choice(attention, grid, device, compute_dtype(device), config.head_dim), flush=True)
    scheduler = build_scheduler(settings.sampler, settings.steps, settings.shift)
    met = Counter(list_regimes(attention, scheduler))
    counts = " / ".join(str(met[regime]) for regime in range(len(attention.step_schedule.regimes)))
    density = mean_density(attention, grid, scheduler, config.layers)
    print(f"{settings.steps} steps, {counts} of them in each regime, mean density {density:.2f}", flush=True)


def _find_todo(kept: Records, jobs: list[Job], mine: list[Job]) -> list[Job]:
    """Those of this process's jobs whose videos are missing, or have to be made again, which is said.

    Raises ValueError where a video of any process would be written over what isn't ours.
    """
    kept.check_all(jobs)
    reasons = {job: kept.why(job) for job in mine}
    todo = [job for job in mine if reasons[job] is not None]
    if len(todo) < len(mine):
        print(f"{len(mine) - len(todo)} of {len(mine)} videos are there already", flush=True)
    lines = [reasons[job] for job in todo if reasons[job]]
    for line in lines[:SHOWN]:
        print(line, flush=True)
    if len(lines) > SHOWN:
        print(f"and {len(lines) - SHOWN:,} more videos are made again for such reasons", flush=True)
    return todo


def _make_all(maker: Maker, kept: Records, todo: list[Job]) -> None:
    team, (rank, world) = maker.team, rank_and_world()
    with progress_bar(rank == 0) as progress:
        bar = progress.add_task("steps", total=len(todo) * maker.settings.steps)
        for job in todo:
            started = time.perf_counter()
            team.together(lambda: _make(maker, kept, job, lambda: progress.advance(bar)))  # noqa: B023
            if team.leads:
                progress.console.print(f"wrote {kept.video(job)}", soft_wrap=True, highlight=False, markup=False)
            if job is todo[0] and len(todo) > 1 and rank == 0:
                line = _say_what_is_left(time.perf_counter() - started, len(todo) - 1, world, maker.device)
                progress.console.print(line, soft_wrap=True, highlight=False)


def _make(maker: Maker, kept: Records, job: Job, after_step: Callable[[], None]) -> None:
    """By all processes of the team; its leader has the codec, and keeps the video.

    The record comes first: a stop in between leaves one without its video, which is then missing. Raises ValueError
    where they can't be written.
    """
    started, path, settings = time.perf_counter(), kept.video(job), maker.settings
    if maker.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(maker.device)
    latents = maker.sample(job, after_step)
    if not maker.team.leads:
        return
    video = maker.decode(latents)
    try:
        with unfinished(path) as temporary:
            encode_video(temporary, video, settings.clip.fps, settings.lossless)
            seconds = time.perf_counter() - started
            kept.write(job, temporary, seconds, peak_gb(maker.device), maker.team.size)
            temporary.replace(path)
    except OSError as error:
        raise ValueError(f"{path} can't be written ({error.strerror or error}): make room") from None


def _say_what_is_left(seconds: float, more: int, world: int, device: torch.device) -> str:
    """more: videos of this process or team, of `world` processes that have about as many."""
    kind, left = "GPU" if device.type == "cuda" else "CPU", seconds * more
    total = f"the first video took {seconds:.1f} s: about {_span(left * world)} of a {kind} to go"
    return total if world == 1 else f"{total}, {_span(left)} on {world} of them"


def _span(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.3g} h"


def _check_text(record: dict[str, Any]) -> None:
    """Raises ValueError for what can't be written as text: bytes of a command line that are no UTF-8."""
    for name, value in record.items():
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise ValueError(f"{name} is {show(value)}, expected text in UTF-8") from None


@memory_in_a_line()
def draw_contacts(path: Path, folder: Path, jobs: list[Job], clip: Clip) -> None:
    """A contact sheet of the jobs' videos; those that can't be read are left out, and what fails costs the sheet."""
    videos, captions = [], []
    for job in jobs:
        try:
            videos.append(read_clip(folder / f"{job.name}.mp4", clip.frames, clip.fps, clip.height, clip.width))
            captions.append(f"{job.prompt[:80]} (seed {job.seed})")
        except (ClipError, OSError) as error:
            logger.warning("%s leaves out a video (%s)", path, one_line(error))
    try:
        draw_contact_sheet(path, torch.stack(videos).float() / 127.5 - 1, captions)
    except Exception as error:
        logger.warning("%s was not drawn (%s); the videos are there", path, one_line(error))
