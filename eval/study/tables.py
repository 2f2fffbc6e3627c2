"""The tables of study.md."""

from __future__ import annotations

from statistics import fmean

import torch

from ..intervals import Estimate
from ..markdown import table
from .config import HIGH
from .losses import by_regime
from .measured import Distance, Measured, Real
from .results import NUMBERS, Results
from .seams import Seams
from .verdicts import WITHIN, Verdict

COLUMNS = (
    "row", "weights", "seeds", "density", "validation loss", f"at sigma >= {HIGH}", "Fréchet distance",
    "action as asked", "flicker (1: none)", "seams T / H / W", "PSNR (dB)", "SSIM",
)  # fmt: skip
NOTES = (
    "Means over seeds, in brackets 95 % intervals by Student's t. Losses: held-out clips, all noise levels alike, the "
    "same noise for all rows. Fréchet distance: {sampled} sampled clips against {clips} real ones held out, by "
    "{components} principal components of TransNetV2's features, nothing shrunk; ± is the bootstrap's standard "
    "deviation over clips, a seed's in the mean, and distances of other numbers of clips are others. PSNR and SSIM are "
    "to the dense videos of the row named, of the same noise; of a trained row they say how far training moved its "
    "videos, not how good they are. Seams, of the {shown} videos of each seed that are shown, in time, rows and "
    "columns: change across the edges of tiles over that across other tokens' edges, 1 where tiles don't show. Not "
    "measured: {not_measured}."
)


def tell_verdicts(verdicts: list[Verdict]) -> str:
    return table(("claim", "verdict", "numbers", "rule"), ((x.claim, x.answer, x.numbers, x.rule) for x in verdicts))


def tell_rows(results: Results, real: Real) -> str:
    lines = [
        (name, *[""] * 5, _tell_distance(row.frechet), f"{fmean(row.right_action):.3f}", f"{fmean(row.flicker):.3f}")
        + ("", "", "")
        for name, row in real.rows.items()
    ]
    for name in results.plan.rows:
        seeds = results.of.get(name)
        lines.append(_tell_row(results, name, [*seeds.values()]) if seeds else (name, "not run yet", *[""] * 10))
    return table(COLUMNS, lines, "llrrrrrrrrrr")


def _tell_row(results: Results, name: str, measured: list[Measured]) -> tuple[str, ...]:
    weights = results.plan.rows[name].weights or "trained"
    numbers = [cell(results.over_seeds(name, x), number.digits) for x, number in NUMBERS.items()]
    numbers[2] += f" ± {fmean(x.frechet.spread for x in measured):.2f}"
    psnr, ssim = (_tell_mean([x.fidelity[y].mean for x in measured if y in x.fidelity]) for y in ("psnr", "ssim"))
    psnr += f" to {measured[0].against}" if psnr else ""
    density, seams = _tell_mean([x.density for x in measured]), _tell_seams([*results.seams.get(name, {}).values()])
    return name, weights, str(len(measured)), density, *numbers, seams, psnr, ssim


def _tell_mean(values: list[float]) -> str:
    return f"{fmean(values):.3f}" if values else ""


def _tell_distance(frechet: Distance | None) -> str:
    return f"{frechet.distance:.2f} ± {frechet.spread:.2f}" if frechet else ""


def _tell_seams(seams: list[Seams]) -> str:
    """Mean over seeds and edges, on each axis."""
    axes = [[x for edges in axis for x in edges] for axis in zip(*seams, strict=True)]
    return " / ".join(f"{fmean(axis):.2f}" if axis else "-" for axis in axes)


def tell_notes(results: Results, real: Real) -> str:
    missing = {f"{k} ({why})" for x in results.of.values() for y in x.values() for k, why in y.not_measured.items()}
    return NOTES.format(
        sampled=len(real.prompts), clips=real.clips, components=real.components,
        shown=results.plan.study.measures.shown,
        not_measured="; ".join(sorted(missing)) or "nothing",
    )  # fmt: skip


def tell_regimes(results: Results) -> str:
    """Mean loss of each row at the noise levels of each regime of the attention that is searched for."""
    study = results.plan.study
    regimes = study.search.attention.step_schedule.regime_index(torch.tensor(study.measures.sigmas)).tolist()
    lines = []
    for row, seeds in results.of.items():
        means = by_regime([clip for x in seeds.values() for clip in x.grid], regimes)
        lines.append((row, *(f"{means[i]:.4f}" if i in means else "" for i in range(max(regimes) + 1))))
    return table(("loss by regime", *(f"regime {i}" for i in range(max(regimes) + 1))), lines)


def tell_curves(results: Results) -> str:
    """How far above dense each row begins, and from which step on it stays within WITHIN of it, in the mean over the
    seeds that both have.
    """
    lines, dense = [], {seed: x.curve for seed, x in results.of.get("dense", {}).items()}
    for row, seeds in results.of.items():
        pairs = [(x.curve, dense[seed]) for seed, x in seeds.items() if x.curve and dense.get(seed)]
        shared = set.intersection(*({*curve} & {*other} for curve, other in pairs)) if pairs else set()
        if shared and row != "dense":
            above = {int(step): fmean(curve[step] / other[step] - 1 for curve, other in pairs) for step in shared}
            late = [step for step in above if all(x <= WITHIN for later, x in above.items() if later >= step)]
            lines.append((row, f"{above[min(above)]:+.2%}", f"{above[max(above)]:+.2%}", min(late, default="never")))
    return table(("val/loss over dense's", "at first", "at the end", f"within {WITHIN:.0%} from step"), lines, "lrrr")


def cell(found: Estimate, digits: int) -> str:
    mean, *bounds = (x if x is None else f"{x:.{digits}f}" for x in (found.mean, found.low, found.high))
    return f"{mean}" if None in bounds else f"{mean} [{', '.join(bounds)}]"
