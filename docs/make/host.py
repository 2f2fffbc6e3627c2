"""What the GPUs of one host should give, by arithmetic from one and two of them, written down before it is measured.

python -m docs.make.host
"""

from __future__ import annotations

from dataclasses import replace
from math import prod

from jsonargparse import auto_cli

from eval.bench.sizes import TEXT_TOKENS
from eval.markdown import table
from fps_flex.wan.flops import forward_flops, training_flops
from fps_flex.wan.traffic import ulysses_traffic

from .scaling import PLANS, SHARES, Machine, Plan, beside_one, call_of, read_rows, step_of

SMALL, LARGE = PLANS
SIZES = (4, 8)
ONE_CLIP, TWO_VIDEO = "train-1.3b-480p-two-h200.json", "model-14b-720p-two-linears-h200.json"


def expected_table() -> str:
    """Where what processes send each other is hidden behind what they compute, to where nothing is."""
    rows = [(name, *(say(gpus) for gpus in SIZES)) for name, say in ROWS.items()]
    return table(("", *(f"{gpus} GPUs" for gpus in SIZES)), rows)


def training_of_14b(gpus: int) -> str:
    """A clip to each four GPUs, all of one noise level: dense, fps, and how many times as fast."""
    dense = _bounds(LARGE, _dense_seconds() / LARGE.sequence, gpus)
    ours = _bounds(LARGE, _sparse_seconds(LARGE), gpus)
    return f"{_range(dense)} / {_range(ours)}: {dense[1] / ours[1]:.2f} to {dense[0] / ours[0]:.2f}"


def training_by_twos(gpus: int) -> str:
    """A clip to each two, likewise: fps alone."""
    plan = replace(LARGE, sequence=2)
    return _range(_bounds(plan, _sparse_seconds(plan), gpus))


def _bounds(plan: Plan, compute: float, gpus: int) -> tuple[float, float]:
    step = replace(step_of(plan, gpus), compute=compute)
    return step.best, step.worst


def _range(seconds: tuple[float, float]) -> str:
    return "{:.1f} to {:.1f} s".format(*seconds)


def _sparse_seconds(plan: Plan) -> float:
    """What a GPU computes of a clip, in the mean over noise levels."""
    machine = Machine()
    done = sum(share * done for share, (_, done) in zip(SHARES, plan.operations(), strict=True))
    return done / (machine.peak * plan.pace(machine) * plan.sequence)


def _dense_seconds() -> float:
    """Of a step of 14B on one GPU, at the pace of the measured dense one, at 480p and with frozen weights."""
    (row,) = (x for x in read_rows(LARGE.record) if x["schedule"] == "sdpa")
    measured, ours = (forward_flops(LARGE.config, n, TEXT_TOKENS) for n in (row["tokens"], prod(LARGE.grid)))
    done = training_flops(measured, frozen=True) + measured.total
    return row["step_seconds"] * (training_flops(ours) + ours.total) / done


def training_of_1_3b(gpus: int) -> str:
    """Tokens a second over one GPU's, a clip each. At worst with what two GPUs took beyond the arithmetic."""
    one, two = (
        next(x["step_seconds"] for x in read_rows(ONE_CLIP) if (x["parallel"], x["regime"]) == (way, "mix"))
        for way in ("one", "shard 2")
    )
    step, beyond = beside_one(SMALL, one, gpus), two - beside_one(SMALL, one, 2).worst
    return f"{gpus * one / (step.worst + beyond):.1f} to {gpus * one / step.best:.1f}"


def step_of_a_video(gpus: int) -> str:
    """Two passes with FP8 layers on one GPU, over one pass on half of the GPUs each.

    At worst with all that a pass on two GPUs took beyond half of one's.
    """
    rows = [x for x in read_rows(TWO_VIDEO) if (x["model"], x["regime"]) == ("fps, fp8", "50 steps x 2")]
    one, two = (next(x["step_seconds"] for x in rows if x["parallel"] == way) for way in ("one", "ulysses 2"))
    sent = LARGE.config.layers * max(ulysses_traffic(call_of(LARGE, LARGE.levels[0]), gpus // 2).forward)
    best, worst = one / (gpus // 2) + sent / Machine().links, one / (gpus // 2) + two - one / 2
    return f"{2 * one / worst:.1f} to {2 * one / best:.1f}"


ROWS = {
    "all of 14B, 720p, sequence 4: a step, dense / `fps`, times as fast": training_of_14b,
    "the same by a sequence of two, a clip to each: `fps`": training_by_twos,
    "1.3B, 480p, a clip each: tokens/s over one GPU's": training_of_1_3b,
    "a video of 14B, 720p, FP8 layers: a step, sequence x guidance 2, times one GPU's": step_of_a_video,
}


def main() -> None:
    """Prints the table of docs/scale.md."""
    print(expected_table())


if __name__ == "__main__":
    auto_cli(main)
