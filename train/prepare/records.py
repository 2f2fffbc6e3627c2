"""What is known of each video and clip while a data set is prepared, and how it is kept: one small JSON file each."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from fps_flex.checks import Triple

from ..common.atomic import digest_content
from ..common.boxes import WHOLE, Box
from ..common.faults import ClipError, is_passing


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
        content = json.dumps([self.source, self.start, self.end, asdict(self.box), self.size])
        return digest_content(content)


def read_clip_record(record: dict[str, Any]) -> Clip:
    tuples = {name: tuple(record[name]) for name in ("notes", "reasons")}
    return Clip(**{**record, **tuples, "box": Box(**record["box"]), "size": record["size"] and tuple(record["size"])})


NOW = "unreadable now"  # which the next start tries again


def why_unreadable(error: ClipError, path: Path) -> str:
    return f"{NOW if is_passing(error) else 'unreadable'}: {str(error).removeprefix(f'{path}: ')}"


def read_clips(path: Path) -> list[Clip] | None:
    """None where there are none."""
    if not path.is_file():
        return None
    try:
        return [read_clip_record(record) for record in read_json(path)]
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
