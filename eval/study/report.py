"""study.json and study.md: the table, the pictures and the verdicts, of what has been measured so far."""

from __future__ import annotations

import json
from dataclasses import asdict
from statistics import fmean
from typing import Any

from train.common.atomic import check_ours, digest_content, write_json, write_text

from ..intervals import Estimate
from ..markdown import table
from ..sensitivity.result import FILE, read
from ..timing import describe_machine
from .base import WEIGHTS, fingerprint
from .config import BASE, HIGH, MEASURED, Plan, read_made
from .losses import by_regime
from .pictures import draw_curves, draw_levels, draw_sheet
from .results import NUMBERS, Results, read_results, sum_up
from .tasks import Task
from .verdicts import WITHIN, Verdict, judge

TITLE = "# The study: does training with FPS attention pay"
COLUMNS = (
    "validation loss",
    f"at sigma >= {HIGH}",
    "Fréchet distance",
    "action as asked",
    "flicker (1: none)",
    "seams",
)
NOTES = (
    "Means over seeds, in brackets 95 % intervals by Student's t. Losses: held-out clips, all noise levels alike, the "
    "same noise for all rows. Fréchet distance: {sampled} sampled clips against {clips} real ones held out, by "
    "{components} principal components of TransNetV2's features, nothing shrunk; ± is the bootstrap's standard "
    "deviation over clips, and distances of other numbers of clips are others. PSNR and SSIM are to the dense videos "
    "of the row named, of the same noise; of a trained row they say how far training moved its videos, not how good "
    "they are. Seams, of the videos that are shown: change across the edges of tiles over that across other tokens' "
    "edges, 1 where tiles don't show. Not measured: {not_measured}."
)


def write_report(plan: Plan, tasks: list[Task]) -> None:
    """Of the rows that are there, if any. Raises ValueError where something that isn't ours lies where it will."""
    results, file = read_results(plan), plan.out / "search" / FILE
    if BASE not in results.of:
        return
    for name, mark in (("study.md", TITLE), ("study.json", '"about": "eval.study"')):
        check_ours(plan.out / name, mark)
    verdicts = judge(results, read(file.parent) if file.is_file() else None)
    real = read_made(plan.out / "real" / MEASURED, "rows", "prompts", "clips", "components")
    draw_levels(plan.out / "levels.png", results)
    draw_curves(plan.out / "curves.png", results)
    draw_sheet(plan.out / "sheet.png", results)
    write_json(plan.out / "study.json", {**_describe(plan, tasks), **_tell_all(results, real, verdicts)})
    write_text(plan.out / "study.md", _tell(results, real, verdicts))
    print(_tell_verdicts(verdicts), f"study.md and study.json are in {plan.out}", sep="\n\n")


def _describe(plan: Plan, tasks: list[Task]) -> dict[str, Any]:
    """What was run, and where."""
    described = plan.describe()
    return {
        "about": "eval.study",
        **describe_machine(),
        "configuration": {"digest": digest_content(json.dumps(described)), **described},
        "base": fingerprint(plan) if (plan.out / WEIGHTS).exists() else None,
        "tasks": {task.name: task.record(plan.out) for task in tasks},
    }


def _tell_all(results: Results, real: dict[str, Any], verdicts: list[Verdict]) -> dict[str, Any]:
    sigmas = results.plan.study.measures.sigmas
    rows = {
        row: {name: asdict(results.over_seeds(row, name)) for name in NUMBERS}
        | {"seeds": {seed: sum_up(measured, sigmas) for seed, measured in seeds.items()}}
        for row, seeds in results.of.items()
    }
    looks = {
        name: {**row, **{x: fmean(row[x]) for x in ("right_action", "flicker")}} for name, row in real["rows"].items()
    }
    return {"verdicts": [asdict(x) for x in verdicts], "rows": rows, "real": {**real, "rows": looks}}


def _tell(results: Results, real: dict[str, Any], verdicts: list[Verdict]) -> str:
    missing = {f"{k} ({why})" for x in results.of.values() for y in x.values() for k, why in y["not_measured"].items()}
    about = {**real, "sampled": len(real["prompts"]), "not_measured": "; ".join(sorted(missing)) or "nothing"}
    pictures = (
        "![sheet](sheet.png)\nThe same prompts and noise in every row, time to the right.",
        "![levels](levels.png)\nLoss by noise level over the base's; dashed rows were not trained.",
        "![curves](curves.png)\nval/loss of the rows that are trained by it, from the common base.",
    )
    tables = (
        _tell_verdicts(verdicts),
        _tell_rows(results, real),
        NOTES.format(**about),
        _tell_regimes(results),
        _tell_curves(results),
    )
    return "\n\n".join((TITLE, *tables, *pictures)) + "\n"


def _tell_verdicts(verdicts: list[Verdict]) -> str:
    return table(("claim", "verdict", "numbers", "rule"), ((x.claim, x.answer, x.numbers, x.rule) for x in verdicts))


def _tell_rows(results: Results, real: dict[str, Any]) -> str:
    lines: list[tuple[str, ...]] = []
    for name, row in real["rows"].items():
        looks = (f"{fmean(row[x]):.3f}" for x in ("right_action", "flicker"))
        lines.append((name, "", "", "", "", "", _tell_distance(row.get("frechet")), *looks, "", "", ""))
    for name, row in results.plan.rows.items():
        if not (seeds := results.of.get(name)):
            lines.append((name, "not run yet", *[""] * 10))
            continue
        measured, weights = [*seeds.values()], row.weights or "trained"
        numbers = [cell(results.over_seeds(name, x), number.digits) for x, number in NUMBERS.items()]
        numbers[2] += f" ± {fmean(x['frechet']['spread'] for x in measured):.2f}"
        moved = [
            _tell_mean([x["fidelity"][metric]["mean"] for x in measured if metric in x["fidelity"]])
            for metric in ("psnr", "ssim")
        ]
        moved[0] += f" to {measured[0]['against']}" if moved[0] else ""
        density, seams = (_tell_mean([x[key] for x in measured if x[key] is not None]) for key in ("density", "seams"))
        lines.append((name, weights, str(len(seeds)), density, *numbers, seams, *moved))
    head = ("row", "weights", "seeds", "density", *COLUMNS, "seams", "PSNR (dB)", "SSIM")
    return table(head, lines, "llrrrrrrrrrr")


def _tell_mean(values: list[float]) -> str:
    return f"{fmean(values):.3f}" if values else ""


def _tell_distance(frechet: dict[str, float] | None) -> str:
    return f"{frechet['distance']:.2f} ± {frechet['spread']:.2f}" if frechet else ""


def _tell_regimes(results: Results) -> str:
    """Mean loss of each row at the noise levels of each regime of the attention that is searched for."""
    import torch

    study = results.plan.study
    regimes = study.search.attention.step_schedule.regime_index(torch.tensor(study.measures.sigmas)).tolist()
    lines = []
    for row, seeds in results.of.items():
        means = by_regime([clip for x in seeds.values() for clip in x["grid"]], regimes)
        lines.append((row, *(f"{means[i]:.4f}" if i in means else "" for i in range(max(regimes) + 1))))
    return table(("loss by regime", *(f"regime {i}" for i in range(max(regimes) + 1))), lines)


def _tell_curves(results: Results) -> str:
    """How far above dense each row begins, and from which step on it stays within WITHIN of it, in the mean over the
    seeds that both have.
    """
    lines, dense = [], {seed: x["curve"] for seed, x in results.of.get("dense", {}).items()}
    for row, seeds in results.of.items():
        pairs = [(x["curve"], dense[seed]) for seed, x in seeds.items() if x["curve"] and dense.get(seed)]
        if pairs and row != "dense":
            shared = set.intersection(*({*curve} & {*other} for curve, other in pairs))
            above = {int(step): fmean(curve[step] / other[step] - 1 for curve, other in pairs) for step in shared}
            late = [step for step in above if all(x <= WITHIN for later, x in above.items() if later >= step)]
            lines.append((row, f"{above[0]:+.2%}", f"{above[max(above)]:+.2%}", min(late, default="never")))
    return table(("val/loss over dense's", "at step 0", "at the end", f"within {WITHIN:.0%} from step"), lines, "lrrr")


def cell(found: Estimate, digits: int) -> str:
    mean, *bounds = (x if x is None else f"{x:.{digits}f}" for x in (found.mean, found.low, found.high))
    return f"{mean}" if None in bounds else f"{mean} [{', '.join(bounds)}]"
