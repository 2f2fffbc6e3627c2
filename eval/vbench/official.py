"""The official VBench in its own environment: what is there, and scoring a dimension's videos in a subprocess."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

from fps_flex.checks import show

from .reading import parse_json, read_json, shape

RUNNER = Path(__file__).with_name("scorer_runner.py")
Device = Literal["auto", "cpu", "cuda"]
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

    def open(self) -> tuple[Scorer | None, Path]:
        """What the environment has, where one is named, and the weights. Raises ValueError for what can't be used."""
        weights = find_weights(self.scorer_weights)
        return self.scorer_python and open_scorer(self.scorer_python, self.scorer_device), weights


@dataclass(frozen=True)
class Scorer:
    """An environment of the official package.

    packages: whether each can be imported. suite: the package's VBench_full_info.json, None without the package.
    """

    python: Path
    versions: dict[str, str]
    packages: dict[str, bool]
    suite: str | None
    device: Literal["cpu", "cuda"]


@dataclass(frozen=True)
class Described:
    """What scorer_runner.py says of its environment."""

    versions: dict[str, str]
    packages: dict[str, bool]
    suite: str | None
    has_gpu: bool


@dataclass
class Outcome:
    """What the official code said of a dimension's videos.

    results: value and weight in the mean, by name; a None value counts for nothing. errors: what went wrong, by name.
    failure: why it could not score any further video; None when it went through all.
    """

    results: dict[str, tuple[float | None, float]] = field(default_factory=dict)
    errors: dict[str, str] = field(default_factory=dict)
    failure: str | None = None


class ScorerFailed(RuntimeError):
    """The subprocess ended early. name: of the video that it was at, if any."""

    def __init__(self, message: str, name: str | None):
        super().__init__(message)
        self.name = name


def find_weights(weights: Path | None) -> Path:
    """VBench's folder of weights: the one given, else its own. Raises ValueError for what is no folder."""
    folder = weights or Path(os.environ.get("VBENCH_CACHE_DIR") or "~/.cache/vbench")
    folder = Path(os.path.abspath(folder.expanduser()))
    if os.path.exists(folder) and not folder.is_dir():
        raise ValueError(f"--scorer-weights {folder} is a file, expected VBench's folder of weights")
    return folder


def open_scorer(python: Path, device: Device) -> Scorer:
    """Ask an environment what it has. Raises ValueError when it can't be run, or lacks the GPU asked for."""
    python = Path(os.path.abspath(python))  # not resolved: a virtual environment is where its link lies
    command = [str(python), "-I", str(RUNNER), "describe", device]
    wrong = f"--scorer_python {python} can't be used ({{}}): expected the Python of an environment with vbench"
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, stdin=subprocess.DEVNULL)
    except (OSError, subprocess.TimeoutExpired, UnicodeDecodeError) as error:
        raise ValueError(wrong.format(error)) from None
    if done.returncode:
        raise ValueError(wrong.format((done.stderr.strip().splitlines() or [f"code {done.returncode}"])[-1]))
    try:
        described = shape("what it says", Described, parse_json("what it says", done.stdout.encode()))
    except ValueError as error:
        raise ValueError(wrong.format(error)) from None
    if device == "cuda" and not described.has_gpu:
        raise ValueError(
            f"--scorer_device is cuda, but the torch of {python} sees no GPU: choose cpu, or another torch"
        )
    return Scorer(
        python, described.versions, described.packages, described.suite, "cuda" if described.has_gpu else "cpu"
    )


def score_official(
    scorer: Scorer,
    dimension: str,
    items: list[dict[str, Any]],
    videos: Path,
    weights: Path,
    log: Path,
    after_video: Callable[[str, float | None, float], None],
) -> Outcome:
    """Score videos as the official package does, each at a time; a video it fails or dies on doesn't stop the others.

    dimension: one of VBench's, or the static filter. items: name, prompt and more of each video in the folder
    `videos`. weights: VBench's cache folder. after_video: called with a video's name, value and weight, once it has
    them; its ValueError says why they can't be. log: for what the official code prints.
    """
    outcome, crashes, left = Outcome(), 0, items
    while left:
        before = len(outcome.results)
        try:
            for entry in _run(scorer, dimension, left, videos, weights, log):
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
            crashes = 1 if len(outcome.results) > before else crashes + 1
            if failed.name is None or crashes == CRASHES:
                outcome.failure = str(failed)
                break
            outcome.errors[failed.name] = str(failed)
        done = outcome.errors.keys() | outcome.results.keys()
        left = [item for item in items if item["name"] not in done]
    return outcome


def _run(
    scorer: Scorer, dimension: str, items: list[dict[str, Any]], videos: Path, weights: Path, log: Path
) -> Iterator[dict[str, Any]]:
    """What the runner says of each video. Raises ScorerFailed when it ends with an error."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix="vbench-") as temporary, log.open("ab") as errors:
        job = prepare_job(Path(temporary), Path(scorer.suite), scorer.device, dimension, items, videos, weights)
        command = [str(scorer.python), "-I", str(RUNNER), "score", str(job)]
        environment = set_environment(Path(temporary), weights)
        current = None
        with _running(command, environment, errors) as process:
            for line in process.stdout:
                entry = _read_line(line, [item["name"] for item in items], current)
                current = entry.get("start")
                if current is None:
                    yield entry
        if process.returncode:
            raise ScorerFailed(f"the scorer ended with code {process.returncode} ({_last_line(log)}; all in {log})",
                               current)  # fmt: skip


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


@contextmanager
def _running(command: list[str], environment: dict[str, str], errors: Any) -> Iterator[subprocess.Popen[str]]:
    """Its standard input stays open as long as this process lives: it ends when that closes."""
    process = subprocess.Popen(
        command,
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=errors,
        encoding="utf-8",
        errors="replace",
    )
    try:
        yield process
        process.wait()
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
        process.stdin.close()
        process.stdout.close()


def _last_line(log: Path) -> str:
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return lines[-1] if lines else "it said nothing"


def prepare_job(
    folder: Path,
    suite: Path,
    device: str,
    dimension: str,
    items: list[dict[str, Any]],
    videos: Path,
    weights: Path,
) -> Path:
    """A folder of links to the videos to score and nothing else, their entries of the suite, and the job.

    The official code takes every file's extension from the first that it finds, and scores all that it finds.
    """
    linked, names = folder / "videos", {item["name"] for item in items}
    linked.mkdir()
    for name in sorted(names):
        (linked / name).symlink_to((videos / name).resolve())
    prompts = {item["prompt"] for item in items}
    entries = [entry for entry in read_json(suite) if dimension in entry["dimension"] and entry["prompt_en"] in prompts]
    info, job = folder / "info.json", folder / "job.json"
    info.write_text(json.dumps(entries), encoding="utf-8")
    _link_what_is_looked_for_elsewhere(folder, weights)
    order = {"dimension": dimension, "device": device, "info": str(info), "videos": str(linked),
            "work": str(folder), "items": items}  # fmt: skip
    job.write_text(json.dumps(order), encoding="utf-8")
    return job


def _link_what_is_looked_for_elsewhere(folder: Path, weights: Path) -> None:
    """DINO's code has its weights from torch.hub's cache, BERT's name stands for a folder where the code runs."""
    hub = folder / "hub" / "checkpoints"
    hub.mkdir(parents=True)
    (hub / "dino_vitbase16_pretrain.pth").symlink_to(weights / "dino_model/dino_vitbase16_pretrain.pth")
    (folder / "bert-base-uncased").symlink_to(weights / "bert_model/bert-base-uncased")


def set_environment(folder: Path, weights: Path) -> dict[str, str]:
    """Where weights are, and nothing that downloads: the official code would when it misses them."""
    tools = folder / "bin"
    tools.mkdir()
    for name in DOWNLOADERS:
        tool = tools / name
        tool.write_text(f'#!/bin/sh\necho "{name} refused: weights are never downloaded ($*)" >&2\nexit 1\n')
        tool.chmod(0o755)
    offline = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "TORCH_HOME": str(folder)}
    path = f"{tools}{os.pathsep}{os.environ.get('PATH', '')}"
    return {**os.environ, **offline, "VBENCH_CACHE_DIR": str(weights), "PATH": path}
