"""Reports on Weights & Biases."""

from __future__ import annotations

import hashlib
from pathlib import Path

from .page import draw_strips
from .report import Report


def log_report(out: Path, report: Report, project: str) -> None:
    """Totals, scores, thumbnails and the HTML, as one W&B run however often it is logged.

    Raises ValueError when wandb can't log.
    """
    import wandb

    key = hashlib.sha256(f"{project} {report.name} {out.resolve()}".encode()).hexdigest()[:16]
    try:
        run = wandb.init(
            project=project, name=f"vbench {report.name}", id=key, resume="allow", dir=out, config=report.settings,
            job_type="vbench",
        )  # fmt: skip
    except (wandb.errors.Error, OSError) as error:
        raise ValueError(f"W&B can't be used ({error}): log in, or set WANDB_MODE=offline") from None
    totals = {"quality": report.totals.quality, "semantic": report.totals.semantic, "total": report.totals.total}
    scores = {name: result.score for name, result in report.results.scores.items()}
    run.log({f"vbench/{name}": value for name, value in {**totals, **scores}.items() if value is not None})
    if report.plan:
        strips = draw_strips(report.plan.find_videos(out), report.plan)
        run.log({"vbench/videos": [wandb.Image(strip, caption=video.prompt) for video, strip in strips]})
    run.log({"vbench/report": wandb.Html((out / "report.html").read_text(encoding="utf-8"))})
    run.summary["vbench/withheld"] = list(report.totals.reasons)
    run.finish()
