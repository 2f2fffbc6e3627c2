"""What a run is asked for, and what it makes: its videos, and what they share."""

from __future__ import annotations

from dataclasses import dataclass

from fps_flex.checks import as_whole, require
from fps_flex.wan.config import Residual
from fps_flex.wan.linears import Linears
from fps_flex.wan.weights import Which

from .attention import AttentionChanges
from .sampling import Sampler


@dataclass(frozen=True)
class Clip:
    """A video's frames, rows and columns of pixels, and frames a second; the default is Wan2.1's at 480p.

    Raises ValueError for sizes that aren't whole numbers from 1 up, and a rate that isn't above 0.
    """

    frames: int = 81
    height: int = 480
    width: int = 832
    fps: float = 16.0

    def __post_init__(self) -> None:
        for name in ("frames", "height", "width"):
            as_whole(name, getattr(self, name))
        require("fps", self.fps, above=0, most=1000)

    @property
    def size(self) -> tuple[int, int, int]:
        return self.frames, self.height, self.width


@dataclass(frozen=True)
class Options:
    """A checkpoint, and how it is asked to make videos.

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
            networks (fp8-ffn), or all of its blocks' (fp8).
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

    checkpoint: str
    negative_prompt: str | None = None
    sampler: Sampler = "unipc"
    steps: int = 50
    guidance: float = 5.0
    shift: float | None = None
    frames: int | None = None
    height: int | None = None
    width: int | None = None
    fps: float | None = None
    weights: Which = "average"
    attention: AttentionChanges | None = None
    linears: Linears = "bf16"
    residual: Residual | None = None
    encoders: str | None = None
    low_noise: str | None = None
    boundary: float | None = None
    low_noise_guidance: float | None = None
    lora: list[str] | None = None
    low_noise_lora: list[str] | None = None
    base: str | None = None
    lossless: bool = False


@dataclass(frozen=True)
class Job:
    """One video to make: name.mp4."""

    name: str
    prompt: str
    seed: int


@dataclass(frozen=True)
class Settings:
    """What all videos of a run share.

    low_noise to low_noise_guidance: of the second of two experts, or None. lossless: whether each pixel is kept.
    """

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
    lossless: bool = False
