"""What is known of each video and clip while a data set is prepared, and how it is kept: one small JSON file each."""

from __future__ import annotations

import gc
import hashlib
import json
import os
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch.distributed as dist
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from ..boxes import WHOLE, Box
from ..faults import ClipError, is_passing
from ..whole import write_text

Item = TypeVar("Item")
PATIENCE = timedelta(days=365)
Triple = tuple[int, int, int]


@dataclass(frozen=True)
class Source:
    """A video as it was found.

    key: names its files. modified: when, in ns. bytes: its size. reason: why it can't be used.
    """

    key: str
    video: str
    prompt: str
    modified: int = 0
    bytes: int = 0
    digest: str = ""
    width: int = 0
    height: int = 0
    fps: float = 0.0
    seconds: float = 0.0
    codec: str = ""
    reason: str | None = None


@dataclass(frozen=True)
class Clip:
    """A piece of a source, whose key and content digest it has.

    start, end: seconds. box: what is left of the picture. scores: all that was measured. hash: of its looks, in hex.
    size: frames, rows and columns that it gets. reasons: why it was dropped; none when it was kept.
    """

    name: str
    key: str
    source: str
    video: str
    prompt: str
    start: float
    end: float
    scores: dict[str, float] = field(default_factory=dict)
    hash: str = ""
    box: Box = WHOLE
    notes: tuple[str, ...] = ()
    size: Triple | None = None
    reasons: tuple[str, ...] = ()

    @property
    def digest(self) -> str:
        """Of what the clip holds: the video's content, the piece of it and the size."""
        said = json.dumps([self.source, self.start, self.end, asdict(self.box), self.size])
        return hashlib.sha256(said.encode()).hexdigest()


def read_clip_record(said: dict[str, Any]) -> Clip:
    tuples = {name: tuple(said[name]) for name in ("notes", "reasons")}
    return Clip(**{**said, **tuples, "box": Box(**said["box"]), "size": said["size"] and tuple(said["size"])})


def place() -> tuple[int, int]:
    """This process's rank and how many there are, under torchrun."""
    return int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))


def wait_for_all() -> None:
    """Until every process is here, however long the slowest takes; torchrun ends all of them when one fails."""
    if place()[1] > 1:
        if not dist.is_initialized():
            dist.init_process_group("gloo", timeout=PATIENCE)
        dist.barrier()


def for_each(title: str, items: list[Item], done: Callable[[Item], bool], work: Callable[[Item], None]) -> None:
    """Do the work that isn't done yet, shared out to the processes; returns when all of them are through."""
    rank, world = place()
    todo = [item for item in items[rank::world] if not done(item)]
    columns = (TextColumn(title), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), disable=rank > 0 or not todo) as progress:
        bar = progress.add_task(title, total=len(todo))
        gc.freeze()  # what is there already needn't be looked through below
        for item in todo:
            work(item)
            gc.collect()  # decoders lie in reference cycles: without this they pile up
            progress.advance(bar)
    wait_for_all()


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, ensure_ascii=False, indent=1) + "\n")


def write_lines(path: Path, values: Iterable[Any]) -> None:
    write_text(path, "".join(json.dumps(value, ensure_ascii=False) + "\n" for value in values))


NOW = "unreadable now"  # which the next start tries again


def why_unreadable(error: ClipError, path: Path) -> str:
    return f"{NOW if is_passing(error) else 'unreadable'}: {str(error).removeprefix(f'{path}: ')}"


def read_clips(path: Path) -> list[Clip] | None:
    """None where there are none."""
    if not path.is_file():
        return None
    try:
        return [read_clip_record(said) for said in read_json(path)]
    except (TypeError, KeyError) as error:
        raise ValueError(f"{path} is broken ({error!r}): remove it, and the same command makes it again") from None


def is_lasting(clips: list[Clip] | None) -> bool:
    """Whether there are clips, and none that couldn't be read for a while."""
    return bool(clips) and not any(reason.startswith(NOW) for clip in clips for reason in clip.reasons)


def read_source(path: Path) -> Source:
    try:
        return Source(**read_json(path))
    except TypeError as error:
        raise ValueError(f"{path} is broken ({error}): remove it, and the same command makes it again") from None


def read_json(path: Path) -> Any:
    """Raises ValueError for a file that is broken, as a loss of power may leave it."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is broken ({error}): remove it, and the same command makes it again") from None
