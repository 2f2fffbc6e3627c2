"""Rows of videos compared with the first row, told in JSON, Markdown and a side-by-side sheet."""

from __future__ import annotations

import json
import re
import shlex
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

from fps_flex.checks import some
from train.common.atomic import MARK, check_ours, write_json, write_text

from ..intervals import CONFIDENCE
from ..making import Making, describe_making
from ..markdown import table
from .pairs import NAMED, Row, Video
from .scores import MARK as SCORES_MARK
from .scores import find_file, measure
from .sheet import AMPLIFIED, draw_side_by_side
from .similarity import NAMES
from .summary import EQUAL, summarise

COLUMNS = {"psnr": "PSNR (dB)", "psnr_of_frames": "mean of frames' PSNR (dB)", **NAMES}
EQUAL_MARK = "†"
DIGEST = re.compile(r"\b([0-9a-f]{12})[0-9a-f]+\b")
SHOWN = [name for name in COLUMNS if name != "mse"]
INTERVALS = (
    "In brackets 95 % confidence intervals over prompts, by Student's t, lopsided near a bound. {shown} are shown at "
    "once, so by chance about {missed:.2g} of them miss; nothing here is a verdict."
)
ALL_EQUAL = (
    f" {EQUAL_MARK}: all videos have this number, so there is no spread to go by; the interval is what {{prompts}} "
    "equal prompts can't rule out: that up to {share:.0%} of all prompts have another number, as far off as it can be."
)
PSNR = (
    "PSNR is that of the mean squared error over a video's frames, and then over videos, so that bad ones count most; "
    "its interval is that of the error, in dB. Other numbers are means over frames, then over videos."
)
FILES = "Measured between the files as they are, in RGB from 0 to 1, SSIM and MS-SSIM where their windows fit."
CODEC = (
    "H.264 at crf 18 adds differences of its own: videos that were 60 dB apart come out of it 33 dB (of 32x32 pixels) "
    "to 44 dB apart (smooth ones at 480p). To see finer ones, make the videos with --lossless."
)
TITLE = "# How far the videos are from the reference"
OURS = {"fidelity.json": '"command": "python -m eval.fidelity', "fidelity.md": TITLE, "side-by-side.png": MARK}


def check_report(out: Path, rows: list[Row], videos: list[Video]) -> None:
    """Before any work. Raises ValueError where something that isn't ours lies where a report and its scores will."""
    files = {out / name: mark for name, mark in OURS.items()}
    files |= {find_file(out, row, video): SCORES_MARK for row in rows[1:] for video in videos}
    for file, mark in files.items():
        check_ours(file, mark)


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
    rows, left_out = record["rows"], record["left_out"]
    notes = "\n".join(f"- {note}" for note in (*_explain(record), *record["notes"]))
    parts = [TITLE, f"`{record['command']}`", _tell_rows(rows), notes, "![Side by side](side-by-side.png)"]
    parts += [_tell_making(rows)]
    parts += [f"## Left out: {len(left_out)}", table(["video", "why"], left_out.items())] if left_out else []
    parts += ["## Each video", _tell_videos(rows[1:])]
    return "\n\n".join(part for part in parts if part) + "\n"


def _tell_rows(rows: list[dict[str, Any]]) -> str:
    measures = [name for name in SHOWN if name in rows[1]["total"]]
    about = [name for name in ("weights", "attention") if name in rows[0]]
    densities = [cell(row.get("density", row["made"]["density"])) for row in rows]
    lines = []
    for row, density in zip(rows, densities, strict=True):
        told = [_tell(row, name) for name in measures] if row is not rows[0] else ["reference"] * len(measures)
        known = [density] if any(densities) else []
        lines.append([row["name"], *(row[name] for name in about), *known, *told, _tell_equal(row)])
    head = ["row", *about, *(["density"] if any(densities) else []), *(COLUMNS[name] for name in measures)]
    return table([*head, "equal frames"], lines)


def _tell(counted: dict[str, Any], name: str) -> str:
    """A row's or a video's number, with its interval and what marks it."""
    measured = counted["total"][name] if "total" in counted else {"mean": counted[name], "interval": None}
    mark = "*" if name == "psnr_of_frames" and counted["equal_frames"] else ""
    between = f" [{', '.join(map(cell, measured['interval']))}]" if measured["interval"] else ""
    return cell(measured["mean"]) + mark + between + (EQUAL_MARK if between and measured["all_equal"] else "")


def _tell_equal(counted: dict[str, Any]) -> str:
    """Nothing for the reference."""
    return f"{counted['equal_frames']} of {counted['frames']}" if "frames" in counted else ""


def cell(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}" if abs(value) >= 10 else f"{value:.3f}"


def _tell_making(rows: list[dict[str, Any]]) -> str:
    """Of each row by its videos' records, digests cut to their first 12 digits; nothing where there are none."""
    facts = [{"row": row["name"], **describe_making(Making(**row["made"]))} for row in rows]
    head = [name for name in dict.fromkeys(name for one in facts for name in one) if name != "density of attention"]
    told = DIGEST.sub(r"\1", table(head, ([one.get(name, "") for name in head] for one in facts)))
    return f"## How the videos were made\n\n{told}" if len(head) > 1 else ""


def _tell_videos(others: list[dict[str, Any]]) -> str:
    measures = [*(name for name in SHOWN if name in others[0]["total"]), "worst_psnr"]
    lines = [
        [video["name"], row["name"], _tell_equal(video), *(_tell(video, name) for name in measures)]
        for videos in zip(*(row["videos"] for row in others), strict=True)
        for row, video in zip(others, videos, strict=True)
    ]
    head = ["video", "row", "equal frames", *(COLUMNS.get(name, "PSNR of the worst frame") for name in measures)]
    return table(head, lines)


def _explain(record: dict[str, Any]) -> Iterator[str]:
    rows, settings = record["rows"], record["settings"]
    yield _count(rows[1:], known=bool(settings))
    equal = any(row["equal_frames"] for row in rows[1:])
    yield PSNR + (f" *: among the frames are equal ones, which count as {EQUAL:g} dB." if equal else "")
    lossless = [row["lossless"] for row in rows]
    unknown = "" if False in lossless else " Whether all files are lossless no record says: where they aren't,"
    yield f"{FILES} The files are lossless." if all(lossless) else f"{FILES}{unknown} {CODEC}"
    yield f"In the picture, below each strip: its difference to the reference, x {AMPLIFIED}."
    if settings:
        yield f"All rows: {', '.join(f'{name} {json.dumps(x, ensure_ascii=False)}' for name, x in settings.items())}."
    if left_out := len(record["left_out"]):
        yield f"Left out of all rows, since they can't be read in one: {left_out}, named below."
    if stale := [f"{name} of {row['name']}" for row in rows for name in row["of_other_files"]]:
        yield f"Records that are of other bytes than the video beside them, and not counted: {some(stale, NAMED)}."
    if missing := "; ".join(f"{NAMES[name]} ({why})" for name, why in record["not_measured"].items()):
        yield f"Not measured: {missing}."


def _count(others: list[dict[str, Any]], known: bool) -> str:
    """What the numbers are over, and how certain. known: whether it is known which prompts the videos are of."""
    totals = [row["total"][name] for row in others for name in SHOWN if name in row["total"]]
    videos, prompts = totals[0]["videos"], totals[0]["prompts"]
    text = f"Videos a row: {videos}, of {'1 prompt' if prompts == 1 else f'{prompts} prompts'}"
    text += ". " if known else "; one whose prompt no record says counts as of a prompt of its own. "
    shown = [measured for measured in totals if measured["interval"]]
    if not shown:
        return text + "No confidence interval: that needs two prompts or more."
    text += INTERVALS.format(shown=len(shown), missed=len(shown) / 20)
    share = 1 - ((1 - CONFIDENCE) / 2) ** (1 / prompts)
    equal = any(measured["all_equal"] for measured in shown)
    return text + (ALL_EQUAL.format(prompts=prompts, share=share) if equal else "")
