"""Samplers of few steps: which regimes they meet, as documented, and one pass a step without guidance."""

from collections import Counter
from pathlib import Path

import pytest
import torch

from eval.generate.sampling import build_scheduler, list_regimes, sample_latents
from fps_flex import FPSAttention
from fps_flex.wan import WAN_TINY, Wan

PAGE = Path(__file__).parents[2] / "docs/generate.md"


def rows():
    table = PAGE.read_text().partition("| steps | shift 3 | shift 5 | shift 8 |\n")[2].splitlines()[1:]
    for line in table[: table.index("")]:
        steps, *counts = (cell.strip() for cell in line.strip("|").split("|"))
        yield from ((int(steps), shift, said) for shift, said in zip((3.0, 5.0, 8.0), counts, strict=True))


@pytest.mark.parametrize(("steps", "shift", "said"), [*rows()])
def test_the_table_of_regimes_is_what_a_sampler_meets(steps, shift, said):
    for sampler in ("unipc", "euler") if steps <= 8 else ("unipc",):
        met = Counter(list_regimes(FPSAttention("fps"), build_scheduler(sampler, steps, shift)))
        assert " / ".join(str(met[regime]) for regime in range(3)) == said


@pytest.mark.parametrize("sampler", ["unipc", "euler"])
@pytest.mark.parametrize("steps", [1, 3, 4, 8])
def test_without_guidance_a_step_is_one_pass(steps, sampler):
    torch.manual_seed(0)
    wan = Wan(WAN_TINY, FPSAttention("fps", tile=(1, 4, 4), block=16)).eval()
    passes, forward = [], wan.forward
    wan.forward = lambda x, t, text: passes.append(t.tolist()) or forward(x, t, text)
    noise, text = torch.randn(1, WAN_TINY.channels, 5, 16, 16), torch.randn(1, 8, WAN_TINY.text_dim)
    scheduler = build_scheduler(sampler, steps, 5.0)
    latents = sample_latents(wan, scheduler, noise, text, -text, guidance=1)
    assert passes == [[float(t)] for t in scheduler.timesteps] and latents.isfinite().all()
