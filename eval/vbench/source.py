"""Where scores are read from, with the plan they belong to: a run's folder, one of results, a file, or a zip."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from zipfile import ZipFile

from ..reading import NoFile, is_zip, open_zip, parse, read_bytes, read_zipped
from .check import Findings
from .ours import WRITTEN, is_ours, parse_written, read_written
from .suite import DIMENSIONS, Plan, parse_plan

PARTS = ("scores", "eval_results")  # folders of a run that hold scores


@dataclass(frozen=True)
class File:
    """inside: its path in the folder or zip. shown: as messages name it."""

    inside: Path
    shown: str
    read: Callable[[], bytes]


@dataclass(frozen=True)
class Source:
    """files: those with scores. run: folder of the run, with its videos and records. problems: what can't be read."""

    path: Path
    files: list[File]
    run: Path
    plan: Plan | None = None
    findings: Findings | None = None
    problems: tuple[str, ...] = ()


def open_source(path: Path) -> Source:
    """Raises ValueError for what can't be read, and a plan that is none."""
    if os.path.isdir(path):  # False where that can't be told
        files, run = _list_folder(path), _find_run(path)
    else:
        try:
            data = read_bytes(path)
            packed = open_zip(str(path), data) if is_zip(data) else None
        except ValueError as error:
            raise ValueError(f"{path}: scores can't be read ({error})") from None
        if packed is not None:
            return _of_zip(path, packed)
        files, run = [File(Path(path.name), str(path), lambda: data)], _find_run(path.parent)
        run = path if run == path.parent else run
    return _with_run(path, files, run, _file(run / "plan.json", run), _file(run / "check.json", run))


def _file(file: Path, folder: Path) -> File:
    return File(file.relative_to(folder), str(file), partial(read_bytes, file))


def _find_run(folder: Path) -> Path:
    """The run that a folder of scores is a part of, or else the folder."""
    above = folder.resolve().parent
    return above if folder.resolve().name in PARTS and os.path.exists(above / "plan.json") else folder


def _with_run(path: Path, files: list[File], run: Path, plan: File | None, check: File | None) -> Source:
    known, findings, problems = None, None, ()
    with suppress(NoFile):
        known = plan and parse_plan(plan.shown, plan.read())
    try:
        with suppress(NoFile):
            findings = check and parse(Findings, check.read())
    except ValueError as error:
        so = "what is wrong with the videos isn't known until `check` makes it again"
        problems = (f"{check.shown} can't be used ({error}): {so}",)
    return Source(path, files, run, known, findings, problems)


def _list_folder(path: Path) -> list[File]:
    """A run's scores or those of a folder scores/, and all that the official package has anywhere in it."""
    try:
        own = (x for x in sorted(path.glob("*.json")) if x.stem in DIMENSIONS)
        files = [*sorted((path / "scores").glob("*.json")), *own]
        files += sorted(path.rglob("*_eval_results.json"))
    except OSError as error:
        raise ValueError(f"{path}: scores can't be read ({error.strerror})") from None
    names = {file: file.relative_to(path).as_posix() for file in dict.fromkeys(files)}
    written = read_written(path)
    others = [file for file, name in names.items() if not (name in written and is_ours(file, name, written))]
    return [_file(x, path) for x in others or names]


def _of_zip(path: Path, packed: ZipFile) -> Source:
    """Raises ValueError for a zip of several runs."""
    infos = sorted(packed.infolist(), key=lambda info: info.filename)
    members = [File(Path(x.filename), f"{path}:{x.filename}", partial(read_zipped, packed, x)) for x in infos]
    every = [x for x in members if not (x.inside.name.startswith((".", "__")) or "__MACOSX" in x.inside.parts)]
    plans = [x for x in every if x.inside.name == "plan.json"]
    if len(plans) > 1:
        raise ValueError(f"{path} holds {len(plans)} runs, expected one: {', '.join(x.shown for x in plans[:3])}")
    files = _choose(members, [x for x in every if x.inside.suffix == ".json"])
    plan = plans[0] if plans else None
    checks = (x for x in every if plan and x.inside == plan.inside.with_name("check.json"))
    return _with_run(path, files, path, plan, next(checks, None))


def _choose(members: list[File], every: list[File]) -> list[File]:
    """As of a folder; where nothing is named like that, every file, since a leaderboard's zip may name them anyhow."""
    named = [x for x in every if x.inside.parent.name == "scores" or x.inside.name.endswith("_eval_results.json")
             or x.inside.stem in DIMENSIONS and x.inside.parent.name != "records"]  # fmt: skip
    own = {x.inside.parent / name for x in members if x.inside.name == WRITTEN for name in parse_written(x.read())}
    return [x for x in named if x.inside not in own] or named or every
