"""Rows of videos compared with the first row: measured, kept, and told in JSON, Markdown and a side-by-side sheet."""

from __future__ import annotations

import hashlib
import json
import shlex
import sys
from dataclasses import asdict, dataclass
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor

from train.pictures import draw_contact_sheet
from train.videos import probe
from train.whole import write_text

from .similarity import IDENTICAL, NAMES, compare, find_interval, find_metrics, read_frames
from .timing import find_device

if TYPE_CHECKING:
    from jaxtyping import Float

STRIPS = 12  # of the side-by-side sheet, about
PICTURES = 8  # of each strip

Found = dict[str, dict[str, list[float]]]  # {video: {metric: a number a frame}}


@dataclass(frozen=True)
class Row:
    """One way to make the videos, which lie in `folder`. density: of its attention, mean over the sampler's steps."""

    name: str
    folder: Path
    weights: str | None = None
    attention: str | None = None
    density: float | None = None


@dataclass(frozen=True)
class Video:
    """One video of every row: name.mp4. group: videos of one group, such as those of one prompt, are alike."""

    name: str
    group: str
    caption: str


def write_report(out: Path, rows: list[Row], videos: list[Video], facts: dict[str, Any], notes: list[str]) -> None:
    """Compare every row with the first one; writes fidelity.json, fidelity.md and side-by-side.png.

    facts: settings that all rows share. Raises ValueError for videos that can't be compared.
    """
    measured, left_out = measure(out, rows, videos)
    record = {
        "command": f"python -m eval.fidelity {shlex.join(sys.argv[1:])}",
        "versions": {name: version(name) for name in ("torch", "torchmetrics", "av")},
        "settings": facts,
        "left_out": left_out,
        "notes": notes,
        "rows": [summarise(row, measured.get(row.name), videos) for row in rows],
    }
    draw_side_by_side(out / "side-by-side.png", rows, videos, measured)
    write_text(out / "fidelity.json", json.dumps(record, indent=1, ensure_ascii=False) + "\n")
    write_text(out / "fidelity.md", render(record))
    print(render(record))


def measure(out: Path, rows: list[Row], videos: list[Video]) -> tuple[dict[str, Found], dict[str, str]]:
    """{row: what was found}, and why metrics are left out: all are measured that the smallest video allows.

    What was measured of the same files before is read from out/scores.
    """
    probes = [probe(rows[0].folder / f"{video.name}.mp4") for video in videos]
    metrics, left_out = find_metrics(min(x.height for x in probes), min(x.width for x in probes))
    measured: dict[str, Found] = {row.name: {} for row in rows[1:]}
    pairs = [(row, video.name) for row in rows[1:] for video in videos]
    for row, name in track(pairs, "measuring", console=Console(stderr=True), transient=True):
        candidate, reference = (folder / f"{name}.mp4" for folder in (row.folder, rows[0].folder))
        kept = out / "scores" / row.name / f"{name}.json"
        key = {"candidate": _hash(candidate), "reference": _hash(reference), "metrics": list(metrics)}
        found = _read_scores(kept, key)
        if found is None:
            found = compare(candidate, reference, metrics, find_device())
            write_text(kept, json.dumps({**key, "frames": found}) + "\n")
        measured[row.name][name] = found
    return measured, left_out


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read_scores(path: Path, key: dict[str, Any]) -> dict[str, list[float]] | None:
    """What was measured before; None where that is missing, broken or of other files."""
    try:
        said = json.loads(path.read_text(encoding="utf-8"))
        return said["frames"] if {name: said[name] for name in key} == key else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def summarise(row: Row, found: Found | None, videos: list[Video]) -> dict[str, Any]:
    """For each video the mean over its frames, for the row the mean over its videos; as plain data."""
    said = {name: value for name, value in asdict(row).items() if value is not None} | {"folder": str(row.folder)}
    if found is None:
        return said
    of_video = [
        {
            "name": video.name,
            "frames": len(found[video.name]["psnr"]),
            **{name: fmean(numbers) for name, numbers in found[video.name].items()},
            "worst_psnr": min(found[video.name]["psnr"]),
        }
        for video in videos
    ]
    groups = [video.group for video in videos]
    total = {}
    for name in found[videos[0].name]:
        values = [numbers[name] for numbers in of_video]
        total[name] = {"mean": fmean(values), "interval": find_interval(values, groups)}
    return said | {"total": total, "videos": of_video}


def render(record: dict[str, Any]) -> str:
    """The report in Markdown."""
    reference, *others = record["rows"]
    metrics = list(others[0]["total"])
    about = [name for name in ("weights", "attention", "density") if name in reference]
    lines = [
        "# How far the videos are from the reference",
        "",
        f"`{record['command']}`",
        "",
        _line(["row", *about, *(NAMES[name] for name in metrics)]),
        "|---" * (1 + len(about) + len(metrics)) + "|",
        _line([reference["name"], *(_cell(reference[name]) for name in about), *["reference"] * len(metrics)]),
    ]
    for row in others:
        totals = (_with_interval(**row["total"][name]) for name in metrics)
        lines.append(_line([row["name"], *(_cell(row[name]) for name in about), *totals]))
    lines += ["", *(f"- {note}" for note in [*_explain(record), *record["notes"]]), ""]
    lines += ["![Side by side](side-by-side.png)", "", "## Each video", ""]
    columns = [*metrics, "worst_psnr"]
    lines += [_line(["video", "row", "frames", *(NAMES.get(name, "PSNR of the worst frame") for name in columns)])]
    lines += ["|---" * (3 + len(columns)) + "|"]
    for videos in zip(*(row["videos"] for row in others), strict=True):
        for row, video in zip(others, videos, strict=True):
            cells = (_cell(video[name]) for name in columns)
            lines.append(_line([video["name"], row["name"], str(video["frames"]), *cells]))
    return "\n".join(lines) + "\n"


def _explain(record: dict[str, Any]) -> list[str]:
    other = record["rows"][1]
    count = len(other["videos"])
    interval = other["total"]["psnr"]["interval"]
    sure = (
        "in brackets the middle 95 % of 10,000 means of prompts drawn again, with all their videos"
        if interval
        else "no confidence interval: that needs two prompts or more"
    )
    said = [
        f"Videos a row: {count}. Numbers are means over a video's frames, then over videos; {sure}. The frames of one "
        "video depend on each other, so a single video has no interval.",
        "Measured between the files as they are, H.264 and all, in RGB from 0 to 1, at each frame; equal frames count "
        f"as {IDENTICAL:g} dB.",
    ]
    if record["settings"]:
        settings = ", ".join(f"{name} {json.dumps(x, ensure_ascii=False)}" for name, x in record["settings"].items())
        said.append(f"All rows: {settings}.")
    left_out = "; ".join(f"{NAMES[name]} ({reason})" for name, reason in record["left_out"].items())
    return said + ([f"Not measured: {left_out}."] if left_out else [])


def _line(cells: list[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _cell(value: str | float) -> str:
    return value if isinstance(value, str) else f"{value:.2f}" if abs(value) >= 10 else f"{value:.3f}"


def _with_interval(mean: float, interval: tuple[float, float] | None) -> str:
    return f"{_cell(mean)} [{_cell(interval[0])}, {_cell(interval[1])}]" if interval else _cell(mean)


def draw_side_by_side(path: Path, rows: list[Row], videos: list[Video], measured: dict[str, Found]) -> None:
    """Of the first videos of one size and length, a strip of every row."""
    shown = []
    for video in videos[: max(1, STRIPS // len(rows))]:
        frames = len(measured[rows[1].name][video.name]["psnr"])
        for row in rows:
            found = measured.get(row.name, {}).get(video.name, {})
            said = [f"{NAMES[name]} {_cell(fmean(numbers))}" for name, numbers in found.items()]
            caption = f"{row.name}: {', '.join(said) or video.caption}"
            shown.append((_read_strip(row.folder / f"{video.name}.mp4", frames), caption))
    alike = [(strip, caption) for strip, caption in shown if strip.shape == shown[0][0].shape]
    strips, captions = zip(*alike, strict=True)
    draw_contact_sheet(path, torch.stack(strips), list(captions), columns=PICTURES)


def _read_strip(path: Path, frames: int) -> Float[Tensor, "3 f h w"]:
    """Up to PICTURES frames, spread over the video, in -1 to 1."""
    count = min(PICTURES, frames)
    wanted = {i * (frames - 1) // max(1, count - 1) for i in range(count)}
    kept = [frame for i, frame in enumerate(islice(read_frames(path), frames)) if i in wanted]
    return torch.from_numpy(np.stack(kept)).permute(3, 0, 1, 2).float() / 127.5 - 1
