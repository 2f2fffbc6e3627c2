"""Reports on Weights & Biases."""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import Any

from ..reading import read_json, write_json
from .document import join, take_strips
from .report import TOTALS, Report
from .suite import DIMENSIONS


def log_report(out: Path, report: Report, project: str) -> None:
    """Totals, scores with their intervals, strips of videos and the HTML, as one W&B run however often it is logged.

    Raises ValueError when wandb can't log.
    """
    import wandb

    made = report.making
    config = {**made.settings, "fingerprints": made.fingerprints, "commits": made.commits, "devices": made.devices}
    try:
        run = wandb.init(
            project=project, name=f"vbench {report.name}", id=find_id(out, project), resume="allow", dir=out,
            config=config, job_type="vbench",
        )  # fmt: skip
    except (wandb.errors.Error, OSError) as error:
        raise ValueError(f"W&B can't be used ({error}): log in, or set WANDB_MODE=offline") from None
    run.log({f"vbench/{name}": value for name, value in list_figures(report).items()})
    if report.plan:
        shown, _ = take_strips(report.plan.find_videos(out), report.plan)
        run.log({"vbench/videos": [wandb.Image(join(strip), caption=video.prompt) for video, strip in shown]})
    run.log({"vbench/report": wandb.Html((out / "report.html").read_text(encoding="utf-8"))})
    run.summary["vbench/withheld"] = list(report.totals.reasons)
    run.finish()


def find_id(out: Path, project: str) -> str:
    """Of the W&B run: drawn once and kept in wandb.json, so that it goes with the folder wherever that is moved."""
    file = out / "wandb.json"
    try:
        ids = read_json(file, dict[str, str])
    except ValueError:
        ids = {}
    if project not in ids:
        ids[project] = secrets.token_hex(8)
        write_json(file, ids)
    return ids[project]


def list_figures(report: Report) -> dict[str, Any]:
    """By name: totals and scores that are known, the ends of their intervals, and what the videos took."""
    made, figures = report.making, {name: report.score(name) for name in (*TOTALS, *DIMENSIONS)}
    for name, interval in report.intervals.items():
        figures |= {f"{name}_low": interval.low, f"{name}_high": interval.high}
    figures |= {"seconds_per_video": made.seconds, "density": made.density, "peak_gb": made.peak_gb}
    return {name: value for name, value in figures.items() if value is not None}
