"""A whole video, from prompt to mp4, stage by stage."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from fps_flex import FPSAttention
from fps_flex.checks import as_whole
from fps_flex.wan.auto import choose_exchange
from fps_flex.wan.encoders import WanVAE
from fps_flex.wan.linears import Linears, check_linears, quantize_linears
from train.common.videos import encode_video
from train.common.work import compute_dtype, find_device

from ..generate.sampling import build_scheduler, mean_density, sample_latents
from ..generate.teams import Parallel, Team, form_team
from ..timing import Row, check_out, forget_peak, peak_gb, report, time_once
from .sizes import (
    CONFIGS,
    GRIDS,
    SHIFTS,
    TEXT_TOKENS,
    Size,
    attention_of,
    call_at,
    latent_shape,
    levels_of,
    random_wan,
    tell_of_a_cpu,
)

COLUMNS = ("stage", "first_seconds", "seconds", "peak_gb")
FPS = 16.0
XXL = {"d_model": 4096, "d_ff": 10240, "d_kv": 64, "num_layers": 24, "num_heads": 64, "vocab_size": 256384}
SMALL_TEXT = {"d_model": 32, "d_ff": 64, "d_kv": 8, "num_layers": 1, "num_heads": 4, "vocab_size": 100}
SMALL_VAE = {"base_dim": 8, "num_res_blocks": 1}


def video(
    size: Size = "14B",
    attention: FPSAttention | None = None,
    linears: Linears = "fp8",
    steps: int = 50,
    guidance: float = 5.0,
    rounds: int = 1,
    parallel: Parallel = Parallel(),  # noqa: B008 - it can't change
    out: Path | None = None,
) -> None:
    """A prompt's way to an mp4, with random weights: text encoder, denoising, VAE and file, each alone in memory.

    Of each stage the first time, with what is compiled then, and the median of the rounds after it, of which one is
    enough: a stage is long. Loading weights is left out: it depends on the disk. Several processes denoise together, as
    eval.generate's; the first does the rest.

    Args:
        size: 1.3B at 480p, 14B at 720p, 81 frames each, or tiny.
        attention: of the transformer; none takes the fps preset, a planned tile and power-of-two scales.
        linears: of the transformer: bf16, fp8-ffn or fp8; a CPU has bf16 alone.
        steps: of UniPC.
        guidance: 1 for one forward pass a step.
        rounds: measured after the first.
        parallel: how the processes that torchrun has started denoise the video together.
        out: JSON file to write.

    Raises ValueError as `check_linears`, for no steps or rounds, and for processes that don't make one video together
    or have no pass to make.
    """
    as_whole("steps", steps)
    as_whole("rounds", rounds)
    check_out(out)
    check_linears(linears, find_device())
    parallel.check_passes(guidance)
    attention = attention or attention_of(size, "fps", scale_format="pow2")
    team = form_team(parallel, only="eval.bench video")
    exchanges = team.together(lambda: _exchanges(size, attention, parallel))
    tell_of_a_cpu(size)
    bench = _Bench(size, attention, linears, steps, guidance, team)
    facts = {"size": size, "linears": linears, "steps": steps, "guidance": guidance, "density": bench.density}
    report(bench.rows(rounds), out, COLUMNS, parallel=str(parallel) or "one", exchanges=exchanges, **facts)
    team.disband()


def _exchanges(size: Size, attention: FPSAttention, parallel: Parallel) -> dict[str, str]:
    """How those that share the tokens meet, by regime. Raises ValueError where they can't."""
    if parallel.sequence == 1:
        return {}
    config, dtype = CONFIGS[size], compute_dtype(find_device())
    taken = {}
    for level in levels_of(attention, GRIDS[size]):
        call = call_at(attention, GRIDS[size], level.sigma, config, dtype)
        with torch.no_grad():
            taken[level.regime] = choose_exchange(parallel.exchange, call, parallel.sequence)
    return taken


class _Bench:
    def __init__(
        self, size: Size, attention: FPSAttention, linears: Linears, steps: int, guidance: float, team: Team
    ) -> None:
        self.size, self.attention, self.linears, self.guidance = size, attention, linears, guidance
        self.config, self.device, self.team = CONFIGS[size], find_device(), team
        torch.manual_seed(0)  # the same video for all processes
        self.latents = torch.randn(1, *latent_shape(self.config, GRIDS[size]), device=self.device)
        self.text = torch.randn(1, TEXT_TOKENS, self.config.text_dim, device=self.device)
        self.scheduler = partial(build_scheduler, "unipc", steps, SHIFTS[size])
        self.density = mean_density(attention, GRIDS[size], self.scheduler(), self.config.layers)
        self.pixels = torch.zeros(0)

    def rows(self, rounds: int) -> Iterator[Row]:
        if not self.team.leads:
            self._measure("denoising", self._denoise(Path()), rounds)
            return
        with TemporaryDirectory() as folder:
            stages: dict[str, Callable[[Path], Callable[[], Any]]] = {
                "text encoder": self._text, "denoising": self._denoise, "VAE": self._decode, "mp4": self._write
            }  # fmt: skip
            rows = []
            for name, build in stages.items():
                rows.append(self._measure(name, build(Path(folder)), rounds))
                yield rows[-1]
        total = {name: sum(row[name] for row in rows) for name in ("first_seconds", "seconds")}
        yield {"stage": "all", **total, "peak_gb": max(row["peak_gb"] for row in rows)}

    def _measure(self, stage: str, work: Callable[[], Any], rounds: int) -> Row:
        forget_peak()
        first, *others = (time_once(work) for _ in range(1 + rounds))
        row = {"stage": stage, "first_seconds": first, "seconds": median(others), "all_seconds": others}
        return row | {"peak_gb": peak_gb(self.device)}

    def _text(self, folder: Path) -> Callable[[], Any]:
        """The prompt and the negative one, each of as many tokens as are kept."""
        from transformers import UMT5Config, UMT5EncoderModel

        config = UMT5Config(**SMALL_TEXT if self.size == "tiny" else XXL)
        with torch.device(self.device):
            encoder = UMT5EncoderModel._from_config(config, dtype=torch.bfloat16).eval()
            ids = torch.randint(config.vocab_size, (2, TEXT_TOKENS))
        return torch.no_grad()(lambda: [encoder(one[None], torch.ones_like(one[None])) for one in ids])

    def _denoise(self, folder: Path) -> Callable[[], Tensor]:
        torch.manual_seed(0)  # and the same weights
        wan = random_wan(self.config, self.attention, self.device).eval()
        wan.compiled = self.device.type == "cuda"
        wan.sequence = self.team.sequence
        quantize_linears(wan, self.linears)
        how = self.guidance, lambda: None, None, self.team.passes
        return lambda: sample_latents(wan, self.scheduler(), self.latents, self.text, -self.text, *how)

    def _decode(self, folder: Path) -> Callable[[], None]:
        """As eval.generate decodes, tiled where the frame is large."""
        from diffusers import AutoencoderKLWan

        vae = AutoencoderKLWan(**({"z_dim": self.config.channels} | SMALL_VAE if self.size == "tiny" else {}))
        vae.register_to_config(latents_mean=[0.0] * vae.config.z_dim, latents_std=[1.0] * vae.config.z_dim)
        vae.save_pretrained(folder / "vae")
        codec = WanVAE(str(folder))

        def decode() -> None:
            self.pixels = codec.decode(self.latents)[0]

        return decode

    def _write(self, folder: Path) -> Callable[[], None]:
        return lambda: encode_video(folder / "video.mp4", self.pixels, FPS)
