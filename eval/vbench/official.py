"""The official VBench in its own environment: what is there, and scoring a dimension's videos in a subprocess."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

from fps_flex.checks import show

from ..reading import parse, parse_json, read_json, shape, write_plainly

RUNNER = Path(__file__).with_name("scorer_runner.py")
Device = Literal["auto", "cpu", "cuda"]
Items = list[dict[str, Any]]  # name, prompt and more of each video
Keep = Callable[[str, float | None, float], None]
CRASHES = 3  # one after the other, with no video scored between them, mean that it isn't the videos
DOWNLOADERS = ("wget", "curl", "git")


@dataclass(frozen=True)
class ScorerOptions:
    """The official package and its weights.

    Args:
        scorer_python: Python of an environment with the official package; without it only temporal_flickering is
            scored. setup-scorer makes one.
        scorer_weights: VBench's folder of weights; none takes $VBENCH_CACHE_DIR, or ~/.cache/vbench.
        scorer_device: of the official package: cpu, cuda, or the one there is.
    """

    scorer_python: Path | None = None
    scorer_weights: Path | None = None
    scorer_device: Device = "auto"

    def open(self) -> Scorer | None:
        """What the environment has, where one is named. Raises ValueError for what can't be used."""
        weights = find_weights(self.scorer_weights)
        return self.scorer_python and open_scorer(self.scorer_python, self.scorer_device, weights)


@dataclass(frozen=True)
class Scorer:
    """An environment of the official package, as scorer_runner.py describes it, and VBench's folder of weights.

    packages: whether each can be imported. suite: the package's VBench_full_info.json, None without the package.
    device: cpu or cuda, where videos will be scored.
    """

    versions: dict[str, str]
    packages: dict[str, bool]
    suite: str | None
    device: str
    python: Path
    weights: Path


@dataclass
class Outcome:
    """What the official code said of a dimension's videos.

    results: value and weight in the mean, by name; a None value counts for nothing. errors: what went wrong, by name.
    failure: why it could not score any further video; None when it went through all. notes: what else there is to say.
    """

    results: dict[str, tuple[float | None, float]] = field(default_factory=dict)
    errors: dict[str, str] = field(default_factory=dict)
    failure: str | None = None
    notes: list[str] = field(default_factory=list)


class ScorerFailed(RuntimeError):
    """The subprocess ended early. Its arguments: why, and the name of the video that it was at, or None."""


def find_weights(weights: Path | None) -> Path:
    """VBench's folder of weights: the one given, else its own. Raises ValueError for what is no folder."""
    folder = weights or Path(os.environ.get("VBENCH_CACHE_DIR") or "~/.cache/vbench")
    folder = Path(os.path.abspath(folder.expanduser()))
    if os.path.exists(folder) and not folder.is_dir():
        raise ValueError(f"--scorer-weights {folder} is a file, expected VBench's folder of weights")
    return folder


def open_scorer(python: Path, device: Device, weights: Path) -> Scorer:
    """Ask an environment what it has. Raises ValueError when it can't be run, or lacks the GPU asked for."""
    python = Path(os.path.abspath(python))  # not resolved: a virtual environment is where its link lies
    command = [str(python), "-I", str(RUNNER), "describe", device]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, stdin=subprocess.DEVNULL)
        if done.returncode:
            raise ValueError((done.stderr.strip().splitlines() or [f"code {done.returncode}"])[-1])
        described = parse(dict[str, Any], done.stdout.encode(), "what it says")
        scorer = shape("what it says", Scorer, {**described, "python": python, "weights": weights})
    except (OSError, subprocess.TimeoutExpired, ValueError) as error:
        wanted = "expected the Python of an environment with vbench"
        raise ValueError(f"--scorer_python {python} can't be used ({error}): {wanted}") from None
    if device == "cuda" != scorer.device:
        raise ValueError(f"--scorer_device is cuda, but the torch of {python} sees no GPU: choose cpu or another torch")
    return scorer


def score_official(scorer: Scorer, dimension: str, items: Items, videos: Path, log: Path, after_video: Keep) -> Outcome:
    """Score videos as the official package does, each at a time; a video it fails or dies on doesn't stop the others.

    dimension: one of VBench's, or the static filter. items: of the folder `videos`. after_video: called with a video's
    name, value and weight, once it has them; its ValueError says why they can't be. log: for what the official code
    prints.
    """
    outcome, crashes, left = Outcome(), 0, items
    while left:
        before = len(outcome.results)
        try:
            for entry in _run(scorer, dimension, left, videos, log):
                if "error" in entry:
                    outcome.errors[entry["name"]] = str(entry["error"])
                    continue
                try:
                    after_video(entry["name"], entry["value"], entry["weight"])
                    outcome.results[entry["name"]] = entry["value"], entry["weight"]
                except ValueError as error:
                    outcome.errors[entry["name"]] = f"the official score is {error}"
            break
        except ScorerFailed as failed:
            why, name = failed.args
            crashes = 1 if len(outcome.results) > before else crashes + 1
            if name is None or crashes == CRASHES:
                outcome.failure = why
                break
            outcome.errors[name] = why
        done = outcome.errors.keys() | outcome.results.keys()
        left = [item for item in items if item["name"] not in done]
    return outcome


def _run(scorer: Scorer, dimension: str, items: Items, videos: Path, log: Path) -> Iterator[dict[str, Any]]:
    """What the runner says of each video. Raises ScorerFailed when it ends with an error."""
    log.parent.mkdir(parents=True, exist_ok=True)
    current = None
    with TemporaryDirectory(prefix="vbench-") as temporary, log.open("ab") as errors:
        job, environment = prepare(Path(temporary), scorer, dimension, items, videos)
        command = [str(scorer.python), "-I", str(RUNNER), "score", str(job)]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": errors}  # it ends when stdin closes
        with subprocess.Popen(command, env=environment, encoding="utf-8", errors="replace", **pipes) as process:
            try:
                for line in process.stdout:
                    entry = _read_line(line, [item["name"] for item in items], current)
                    current = entry.get("start")
                    if current is None:
                        yield entry
                process.wait()
            finally:
                process.kill()
    if process.returncode:
        lines = log.read_text(encoding="utf-8", errors="replace").split("\n")
        last = next((line.strip() for line in reversed(lines) if line.strip()), "it said nothing")
        raise ScorerFailed(f"the scorer ended with code {process.returncode} ({last}; all in {log})", current)


def _read_line(line: str, names: list[str], current: str | None) -> dict[str, Any]:
    """{start}, {name, error} or {name, value, weight}. Raises ScorerFailed for anything else."""
    try:
        entry = parse_json("it", line.encode())
    except ValueError:
        entry = None
    kinds = ({"start"}, {"name", "error"}, {"name", "value", "weight"})
    if not isinstance(entry, dict) or entry.keys() not in kinds or entry.get("start", entry.get("name")) not in names:
        raise ScorerFailed(f"the scorer said {show(line)}, expected a video and its value", current)
    return entry


def prepare(folder: Path, scorer: Scorer, dimension: str, items: Items, videos: Path) -> tuple[Path, dict[str, str]]:
    """The job's file and the environment of its process, which runs in `folder` and has no way to download anything.

    The official code takes every file's extension from the first that it finds, and scores all that it finds: so it
    gets links to the videos to score and nothing else. DINO's code has its weights from torch.hub's cache, and BERT's
    name stands for a folder where the code runs.
    """
    links = {f"videos/{item['name']}": (videos / item["name"]).resolve() for item in items}
    links["hub/checkpoints/dino_vitbase16_pretrain.pth"] = scorer.weights / "dino_model/dino_vitbase16_pretrain.pth"
    links["bert-base-uncased"] = scorer.weights / "bert_model/bert-base-uncased"
    for name, target in links.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).symlink_to(target)
    prompts, info, job = {item["prompt"] for item in items}, folder / "info.json", folder / "job.json"
    entries = [x for x in read_json(Path(scorer.suite)) if dimension in x["dimension"] and x["prompt_en"] in prompts]
    write_plainly(info, json.dumps(entries))  # in ASCII: the official code reads it as the locale has it
    order = {"dimension": dimension, "device": scorer.device, "info": str(info), "work": str(folder)}
    write_plainly(job, json.dumps({**order, "videos": str(folder / "videos"), "items": items}))
    for name in DOWNLOADERS:
        tool = folder / "bin" / name
        write_plainly(tool, f'#!/bin/sh\necho "{name} refused: weights are never downloaded ($*)" >&2\nexit 1\n')
        tool.chmod(0o755)
    path = f"{folder / 'bin'}{os.pathsep}{os.environ.get('PATH', '')}"
    offline = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "TORCH_HOME": str(folder)}
    return job, {**os.environ, **offline, "VBENCH_CACHE_DIR": str(scorer.weights), "PATH": path}
