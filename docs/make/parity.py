"""Compare with the official package, in its own environment, on small videos that are made anew each time.

python -m docs.make.parity --scorer_python SCORER/bin/python      takes a quarter of an hour on two busy cores

temporal_flickering: ours, and the official one through our subprocess, against the official package called as its
documentation says. Then dimensions with models, whose weights are random: that shows that the package runs and that
the same numbers come out, not what any video is worth.
"""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import av
import numpy as np
from jsonargparse import auto_cli

from eval.vbench.flicker import score_flicker
from eval.vbench.official import Scorer, find_weights, open_scorer, score_official
from eval.vbench.suite import FLICKER
from eval.vbench.weights import STATIC_FILTER
from train.common.atomic import write_json

if TYPE_CHECKING:
    from jaxtyping import UInt8

HERE = Path(__file__).parent
OFFICIAL = HERE / "parity_official.py"
RESULTS = HERE.parent / "results" / "vbench-parity.json"
BT709, LIMITED, FULL = 1, 1, 2  # as in ITU-T H.273; ranges as FFmpeg numbers them


@dataclass(frozen=True)
class Case:
    """A video of made-up planes, kept without loss unless `crf` says so, so that any encoder gives the same frames."""

    pixels: str
    height: int
    width: int
    frames: int
    colours: int | None = None
    levels: int | None = None
    noise: int = 20
    crf: int = 0


CASES = (
    Case("yuv420p", 64, 96, 9, BT709, LIMITED),
    Case("yuv420p", 128, 160, 16),
    Case("yuv420p", 62, 90, 5, BT709, LIMITED, noise=90),
    Case("yuv420p", 64, 64, 2, noise=2),
    Case("yuv420p", 64, 64, 4, BT709, LIMITED, noise=0),
    Case("yuvj420p", 96, 64, 6, BT709, FULL),
    Case("yuvj420p", 64, 96, 6, None, FULL),
    Case("yuv444p", 64, 96, 7, BT709, LIMITED),
    Case("yuv420p", 480, 832, 5, BT709, LIMITED, crf=18),
    Case("yuv420p", 272, 480, 17, crf=28),
)
MODELS = ("dynamic_degree", "motion_smoothness", "imaging_quality", "human_action", "overall_consistency")


def main(scorer_python: Path, out: Path = RESULTS, models: list[str] | None = None, seed: int = 0) -> None:
    """Compare and write what was found.

    Args:
        scorer_python: the Python of an environment that setup-scorer made.
        out: JSON to write.
        models: dimensions to run with random weights; none takes all that this command can make.
        seed: of the random weights.
    """
    scorer = open_scorer(scorer_python, "cpu", find_weights(None))
    suite = json.loads(Path(scorer.suite).read_text(encoding="utf-8"))
    here = {name: version(name) for name in ("av", "numpy")}
    result: dict[str, Any] = {
        "command": "python -m docs.make.parity --scorer_python SCORER/bin/python",
        "versions": {"here": {**here, "ffmpeg": av.ffmpeg_version_info}, "scorer": scorer.versions},
    }
    with TemporaryDirectory() as temporary:
        result[FLICKER] = compare_flicker(scorer, suite, Path(temporary))
        result["random_weights"] = {
            "note": f"weights are random (seed {seed}): this shows that the package runs, these are no scores",
            **{name: compare_model(scorer, suite, name, seed, Path(temporary)) for name in models or MODELS},
        }
    write_json(out, result)
    print(out.read_text(encoding="utf-8"))


def compare_flicker(scorer: Scorer, suite: list[dict[str, Any]], work: Path) -> dict[str, Any]:
    folder = work / FLICKER
    names = make_videos(folder, find_prompts(suite, FLICKER, len(CASES)), CASES)
    overall, official = run_official(scorer, FLICKER, folder, work)
    ours = {name: score_flicker(folder / name) for name in names}
    through = run_ours(scorer, FLICKER, folder, names, work, work / "none")
    rows = [
        {"case": vars(case), "official": official[name], "native": ours[name], "subprocess": through[name]}
        for case, name in zip(CASES, names, strict=True)
    ]
    return {
        "official_overall": overall,
        "largest_difference_native": max(abs(row["native"] - row["official"]) for row in rows),
        "largest_difference_subprocess": max(abs(row["subprocess"] - row["official"]) for row in rows),
        "videos": rows,
    }


def compare_model(scorer: Scorer, suite: list[dict[str, Any]], dimension: str, seed: int, work: Path) -> dict[str, Any]:
    """The official package as it is and through our subprocess, with the same random weights."""
    weights, folder = work / "weights" / dimension, work / dimension
    run_python(scorer, weights, "weights", str(weights), str(seed), dimension)
    cases = [Case("yuv420p", 128, 160, 5 + 4 * i, noise=20 + 20 * i) for i in range(2)]
    names = make_videos(folder, find_prompts(suite, dimension, len(cases)), cases)
    overall, official = run_official(scorer, dimension, folder, work, weights)
    through = run_ours(scorer, dimension, folder, names, work, weights)
    filtered = {}
    if dimension == "dynamic_degree":  # the official command of the filter runs on a GPU only, so ours runs alone
        static = run_ours(scorer, STATIC_FILTER, folder, names, work, weights)
        filtered = {"static_filter_subprocess": [static[name] for name in names]}
    return {
        "official_overall": overall,
        "official": [official[name] for name in names],
        "subprocess": [through[name] for name in names],
        **filtered,
    }


def find_prompts(suite: list[dict[str, Any]], dimension: str, count: int) -> list[str]:
    return [entry["prompt_en"] for entry in suite if dimension in entry["dimension"]][:count]


def make_videos(folder: Path, prompts: list[str], cases: Any) -> list[str]:
    folder.mkdir(parents=True)
    names = [f"{prompt}-0.mp4" for prompt in prompts]
    for number, (name, case) in enumerate(zip(names, cases, strict=True)):
        write_case(folder / name, case, number)
    return names


def write_case(path: Path, case: Case, seed: int) -> None:
    """H.264 of exactly the planes that the seed gives."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=16, options={"crf": str(case.crf), "preset": "ultrafast"})
        stream.height, stream.width, stream.pix_fmt = case.height, case.width, case.pixels
        if case.colours is not None:
            stream.codec_context.colorspace = case.colours
        if case.levels is not None:
            stream.codec_context.color_range = case.levels
        for planes in draw_planes(case, seed):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(planes, format=case.pixels)))
        container.mux(stream.encode())


def draw_planes(case: Case, seed: int) -> list[UInt8[np.ndarray, "..."]]:
    """A moving ramp and noise that grows with time, as PyAV lays out the pixel format's planes."""
    random = np.random.default_rng(seed)
    shape = (3, case.height, case.width) if case.pixels == "yuv444p" else (case.height * 3 // 2, case.width)
    ramp = np.add.outer(np.arange(shape[-2]), 2 * np.arange(shape[-1])) // 3
    drawn = []
    for frame in range(case.frames):
        noise = random.integers(-case.noise, case.noise + 1, shape) * (frame + 1) // case.frames
        moving = ramp + (3 * frame if case.noise else 0)
        drawn.append((16 + (moving % 180) + noise).clip(0, 255).astype(np.uint8))
    return drawn


def run_official(
    scorer: Scorer, dimension: str, folder: Path, work: Path, weights: Path | None = None
) -> tuple[float, dict[str, float]]:
    """Overall and each video's value, as the package writes them."""
    run_python(scorer, weights or work, "evaluate", str(folder), str(work), dimension)
    overall, rows = json.loads((work / f"{dimension}_eval_results.json").read_text())[dimension]
    return overall, {Path(row["video_path"]).name: float(row["video_results"]) for row in rows}


def run_ours(
    scorer: Scorer, dimension: str, folder: Path, names: list[str], work: Path, weights: Path
) -> dict[str, float]:
    items = [{"name": name, "prompt": name.removesuffix("-0.mp4"), "static": None} for name in names]
    log = work / f"{dimension}.log"
    outcome = score_official(replace(scorer, weights=weights), dimension, items, folder, log, lambda *result: None)
    if outcome.failure or outcome.errors:
        raise SystemExit(f"{dimension}: {outcome.failure or outcome.errors}\n{log.read_text()[-3000:]}")
    return {name: value for name, (value, _) in outcome.results.items()}


def run_python(scorer: Scorer, weights: Path, *arguments: str) -> None:
    """Of the scorer's environment; ends with what it says when it fails."""
    command = [str(scorer.python), "-I", "-W", "ignore", str(OFFICIAL), *arguments]
    environment = {**os.environ, "VBENCH_CACHE_DIR": str(weights)}
    done = subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(arguments)} failed:\n{done.stderr[-3000:]}")


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
