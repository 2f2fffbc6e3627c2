"""Numbers of a report: of each video over its frames, and of each row over its videos, with intervals over prompts."""

from __future__ import annotations

from dataclasses import asdict, replace
from math import log10
from statistics import fmean
from typing import Any

from train.common.atomic import digest_file

from ..intervals import Sample, estimate
from ..making import summarise as summarise_records
from ..reading import read_json
from .pairs import Row, Video
from .scores import Frames
from .similarity import BOUNDS

EQUAL = 100.0  # dB, in place of infinity and of more


def to_db(error: float) -> float:
    """PSNR of a mean squared error of values from 0 to 1, at most 100 dB."""
    return min(EQUAL, -10 * log10(error)) if error else EQUAL


def summarise(row: Row, scores: dict[str, Frames] | None, videos: list[Video]) -> dict[str, Any]:
    """A row as plain data. scores: of its videos by name; None for the reference.

    made, lossless: by the records beside the videos; None where not every file has one that says it. of_other_files:
    videos whose record is of other bytes, and isn't counted.
    """
    summary = {name: value for name, value in asdict(row).items() if value is not None} | {"folder": str(row.folder)}
    records = {video.name: read_record(row, video) for video in videos}
    lossless = [(record or {}).get("lossless") for record in records.values()]
    summary |= {
        "made": asdict(replace(summarise_records([record for record in records.values() if record]), settings={})),
        "lossless": False if False in lossless else None if None in lossless else all(lossless),
        "of_other_files": [name for name, record in records.items() if record is None],
    }
    if scores is None:
        return summary
    of_video = [{"name": video.name, **_of_video(scores[video.name])} for video in videos]
    counts = {name: sum(video[name] for video in of_video) for name in ("frames", "equal_frames")}
    return summary | counts | {"total": total(of_video, [video.prompt for video in videos]), "videos": of_video}


def _of_video(frames: Frames) -> dict[str, Any]:
    """psnr: of the error over all frames. psnr_of_frames: mean over frames, of which the equal ones count 100 dB."""
    by_frame = [to_db(error) for error in frames["mse"]]
    return {
        "frames": len(by_frame),
        "equal_frames": frames["mse"].count(0.0),
        "mse": fmean(frames["mse"]),
        "psnr": to_db(fmean(frames["mse"])),
        "psnr_of_frames": fmean(by_frame),
        "worst_psnr": min(by_frame),
        **{name: fmean(numbers) for name, numbers in frames.items() if name != "mse"},
    }


def total(of_video: list[dict[str, Any]], prompts: list[str]) -> dict[str, Any]:
    """Of a row, for each measure {mean, interval, prompts, videos}.

    psnr is that of the error's mean over videos, and its interval that of the error: in dB the order turns round.
    """

    def over(name: str, bounds: tuple[float, float]) -> dict[str, Any]:
        values: dict[str, list[float]] = {}
        for prompt, numbers in zip(prompts, of_video, strict=True):
            values.setdefault(prompt, []).append(numbers[name])
        one = estimate(Sample(values, *bounds))
        return {
            "mean": one.mean,
            "interval": None if one.low is None else [one.low, one.high],
            "all_equal": len({x for those in values.values() for x in those}) == 1,
            "prompts": one.prompts,
            "videos": one.values,
        }

    error = over("mse", BOUNDS["mse"])
    worst_first = error["interval"] and [to_db(max(0.0, x)) for x in reversed(error["interval"])]
    return {
        "mse": error,
        "psnr": {**error, "mean": to_db(error["mean"]), "interval": worst_first},
        "psnr_of_frames": over("psnr_of_frames", (0.0, EQUAL)),
        **{name: over(name, bounds) for name, bounds in BOUNDS.items() if name != "mse" and name in of_video[0]},
    }


def read_record(row: Row, video: Video) -> dict[str, Any] | None:
    """What eval.generate wrote beside a video: empty where there is nothing, or something else; None of other bytes."""
    try:
        record = read_json(row.file(video).with_suffix(".json"), dict[str, Any])
    except ValueError:
        return {}
    try:
        return record if "sha256" not in record or record["sha256"] == digest_file(row.file(video)) else None
    except OSError:  # a video that can't be read, which is left out later
        return None
