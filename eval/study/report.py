"""study.json and study.md: the table, the pictures and the verdicts, of what has been measured so far."""

from __future__ import annotations

import json
from dataclasses import asdict
from statistics import fmean
from typing import Any

from train.common.atomic import check_ours, digest_content, write_json, write_text

from ..sensitivity.result import FILE, read
from ..timing import describe_machine
from .base import WEIGHTS, fingerprint
from .config import BASE, MEASURED, Plan
from .measured import Real
from .pictures import draw_curves, draw_levels, draw_sheet
from .results import NUMBERS, Results, read_results
from .tables import tell_curves, tell_notes, tell_regimes, tell_rows, tell_verdicts
from .tasks import Task
from .verdicts import Verdict, judge

TITLE = "# The study: does training with FPS attention pay"
PICTURES = {
    "sheet.png": "The same prompts and noise in every row, time to the right.",
    "levels.png": "Loss by noise level over the base's; dashed rows were not trained.",
    "curves.png": "val/loss of the rows that are trained by it, from the common base.",
}


def write_report(plan: Plan, tasks: list[Task]) -> None:
    """Of the rows that are there, once the base's is. Raises ValueError for what is damaged, and where something that
    isn't ours lies where it will.
    """
    if not (plan.row(BASE, 0) / MEASURED).exists():
        print(f"no report yet: it begins with the row {BASE}", flush=True)
        return
    for name, mark in (("study.md", TITLE), ("study.json", '"about": "eval.study"')):
        check_ours(plan.out / name, mark)
    for name in PICTURES:
        check_ours(plan.out / name)
    (results, real), found = read_results(plan), plan.out / "search" / FILE
    verdicts = judge(results, read(found.parent) if found.is_file() else None)
    draw_levels(plan.out / "levels.png", results)
    draw_curves(plan.out / "curves.png", results)
    draw_sheet(plan.out / "sheet.png", results)
    write_json(plan.out / "study.json", {**_describe(plan, tasks), **_sum_up(results, real, verdicts)})
    write_text(plan.out / "study.md", _tell(results, real, verdicts))
    print(tell_verdicts(verdicts), f"study.md and study.json are in {plan.out}", sep="\n\n")


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


def _sum_up(results: Results, real: Real, verdicts: list[Verdict]) -> dict[str, Any]:
    rows = {
        row: {name: asdict(results.over_seeds(row, name)) for name in NUMBERS}
        | {"seeds": {seed: results.sum_up(row, seed) for seed in seeds}}
        for row, seeds in results.of.items()
    }
    looks = {
        name: {**asdict(row), "right_action": fmean(row.right_action), "flicker": fmean(row.flicker)}
        for name, row in real.rows.items()
    }
    return {"verdicts": [asdict(x) for x in verdicts], "rows": rows, "real": {**asdict(real), "rows": looks}}


def _tell(results: Results, real: Real, verdicts: list[Verdict]) -> str:
    there = {name: says for name, says in PICTURES.items() if (results.plan.out / name).exists()}
    pictures = (f"![{name.removesuffix('.png')}]({name})\n{says}" for name, says in there.items())
    tables = tell_rows(results, real), tell_notes(results, real), tell_regimes(results), tell_curves(results)
    return "\n\n".join((TITLE, tell_verdicts(verdicts), *tables, *pictures)) + "\n"
