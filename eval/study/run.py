"""Running tasks: as many at once as there are devices, until the time is up; the same command goes on."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from train.common.atomic import write_json
from train.common.ending import Interrupted
from train.stopping import StopRequest

from ..timing import ROOT
from .tasks import Task

POLL, GRACE = 0.1, 120.0  # seconds between looks; and for a command that was told to stop, to save what it has


@dataclass
class Running:
    """A command under way. devices: of CUDA_VISIBLE_DEVICES; None leaves that alone."""

    task: Task
    devices: list[str | None]
    out: Path
    began: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        self.log = self.out / "tasks" / f"{self.task.name}.log"
        named = [device for device in self.devices if device is not None]
        given = {"CUDA_VISIBLE_DEVICES": ",".join(named)} if named else {}
        keep(self.task, self.out, 0.0, done=False)  # also where it was done once, and what it left is gone
        with self.log.open("ab") as log:
            self.start = log.tell()
            self.process = subprocess.Popen(
                [sys.executable, "-m", *self.task.words], stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                env=os.environ | given, cwd=ROOT, start_new_session=True,
            )  # fmt: skip

    @property
    def is_over(self) -> bool:
        return self.process.poll() is not None

    def signal(self, number: signal.Signals) -> None:
        """To the command and all that it started, as Ctrl-C in a terminal does."""
        if not self.is_over:
            os.killpg(self.process.pid, number)

    def finish(self) -> None:
        """Raises ValueError, in its own words, where it failed."""
        note(self.task, self.out, time.monotonic() - self.began, done=self.process.returncode == 0)
        if self.process.returncode:
            text = self.log.read_bytes()[self.start :].decode(errors="replace")
            lines = [line.strip() for line in re.split(r"[\r\n]", text) if line.strip()]
            said = [line for line in lines if line.startswith("error: ")] or lines or ["nothing"]
            raise ValueError(
                f"{self.task.name}: {said[-1].removeprefix('error: ')} (all that it said is in {self.log})"
            )


def run_tasks(tasks: list[Task], out: Path, devices: list[str | None], minutes: float | None) -> bool:
    """Each once what it needs is done, on one of the devices, or where it has a batch on as many as divide it. A device
    that is there twice takes two at a time.

    Returns whether all are; else the time was up. Raises ValueError in the words of a command that failed, and
    Interrupted, once the others have saved what they have.
    """
    left, running, stop = [*tasks], [], StopRequest()
    until = time.monotonic() + (60 * minutes if minutes else float("inf"))
    with stop.restored_after():
        # what is caught here is at its default in the commands, and what is ignored here is ignored there too: SIGINT,
        # where a script's shell starts a study in the background
        stop.listen()
        _run_all(left, running, out, devices, lambda: stop.number or time.monotonic() >= until)
    if stop.number:
        raise Interrupted(stop.number)
    return not left and not running


def _run_all(
    left: list[Task], running: list[Running], out: Path, devices: list[str | None], over: Callable[[], bool]
) -> None:
    """left, running: what is to be done, and what is under way; they change as it is."""
    try:
        while (left or running) and not over():
            for one in [x for x in running if x.is_over]:
                running.remove(one)
                one.finish()
            unfinished = {task.name for task in left} | {one.task.name for one in running}
            for task in [task for task in left if not unfinished & {*task.needs}]:
                free = [*devices]
                for device in (device for x in running for device in x.devices):
                    free.remove(device)
                if task.batch:  # it waits for all, and takes each once
                    free = [*dict.fromkeys(devices)] if len(free) == len(devices) else []
                if free:
                    places = free[: task.most(len(free))]
                    left.remove(task)
                    _begin(task.on(len(places)), places, running, out)
            time.sleep(POLL)
    finally:
        _stop(running)


def _begin(task: Task, devices: list[str | None], running: list[Running], out: Path) -> None:
    if task.call is None:
        running.append(Running(task, devices, out))
        named = ", ".join(device for device in devices if device is not None)
        print(f"{task.name} begins{f' on device {named}' if named else ''}", flush=True)
        return
    began = time.monotonic()
    task.call()
    note(task, out, time.monotonic() - began, done=True)


def _stop(running: list[Running]) -> None:
    """Whatever happens: what runs saves what it has, or ends all the same."""
    for one in running:
        one.signal(signal.SIGINT)
    until = time.monotonic() + GRACE
    for one in running:
        while not one.is_over and time.monotonic() < until:
            time.sleep(POLL)
        one.signal(signal.SIGKILL)
        one.process.wait()
        note(one.task, one.out, time.monotonic() - one.began, done=one.process.returncode == 0)


def keep(task: Task, out: Path, seconds: float, done: bool) -> float:
    """How a task stands, and the time that it has taken in all, which it returns."""
    seconds = round(task.record(out)["seconds"] + seconds, 1)
    command = ["python", "-m", *task.words] if task.words else None
    task.record_file(out).parent.mkdir(exist_ok=True)
    write_json(task.record_file(out), {"done": done, "seconds": seconds, "command": command})
    return seconds


def note(task: Task, out: Path, seconds: float, done: bool) -> None:
    """Keep it, and say it."""
    seconds = keep(task, out, seconds, done)
    print(f"{task.name} {'is done' if done else 'was stopped'}, after {seconds:.0f} s in all", flush=True)
