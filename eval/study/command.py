"""The study: a small Wan trained dense from nothing, then row by row with FPS attention, and what that does.

python -m eval.study --config configs/study/study.yaml --out FOLDER
python -m eval.study --config configs/study/study.yaml --out FOLDER --seeds 0,1,2 --devices 0,1 --minutes 9
python -m eval.study --config configs/study/study.yaml --out FOLDER --only joint,uniform --base base.safetensors
"""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from fps_flex.checks import at_home, one_of, require
from train.common.atomic import write_json
from train.common.console import cli_errors, run_command, writable
from train.common.lock import locked
from train.fit import check_words

from ..markdown import table
from ..reading import NoFile, read_json
from .base import take_base
from .clips import check_grid, check_parts, check_sizes
from .config import Plan, Study, first_difference, plain
from .measure import measure_real, measure_row
from .measured import REAL
from .report import write_report
from .run import note, run_tasks
from .tasks import CONFIGURATION, PROPOSAL, Task, list_tasks

IDENTITY = "study-of.json"  # what a folder's study measures: its configuration, and what that names


def main(
    out: Path,
    only: str | None = None,
    seeds: str = "0",
    minutes: float | None = None,
    devices: str | None = None,
    base: Path | None = None,
    measure: str | None = None,
    **study: Any,
) -> None:
    """Run what is missing of a study, and report what is there; a study that was stopped goes on where it was.

    Args:
        out: folder of the study.
        only: stages, rows or tasks, with commas between; none runs all. What they need is made too, but for the
            pretraining.
        seeds: of the rows' training, with commas between; all start from the same pretrained weights.
        minutes: after which all is kept and left; saving takes up to two more.
        devices: numbers of GPUs, with commas between, for one command each at a time, and for the pretraining together;
            a GPU that is named twice takes two commands at a time; none runs one at a time.
        base: pretrained weights, the base.safetensors of another study with the same pretraining.
        measure: the row that alone is measured in this process, or `real`, as a study has it done.
        study: of `Study`.
    """
    plan, numbers = Plan(Study(**study), at_home(out).resolve()), as_numbers("seeds", seeds)
    if measure is not None:
        one_of("measure", measure, (REAL, *plan.rows))
        if measure == REAL:
            measure_real(plan)
        else:
            measure_row(plan, measure, numbers[0])
        return
    places = [None] if devices is None else as_devices(devices)
    if minutes is not None:
        require("minutes", minutes, above=0)
    described = plan.describe()
    check_sizes(plan)
    check_grid(plan)
    check_parts(plan)
    tasks = list_tasks(plan, numbers)
    check_trainings(tasks)
    asked = find_asked(plan, tasks, only)
    with writable(plan.out), locked(plan.out, "--out"):
        check_identity(plan, described)
        if base is not None:
            use_base(plan, tasks, at_home(base))
        todo = choose(plan, tasks, asked, only)
        print(table(("task", "", "took"), ([*_state(plan, task)] for task in tasks.values()), "llr"), flush=True)
        if not run_tasks(todo, plan.out, places, minutes):
            left = sum(not task.is_done(plan.out) for task in todo)
            print(f"the time is up, and {left} of {len(todo)} tasks are left: the same command goes on", flush=True)
        write_report(plan, [*tasks.values()])


def _state(plan: Plan, task: Task) -> tuple[str, str, str]:
    record = task.record(plan.out)
    begun = "not kept" if record["done"] else "begun" if record["seconds"] else "left" if task.wanted else ""
    state = "done" if task.is_done(plan.out) else begun
    return task.name, state, f"{record['seconds']:.0f} s" if record["seconds"] else ""


def as_numbers(name: str, text: str, once: bool = True) -> list[int]:
    """Raises ValueError for anything but whole numbers with commas between, and where each is to be there once."""
    words = [word.strip() for word in text.split(",")]
    if not all(word.isdecimal() for word in words) or (once and len({*words}) < len(words)):
        raise ValueError(f"{name} is {text!r}, expected whole numbers with commas between, such as 0,1,2")
    return [int(word) for word in words]


def as_devices(text: str) -> list[str | None]:
    """Raises ValueError for a GPU that isn't here, without which a command would run on the CPU unsaid.

    Where there is none at all, they are so many commands at a time.
    """
    numbers = [str(x) for x in as_numbers("devices", text, once=False)]
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    here = visible if all(map(str.isdecimal, visible)) else [*map(str, range(torch.cuda.device_count()))]
    if torch.cuda.device_count() and not {*numbers} <= {*here}:
        raise ValueError(f"devices is {text!r}, expected GPUs that are here: {', '.join(here)}")
    return [*numbers]


def check_identity(plan: Plan, now: dict[str, Any]) -> None:
    """Raises ValueError for a folder of another study that has made something, and for one of other things."""
    file, ours = plan.out / IDENTITY, (IDENTITY, CONFIGURATION, "tasks")
    made = sorted(path.name for path in plan.out.iterdir() if path.name not in ours and not path.name.startswith("."))
    if made:
        try:
            before = read_json(file, dict[str, Any])
            if not before:
                raise ValueError(f"{file} is empty")
        except NoFile:
            raise ValueError(f"{plan.out} holds {made[0]}, and no study: choose another --out") from None
        except ValueError as error:
            raise ValueError(
                f"{file} is broken ({error}), and says no longer what {plan.out} measures: put a copy of it back, or "
                "choose another --out and give it the pretrained weights of this one by --base"
            ) from None
        if other := first_difference(before, now):
            raise ValueError(
                f"{plan.out} is of another study, whose {other}: choose another --out, and give it this one's "
                "pretrained weights by --base where the pretraining is the same"
            )
    write_json(file, now)
    write_json(plan.out / CONFIGURATION, plain(plan.study))


def check_trainings(tasks: dict[str, Task]) -> None:
    """Raises ValueError, before hours of pretraining, for options of any row's training that train.fit doesn't take."""
    for task in tasks.values():
        if task.words[:1] == ("train.fit",):
            there = [word for word in task.words[1:] if not word.endswith(PROPOSAL)]
            try:
                check_words(there)
            except ValueError as error:
                raise ValueError(f"{task.name}: {error}") from None


def find_asked(plan: Plan, tasks: dict[str, Task], only: str | None) -> list[Task]:
    """Raises ValueError for a word that is neither a stage nor a row."""
    if only is None:
        return [task for task in tasks.values() if task.wanted]
    asked = []
    for word in map(str.strip, only.split(",")):
        meant = [(x, (x.name, x.name.split("-")[0], x.wanted and x.row)) for x in tasks.values()]
        of_word = [task for task, words in meant if word in words]
        if not of_word:
            stages = ", ".join(dict.fromkeys(name.split("-")[0] for name in tasks))
            raise ValueError(f"only has {word!r}, expected a stage ({stages}) or a row ({', '.join(plan.rows)})")
        asked += of_word
    return asked


def choose(plan: Plan, tasks: dict[str, Task], asked: list[Task], only: str | None) -> list[Task]:
    """What is asked for and missing, with all that it needs.

    Raises ValueError where that takes a pretraining that wasn't asked for, and for clips that can't be drawn.
    """
    chosen: set[str] = set()

    def take(task: Task, needed: bool) -> None:
        if not task.is_done(plan.out, needed) and task.name not in chosen:
            chosen.add(task.name)
            for name in task.needs:
                take(tasks[name], needed=True)

    for task in asked:
        take(task, needed=False)
    if only and "pretrain" in chosen and not {"pretrain", "export"} & {task.name.split("-")[0] for task in asked}:
        raise ValueError(
            f"only is {only}, whose base is missing in {plan.out}: make it with --only export, or name one with --base"
        )
    if "data" in chosen and find_spec("vizdoom") is None:
        raise ValueError('vizdoom, which draws the clips, is not installed: pip install ".[study]"')
    return [task for task in tasks.values() if task.name in chosen]


def use_base(plan: Plan, tasks: dict[str, Task], base: Path) -> None:
    """In place of pretraining. Raises ValueError as `take_base`."""
    take_base(plan, base)
    for name in ("codec", "export"):
        if name in tasks and not tasks[name].is_done(plan.out):
            note(tasks[name], plan.out, 0.0, done=True)


def command(args: list[str] | None = None) -> None:
    """args: the command line, without the command; by default this process's own."""
    with cli_errors("stopped; the same command goes on with what is missing"):
        run_command(main, args, as_positional=False, description=__doc__.splitlines()[0], prog="python -m eval.study")
