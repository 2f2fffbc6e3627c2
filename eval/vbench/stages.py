"""The stages of a run, each of which goes on where it was; `score` is in score.py."""

from __future__ import annotations

import re
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from train.common.atomic import check_ours
from train.common.console import check_writable
from train.common.ranks import rank_and_world
from train.common.work import wait_for_all

from ..generate.command import resolve_settings
from ..generate.jobs import Job, Options
from ..generate.records import open_records
from ..generate.videos import draw_contacts, make_videos
from ..reading import write_json, write_plainly
from .chart import draw_scores
from .check import Findings, check_videos, describe_findings
from .compare import compare_runs, describe_comparison, open_runs, write_comparison
from .log import log_report
from .ours import writing
from .page import compare_to_html, to_html
from .plan import PlanOptions, check_case, describe_plan, make_plan
from .report import CAPTION, collect, describe_report, tabulate_scores, to_dict, to_markdown, write_leaderboard
from .suite import Plan, find_suite, read_plan, write_plan

REPORTS = ("chart.png", "report.html", "report.md", "report.json", "scores.csv", "scores.tex")


def plan(out: Path, options: PlanOptions, scorer_python: Path | None = None) -> Plan:
    """Say which videos a run needs: plan.json.

    Args:
        out: folder of the run.
        options: what is planned.
        scorer_python: Python of the scorer's environment.
    """
    wanted = make_plan(replace(options, suite=find_suite(options.suite, scorer_python)))
    check_writable(out, "--out")
    if options.videos is None:
        check_case(out, wanted)
    file = out / "plan.json"
    if file.is_file():
        there = read_plan(file)
        other = [name for name in vars(wanted) if name != "clip" and getattr(there, name) != getattr(wanted, name)]
        if other:
            raise ValueError(
                f"{file} is of a run with other {', '.join(other)}: choose another --out, or remove it to plan anew "
                "(videos that are there are kept)"
            )
        wanted = there
    elif rank_and_world()[0] == 0:
        write_plan(file, wanted)
    say(describe_plan(wanted))
    return wanted


def generate(out: Path, shard: str | None = None, planned: Plan | None = None, **options: Any) -> bool:
    """Make the videos of plan.json that are missing, shared out to the GPUs of torchrun; whether all are there now.

    Args:
        out: folder of the run.
        shard: i/n makes the i-th of n shares, 1/n to n/n, for machines that don't know of each other; what they have
            in videos/ and records/ can be copied into one folder.
        planned: what plan.json holds, where it is at hand.
        options: of `Options`.
    """
    planned = planned or read_plan(out / "plan.json")
    share, shares = parse_shard(shard)
    if planned.folder:
        raise ValueError(f"{out / 'plan.json'} is for videos that are there already, in {planned.folder}")
    model, settings = resolve_settings(Options(**options))
    if planned.clip not in (None, settings.clip):
        raise ValueError(f"{out / 'plan.json'} expects {planned.clip}, not {settings.clip}: choose another --out")
    if planned.clip is None and rank_and_world()[0] == 0:
        write_plan(out / "plan.json", replace(planned, clip=settings.clip))
    jobs = [Job(video.name.removesuffix(".mp4"), video.long or video.prompt, video.seed) for video in planned.videos]
    mine = jobs[share - 1 :: shares]
    say(f"share {share} of {shares}: {len(mine):,} of {len(jobs):,} videos" if shard else "")
    kept = open_records(model, settings, out / "videos", out / "records")
    make_videos(kept, mine)
    wait_for_all()
    missing = kept.count_missing(jobs)
    if rank_and_world()[0] == 0 and not missing:
        draw_contacts(out / "contact.png", out / "videos", jobs[:: -(-len(jobs) // 8)], settings.clip)
    if missing:
        say(f"{missing:,} videos of the other shares are missing: the same command without --shard goes on with them")
    return not missing


def parse_shard(shard: str | None) -> tuple[int, int]:
    """(i, n) of i/n. Raises ValueError for what isn't a share."""
    match = re.fullmatch(r"(\d+)/(\d+)", shard or "1/1")
    if not match or not 1 <= int(match[1]) <= int(match[2]):
        raise ValueError(f"shard is {shard!r}, expected i/n with i from 1 to n, such as 1/4")
    return int(match[1]), int(match[2])


def check(out: Path) -> Findings:
    """Decode the videos, and say which are missing, unreadable or not as the others: check.json.

    Args:
        out: folder of the run.
    """
    findings = check_videos(out, read_plan(out / "plan.json"))
    write_json(out / "check.json", asdict(findings))
    say("\n".join(describe_findings(findings)))
    return findings


def aggregate(results: Path, json: Path | None = None) -> None:
    """Scores -> Quality, Semantic and Total, or what is missing for them.

    Args:
        results: a run's folder, one of *_eval_results.json, such a file, or a zip.
        json: also write them there.
    """
    result = collect(results)
    say("\n".join(describe_report(result)))
    if json is not None:
        check_ours(json, '"comparable":', "choose another --json")
        write_json(json, to_dict(result))


def compare(runs: list[str], out: Path | None = None) -> None:
    """Two to five runs side by side: totals, and the differences of the same videos, with their intervals.

    Args:
        runs: as of `open_runs`.
        out: folder for compare.html, with the prompts that lost most, and compare.md, .json, .png, .csv and .tex.
    """
    opened = open_runs(runs)
    differences = compare_runs(opened)
    say(describe_comparison(opened, differences))
    if out is not None:
        check_writable(out, "--out")
        with writing(out, (f"compare.{kind}" for kind in ("html", "md", "json", "png", "csv", "tex"))):
            write_comparison(out, opened, differences)
            write_plainly(out / "compare.html", compare_to_html(opened, differences, out))
        say(f"wrote {out / 'compare.html'}, .md, .json, .png, .csv and .tex")


def report(out: Path, name: str | None = None, wandb: str | None = None) -> None:
    """Write report.md, .html and .json, chart.png, scores.csv and .tex, and eval_results/ and leaderboard.zip.

    Args:
        out: folder of the run.
        name: of the model, in the report; none takes the folder's.
        wandb: a project of Weights & Biases to log to; WANDB_MODE=offline needs no account.
    """
    if not out.is_dir():
        raise ValueError(f"{out} holds no scores: there is no folder, expected a run's or one of official results")
    check_writable(out, "--out")
    result = collect(out, name)
    say("\n".join(describe_report(result)))
    with writing(out, REPORTS):
        draw_scores(out / "chart.png", result)
        write_plainly(out / "report.html", to_html(result, out))
        write_plainly(out / "report.md", to_markdown(result))
        write_json(out / "report.json", to_dict(result))
        write_plainly(out / "scores.csv", tabulate_scores(result).to_csv())
        write_plainly(out / "scores.tex", tabulate_scores(result).to_tex(f"VBench: {result.name}. {CAPTION}."))
    say(f"wrote {out / 'report.html'}, .md and .json, scores.csv and .tex; {write_leaderboard(out, result)}")
    if wandb is not None:
        log_report(out, result, wandb)


def say(text: str) -> None:
    if rank_and_world()[0] == 0 and text:
        print(text, flush=True)
