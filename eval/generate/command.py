"""Generate videos from prompts, with any checkpoint.

python -m eval.generate --config configs/generate.yaml --checkpoint CKPT --prompt "a red circle" --out videos
torchrun --nproc-per-node 8 -m eval.generate --checkpoint CKPT --prompts FILE --out videos
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from fps_flex.checks import at_home, require
from fps_flex.wan.linears import Linears
from fps_flex.wan.model import Residual
from fps_flex.wan.weights import Which
from train.common.atomic import check_ours
from train.common.console import cli_errors, run_command

from .attention import AttentionChanges
from .jobs import Job, Settings
from .models import TextToVideo, open_model
from .prompts import file_name, read_prompts
from .sampling import MOST_GUIDANCE, Sampler, build_scheduler
from .sizes import check_size
from .videos import draw_contacts, make_videos

MOST_VIDEOS = 100_000  # of a prompt
MOST_SEED = 2**62
LEAST_FPS, MOST_FPS = 0.1, 1000  # that an mp4 can tell apart


def main(
    out: Path, prompt: str | None = None, prompts: Path | None = None, count: int = 1, seed: int = 0, **options: Any
) -> None:
    """Generate videos from prompts; a run that was stopped goes on where it was.

    Args:
        out: folder for the videos, each with a JSON of its settings beside it.
        prompt: what to show.
        prompts: a text file with a prompt a line, in place of `prompt`; one that is there twice is made once.
        count: videos of each prompt.
        seed: of each prompt's first video; its next one has the next. Other prompts, and their order, change nothing.
        options: of `resolve_settings`.
    """
    out, prompts = at_home(out), prompts and at_home(prompts)
    jobs = plan_jobs(read_prompts(prompt, prompts), count, seed)
    sheet = out / "contact.png"
    check_ours(sheet)
    model, settings = resolve_settings(**options)
    if make_videos(model, settings, jobs, out):
        draw_contacts(sheet, out, jobs[:8], settings.clip)


def resolve_settings(
    checkpoint: str,
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
    attention: AttentionChanges | None = None,
    linears: Linears = "bf16",
    residual: Residual | None = None,
    encoders: str | None = None,
    low_noise: str | None = None,
    boundary: float | None = None,
    low_noise_guidance: float | None = None,
    lora: list[str] | None = None,
    low_noise_lora: list[str] | None = None,
    base: str | None = None,
    lossless: bool = False,
) -> tuple[TextToVideo, Settings]:
    """A checkpoint, opened and checked, and how it makes videos. Raises ValueError for what doesn't fit.

    Args:
        checkpoint: a .ckpt of train.fit, or Wan2.1 or Wan2.2 as released, official or diffusers: a folder or a file;
            of a release with two transformers (Wan2.2 A14B) its folder, for both, or the one for high noise.
        negative_prompt: what guidance leads away from; none takes the text encoder's own.
        sampler: unipc or euler.
        steps: of the sampler.
        guidance: 1 follows the prompt alone, more stresses it.
        shift: of the noise levels; none takes that of training (where two experts were trained, of the high-noise one),
            or for released weights 12 for two experts, 5 for Wan2.2's 5B, else 3 below 720p and 5 from there on.
        frames: none takes those of training, or 81, or 121 for Wan2.2's 5B.
        height: rows of pixels; none takes those of training, or 480, or 704 for Wan2.2's 5B.
        width: columns of pixels; none takes those of training, or 832, or 1280 for Wan2.2's 5B.
        fps: frames a second; none takes those of training, or 16, or 24 for Wan2.2's 5B.
        weights: of a .ckpt, the averaged or the live ones.
        attention: options in place of those of training, or of dense attention for released weights.
        linears: the transformer's linear layers on a GPU: bf16, or faster and rounded to FP8: those of the feed-forward
            networks (fp8-ffn), or all of its blocks' (fp8), with torchao installed.
        residual: what runs from block to block, and the head: in the dtype of the computation (compute), or in fp32 as
            in the official model; none takes that of training, or fp32 for released weights.
        encoders: folder with vae/, text_encoder/ and tokenizer/; none looks beside released weights.
        low_noise: the low-noise one of two experts, like `checkpoint`: fine-tuned, or a release's; none takes that of
            the release. Both are in the GPU's memory: 2 x 28 GB.
        boundary: noise level from which up `checkpoint` denoises, and below which the low-noise expert does; none takes
            what they were made for, or 0.875, that of Wan2.2's A14B.
        low_noise_guidance: of the low-noise expert; none takes `guidance` (Wan2.2's own A14B takes 3, and 4 for high
            noise, in 40 steps).
        lora: FILE or FILE:STRENGTH, added to the transformer, of two experts to both; again for each one more. What
            follows the last colon is the strength where it is a number, else that is 1. Safetensors of diffusers,
            ComfyUI, DiffSynth, musubi, kohya or peft, or a .ckpt of train.fit that trained one.
        low_noise_lora: of the low-noise one of two experts, in place of `lora`; [] adds none to it.
        base: what the LoRA in a .ckpt of train.fit was trained on, where that has moved.
        lossless: keep every pixel, to measure videos with eval.fidelity: plain H.264 (crf 18) hides what differs less
            than its own loss. Files are 40 to 80 times as large (81 frames at 480p some 50 MB), and many players,
            browsers among them, can't show their RGB (High 4:4:4 Predictive); ffmpeg, mpv and VLC can.
    """
    model = open_model(checkpoint, weights, encoders, attention, low_noise, boundary, lora or (), low_noise_lora, base)
    require("guidance", guidance, least=0, most=MOST_GUIDANCE)
    given = {"frames": frames, "height": height, "width": width, "fps": fps}
    clip = replace(model.clip, **{name: value for name, value in given.items() if value is not None})
    require("fps", clip.fps, least=LEAST_FPS, most=MOST_FPS)
    check_size(model, clip.size)
    if shift is None:
        shift = model.shift or (5.0 if min(clip.height, clip.width) >= 720 else 3.0)
    build_scheduler(sampler, steps, shift)
    negative = model.text.negative_prompt if negative_prompt is None else negative_prompt
    residual = residual or model.residual
    return model, Settings(
        checkpoint, weights, negative, sampler, steps, guidance, shift, linears, residual, clip,
        **_resolve_low(model, guidance, low_noise_guidance), lossless=lossless,
    )  # fmt: skip


def _resolve_low(model: TextToVideo, guidance: float, own: float | None) -> dict[str, Any]:
    """Settings of the second of two experts. own: its guidance, where given. Raises ValueError for that without it."""
    if own is not None:
        require("low_noise_guidance", own, least=0, most=MOST_GUIDANCE)
    if model.low is None and own is not None:
        raise ValueError(
            "low_noise_guidance is of the second of two experts, and there is one transformer: leave it out"
        )
    if model.low is None:
        return {}
    guidance = guidance if own is None else own
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
            main, args, as_positional=False, description=__doc__.splitlines()[0], prog="python -m eval.generate"
        )
