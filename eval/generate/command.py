"""Generate videos from prompts, with any checkpoint.

python -m eval.generate --config configs/generate.yaml --checkpoint CKPT --prompt "a red circle" --out videos
torchrun --nproc-per-node 8 -m eval.generate --checkpoint CKPT --prompts FILE --out videos
torchrun --nproc_per_node 4 -m -- eval.generate --parallel.sequence 2 --parallel.guidance 2 --checkpoint CKPT ...
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from fps_flex.checks import at_home, require
from fps_flex.wan.linears import check_linears
from train.common.atomic import check_ours
from train.common.console import cli_errors, run_command
from train.common.work import find_device

from .compile_cache import kept_graphs
from .jobs import Job, Options, Settings
from .loras import LISTS
from .models import TextToVideo, open_model
from .prompts import file_name, read_prompts
from .records import Records, open_records
from .sampling import MOST_GUIDANCE, build_scheduler
from .sizes import check_size
from .teams import Parallel, form_team
from .videos import draw_contacts, make_videos

MOST_VIDEOS = 100_000  # of a prompt
MOST_SEED = 2**62
LEAST_FPS, MOST_FPS = 0.1, 1000  # that an mp4 can tell apart


def main(
    out: Path,
    prompt: str | None = None,
    prompts: Path | None = None,
    count: int = 1,
    seed: int = 0,
    parallel: Parallel = Parallel(),  # noqa: B008 - it can't change
    compile_cache: Path | None = None,
    **options: Any,
) -> None:
    """Generate videos from prompts; a run that was stopped goes on where it was.

    Args:
        out: folder for the videos, each with a JSON of its settings beside it.
        prompt: what to show.
        prompts: a text file with a prompt a line, in place of `prompt`; one that is there twice is made once.
        count: videos of each prompt.
        seed: of each prompt's first video; its next one has the next. Other prompts, and their order, change nothing.
        parallel: processes that make each video together.
        compile_cache: folder that keeps what is compiled on a GPU, for the next run's first step on this PyTorch and
            kind of GPU; one of your own, as files in it can run code.
        options: of `Options`.
    """
    out, prompts = at_home(out), prompts and at_home(prompts)
    sheet, team = out / "contact.png", form_team(parallel)

    def resolve() -> tuple[list[Job], Records]:
        jobs = plan_jobs(read_prompts(prompt, prompts), count, seed)
        check_ours(sheet)
        model, settings = resolve_settings(Options(**options))
        parallel.check_passes(settings.guidance, settings.low_noise_guidance)
        return jobs, open_records(model, settings, out)

    jobs, kept = team.together(resolve, everyone=True)
    with ExitStack() as stack:
        graphs = kept_graphs(compile_cache and at_home(compile_cache))
        team.together(lambda: stack.enter_context(graphs), everyone=True)
        done = make_videos(kept, jobs, team)
    if done and team.leads:
        draw_contacts(sheet, out, jobs[:8], kept.settings.clip)
    team.disband()


def resolve_settings(options: Options) -> tuple[TextToVideo, Settings]:
    """A checkpoint, opened and checked, and how it makes videos. Raises ValueError for what doesn't fit."""
    x, model = options, open_model(options)
    check_linears(x.linears, find_device())
    require("guidance", x.guidance, least=0, most=MOST_GUIDANCE)
    given = {name: value for name in ("frames", "height", "width", "fps") if (value := getattr(x, name)) is not None}
    clip = replace(model.clip, **given)
    require("fps", clip.fps, least=LEAST_FPS, most=MOST_FPS)
    check_size(model, clip.size)
    shift = x.shift
    if shift is None:
        shift = model.shift or (5.0 if min(clip.height, clip.width) >= 720 else 3.0)
    build_scheduler(x.sampler, x.steps, shift)
    negative = model.text.negative_prompt if x.negative_prompt is None else x.negative_prompt
    return model, Settings(
        x.checkpoint, x.weights, negative, x.sampler, x.steps, x.guidance, shift, x.linears,
        x.residual or model.residual, clip, **_resolve_low(model, x.guidance, x.low_noise_guidance),
        lossless=x.lossless,
    )  # fmt: skip


def _resolve_low(model: TextToVideo, guidance: float, own: float | None) -> dict[str, Any]:
    """Settings of the second of two experts. own: its guidance, where given. Raises ValueError for that without it."""
    guidance = guidance if own is None else own
    require("low_noise_guidance", guidance, least=0, most=MOST_GUIDANCE)
    if model.low is None:
        if own is None:
            return {}
        raise ValueError(
            "low_noise_guidance is of the second of two experts, and there is one transformer: leave it out"
        )
    return {"low_noise": model.low.path, "boundary": model.low.boundary, "low_noise_guidance": guidance}


def plan_jobs(prompts: list[str], count: int, seed: int) -> list[Job]:
    """`count` videos of each prompt, the k-th of which, from 0, has seed `seed` + k whatever the other prompts are.

    A prompt that is there twice is made once. Raises ValueError below 1 video, and for too many.
    """
    if not 1 <= count <= MOST_VIDEOS:
        raise ValueError(f"count is {count}, expected at least 1 video of each prompt and at most {MOST_VIDEOS:,}")
    require("seed", seed, least=0, most=MOST_SEED)
    seeds = range(seed, seed + count)
    return [Job(file_name(prompt, one), prompt, one) for prompt in dict.fromkeys(prompts) for one in seeds]


def command(args: list[str] | None = None) -> None:
    """args: the command line, without the command; by default this process's own."""
    with cli_errors("stopped; the same command goes on with what is missing"):
        run_command(
            main, args, LISTS, as_positional=False, description=__doc__.splitlines()[0], prog="python -m eval.generate"
        )
