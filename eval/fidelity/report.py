"""Rows of videos compared with the first row, told in JSON, Markdown and a side-by-side sheet."""

from __future__ import annotations

import json
import re
import shlex
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

from train.common.atomic import MARK, check_ours, write_json, write_text

from ..intervals import CONFIDENCE
from ..making import Making, describe_making
from ..markdown import table
from .pairs import Row, Video, some
from .scores import check_replaceable, measure
from .sheet import AMPLIFIED, draw_side_by_side
from .similarity import NAMES
from .summary import EQUAL, summarise

COLUMNS = {"psnr": "PSNR (dB)", "psnr_of_frames": "mean of frames' PSNR (dB)", **NAMES}
EQUAL_MARK = "†"
DIGEST = re.compile(r"\b([0-9a-f]{12})[0-9a-f]+\b")
SHOWN = [name for name in COLUMNS if name != "mse"]


TITLE = "# How far the videos are from the reference"
OURS = {"fidelity.json": '"command": "python -m eval.fidelity', "fidelity.md": TITLE, "side-by-side.png": MARK}


def check_report(out: Path, rows: list[Row], videos: list[Video]) -> None:
    """Before any work. Raises ValueError where something that isn't ours lies where a report and its scores will."""
    for name, mark in OURS.items():
        check_ours(out / name, mark)
    check_replaceable(out, rows, videos)


def write_report(out: Path, rows: list[Row], videos: list[Video], facts: dict[str, Any], notes: list[str]) -> None:
    """Compare every row with the first one; writes fidelity.json, fidelity.md and side-by-side.png.

    facts: settings that all rows share. A video that can't be read in one row is left out of all, and named.
    Raises ValueError for videos that can't be compared, and where none is left.
    """
    scores = measure(out, rows, videos)
    record = {
        "command": f"python -m eval.fidelity {shlex.join(sys.argv[1:])}",
        "versions": {name: version(name) for name in ("torch", "torchmetrics", "av")},
        "settings": facts,
        "left_out": scores.left_out,
        "not_measured": scores.not_measured,
        "notes": notes,
        "rows": [summarise(row, scores.of.get(row.name), scores.videos) for row in rows],
    }
    text = render(record)
    draw_side_by_side(out / "side-by-side.png", rows, scores, record["rows"])
    write_json(out / "fidelity.json", record)
    write_text(out / "fidelity.md", text)
    print(text)


def render(record: dict[str, Any]) -> str:
    """The report in Markdown."""
    notes = [*_explain(record), *record["notes"]]
    parts = [
        TITLE,
        f"`{record['command']}`",
        _tell_rows(record["rows"]),
        "\n".join(f"- {note}" for note in notes),
        "![Side by side](side-by-side.png)",
        _tell_making(record["rows"]),
        _tell_left_out(record["left_out"]),
        "## Each video",
        _tell_videos(record["rows"][1:]),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _tell_rows(rows: list[dict[str, Any]]) -> str:
    reference, *others = rows
    measures = [name for name in SHOWN if name in others[0]["total"]]
    about = [name for name in ("weights", "attention") if name in reference]
    about += ["density"] if any(_density(row) for row in rows) else []

    def tell(row: dict[str, Any]) -> list[str]:
        told = [cell(_density(row)) if name == "density" else row[name] for name in about]
        if row is reference:
            return [row["name"], *told, *["reference"] * len(measures), ""]
        return [row["name"], *told, *(_mean(row, name) for name in measures), _equal(row)]

    head = ["row", *about, *(COLUMNS[name] for name in measures), "equal frames"]
    return table(head, map(tell, rows))


def _density(row: dict[str, Any]) -> float | None:
    return row.get("density", row["made"]["density"])


def _mean(row: dict[str, Any], measure: str) -> str:
    measured = row["total"][measure]
    between = f" [{', '.join(map(cell, measured['interval']))}]" if measured["interval"] else ""
    return cell(measured["mean"]) + _mark(row, measure) + between + (EQUAL_MARK if _is_equal(measured) else "")


def _mark(counted: dict[str, Any], measure: str) -> str:
    return "*" if measure == "psnr_of_frames" and counted["equal_frames"] else ""


def _equal(counted: dict[str, Any]) -> str:
    return f"{counted['equal_frames']} of {counted['frames']}"


def cell(value: str | float | None) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else f"{value:.2f}" if abs(value) >= 10 else f"{value:.3f}"


def _tell_making(rows: list[dict[str, Any]]) -> str:
    """Of each row by its videos' records, digests cut to their first 12 digits; nothing where there are none."""
    facts = [{"row": row["name"], **describe_making(Making(**row["made"]))} for row in rows]
    head = [name for name in dict.fromkeys(name for one in facts for name in one) if name != "density of attention"]
    told = DIGEST.sub(r"\1", table(head, ([one.get(name, "") for name in head] for one in facts)))
    return f"## How the videos were made\n\n{told}" if len(head) > 1 else ""


def _tell_left_out(left_out: dict[str, str]) -> str:
    if not left_out:
        return ""
    return f"## Left out: {len(left_out)}\n\n" + table(["video", "why"], left_out.items())


def _tell_videos(others: list[dict[str, Any]]) -> str:
    measures = [*(name for name in SHOWN if name in others[0]["total"]), "worst_psnr"]
    lines = [
        [video["name"], row["name"], _equal(video), *(cell(video[name]) + _mark(video, name) for name in measures)]
        for videos in zip(*(row["videos"] for row in others), strict=True)
        for row, video in zip(others, videos, strict=True)
    ]
    head = ["video", "row", "equal frames", *(COLUMNS.get(name, "PSNR of the worst frame") for name in measures)]
    return table(head, lines)


def _explain(record: dict[str, Any]) -> list[str]:
    others = record["rows"][1:]
    notes = [_count(others, record["settings"]), _explain_psnr(others), _explain_files(record["rows"])]
    notes += [f"In the picture, below each strip: its difference to the reference, x {AMPLIFIED}."]
    if record["settings"]:
        settings = ", ".join(f"{name} {json.dumps(x, ensure_ascii=False)}" for name, x in record["settings"].items())
        notes.append(f"All rows: {settings}.")
    if record["left_out"]:
        notes.append(f"Left out of all rows, since they can't be read in one: {len(record['left_out'])}, named below.")
    stale = [f"{name} of {row['name']}" for row in record["rows"] for name in row["of_other_files"]]
    if stale:
        notes.append(f"Records that are of other bytes than the video beside them, and not counted: {some(stale)}.")
    missing = "; ".join(f"{NAMES[name]} ({reason})" for name, reason in record["not_measured"].items())
    return notes + ([f"Not measured: {missing}."] if missing else [])


def _count(others: list[dict[str, Any]], settings: dict[str, Any]) -> str:
    totals = [row["total"][name] for row in others for name in SHOWN if name in row["total"]]
    one = totals[0]
    prompts = "1 prompt" if one["prompts"] == 1 else f"{one['prompts']} prompts"
    text = f"Videos a row: {one['videos']}, of {prompts}"
    text += ". " if settings else "; one whose prompt no record says counts as of a prompt of its own. "
    shown = sum(measured["interval"] is not None for measured in totals)
    if not shown:
        return text + "No confidence interval: that needs two prompts or more."
    text += (
        f"In brackets 95 % confidence intervals over prompts, by Student's t, lopsided near a bound. {shown} are "
        f"shown at once, so by chance about {shown / 20:.2g} of them miss; nothing here is a verdict."
    )
    return text + (_explain_equal(one["prompts"]) if any(_is_equal(measured) for measured in totals) else "")


def _explain_equal(prompts: int) -> str:
    share = 1 - ((1 - CONFIDENCE) / 2) ** (1 / prompts)
    return (
        f" {EQUAL_MARK}: all videos have this number, so there is no spread to go by; the interval is what {prompts} "
        f"equal prompts can't rule out: that up to {share:.0%} of all prompts have another number, as far off as it "
        "can be."
    )


def _is_equal(measured: dict[str, Any]) -> bool:
    return measured["all_equal"] and measured["interval"] is not None


def _explain_psnr(others: list[dict[str, Any]]) -> str:
    text = (
        "PSNR is that of the mean squared error over a video's frames, and then over videos, so that bad ones count "
        "most; its interval is that of the error, in dB. Other numbers are means over frames, then over videos."
    )
    equal = any(row["equal_frames"] for row in others)
    return text + (f" *: among the frames are equal ones, which count as {EQUAL:g} dB." if equal else "")


def _explain_files(rows: list[dict[str, Any]]) -> str:
    text = "Measured between the files as they are, in RGB from 0 to 1, SSIM and MS-SSIM where their windows fit."
    lossless = [row["lossless"] for row in rows]
    if all(lossless):
        return f"{text} The files are lossless."
    unknown = "" if False in lossless else " Whether all files are lossless no record says: where they aren't,"
    return (
        f"{text}{unknown} H.264 at crf 18 adds differences of its own: videos that were 60 dB apart come out of it "
        "33 dB (of 32x32 pixels) to 44 dB apart (smooth ones at 480p). To see finer ones, make the videos with "
        "--lossless."
    )
