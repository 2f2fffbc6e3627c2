"""What a data set is prepared with: checked before any work, and compared with what an earlier run was told."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, get_args

from fps_flex.checks import require
from fps_flex.wan.codecs import Codec, TextEncoder

from ..index import comparable
from .judge import Limits
from .records import read_json, read_source
from .scan import make_key, stamp
from .scorers import Scorer
from .standardise import list_buckets

Stage = Literal["scan", "cut", "filter", "standardise", "encode"]
CONFIG = "config.json"
MOST_PIXELS = 2**30  # of a clip: 81 frames of 4K are two thirds of that
FREE = ("source", "limits", "scorers", "val_share", "batch_size")  # what only finds, judges and packs


@dataclass(frozen=True)
class Settings:
    """All that train.prepare was told; __main__.py says what each is.

    Raises ValueError for what is out of range, and for folders that can't be what they should.
    """

    source: Path
    out: Path
    codec: Codec
    text: TextEncoder
    stages: Sequence[Stage]
    frames: int
    fps: float
    height: int
    width: int
    limits: Limits
    scorers: Sequence[Scorer]
    val_share: float
    batch_size: int

    def __post_init__(self) -> None:
        for name in ("frames", "height", "width", "batch_size"):
            require(name, getattr(self, name), least=1)
        require("fps", self.fps, above=0, most=1000)
        pixels = self.frames * self.height * self.width
        if pixels > MOST_PIXELS:
            shape = f"{self.frames} frames of {self.height}x{self.width}"
            raise ValueError(f"clips of {shape} have {pixels:,} pixels, expected at most {MOST_PIXELS:,}")
        require("val_share", self.val_share, least=0, below=1)
        if not self.stages:
            raise ValueError(f"stages is [], expected some of {', '.join(get_args(Stage))}")
        names = [scorer.name for scorer in self.scorers]
        if len(set(names)) < len(names):
            raise ValueError(f"scorers are {', '.join(names)}, expected each once")
        self.buckets  # noqa: B018 - sizes that the codec can't take are said at once
        self._check_folders()

    @cached_property
    def buckets(self) -> list[tuple[int, int]]:
        """Rows and columns of the sizes that clips get. Raises ValueError when the codec can't take one."""
        return list_buckets((self.frames, self.height, self.width), self.codec)

    def check_models(self) -> None:
        """Each is loaded once and let go of: a broken one is better found now than after hours. Raises ValueError."""
        encoders = (self.codec, self.text) if "encode" in self.stages else ()
        for model in (*encoders, *(self.scorers if "filter" in self.stages else ())):
            model.load()
            model.unload()

    def describe(self) -> dict[str, Any]:
        """As plain data, with what tells the encoders' files from others."""
        record = {name: getattr(self, name) for name in ("frames", "fps", "height", "width", "val_share", "batch_size")}
        record |= {"source": str(self.source.resolve()), "limits": asdict(self.limits)}
        record |= {"codec": self.codec.spec(), "text": self.text.spec(), "scorers": [x.spec() for x in self.scorers]}
        record["fingerprints"] = {"codec": self.codec.fingerprint(), "text": self.text.fingerprint()}
        return json.loads(json.dumps(record))

    def _check_folders(self) -> None:
        if self.source.is_file():
            raise ValueError(f"--source {self.source} is a file, expected a folder: give the one that it is in")
        if not self.source.is_dir():
            raise ValueError(f"no folder {self.source}: expected videos with captions")
        if self.out.resolve().is_relative_to(self.source.resolve()):
            raise ValueError(f"--out {self.out} lies in --source {self.source}: choose one that isn't among the videos")
        if self.out.exists() and not self.out.is_dir():
            raise ValueError(f"--out {self.out} is a file, expected a folder")


def as_folder(option: str, given: str) -> Path:
    """Raises ValueError for no name."""
    if not given.strip() or "\0" in given:
        raise ValueError(f"{option} is {given!r}, expected a folder")
    return Path(given).expanduser()


def read_settings(out: Path) -> dict[str, Any] | None:
    """What an earlier run was told; None where there was none. Raises ValueError when it can't be read."""
    if not (out / CONFIG).is_file():
        return None
    try:
        before = read_json(out / CONFIG)
        if isinstance(before, dict):
            return before
        reason = "it holds no settings"
    except (OSError, ValueError) as error:
        reason = error
    raise ValueError(f"{out / CONFIG} can't be read ({reason}): choose another --out")


def compare(out: Path, before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """What this run changes of an earlier one's settings, a line each: kept scores are judged anew by it.

    Raises ValueError where what was made would be other numbers.
    """
    changed = [name for name in now if _as_text(name, before.get(name)) != _as_text(name, now[name])]
    fixed = [name for name in changed if name not in FREE]
    if fixed:
        other = [f"{name} {json.dumps(before.get(name))} (now {json.dumps(now[name])})" for name in fixed]
        raise ValueError(f"{out} was prepared with {', '.join(other)}: choose another --out")
    return [line for name in changed for line in _list_changes(name, before.get(name), now[name])]


def check_moved(source: Path, videos: Iterable[str], out: Path) -> None:
    """Raises ValueError where the folder holds the data of other videos, and none of these."""
    records = out / "work" / "scan"
    files = {video: records / f"{make_key(video)}.json" for video in videos}
    known = {video: read_source(path) for video, path in files.items() if path.is_file()}
    same = any(before.bytes == stamp(source / video)[1] for video, before in known.items())
    if not same and any(records.glob("*.json")):
        raise ValueError(f"{out} was prepared from other videos, of which {source} has none: choose another --out")


def scorers_differ(before: dict[str, Any], now: dict[str, Any]) -> bool:
    """Whether clips were measured by others; their minima don't matter."""
    return _identities(before.get("scorers")) != _identities(now["scorers"])


def _as_text(name: str, value: Any) -> str:
    encoder = name in ("codec", "text") and isinstance(value, dict)
    return comparable(value) if encoder else json.dumps(value, sort_keys=True)


def _list_changes(name: str, before: Any, now: Any) -> list[str]:
    if isinstance(before, dict) and isinstance(now, dict):
        keys = [key for key in now if before.get(key) != now[key]]
        return [line for key in keys for line in _list_changes(f"{name}.{key}", before.get(key), now[key])]
    return [f"changed {name} {json.dumps(before)} -> {json.dumps(now)}"]


def _identities(specs: Any) -> str:
    """Of scorers, without their minima; what is no list of them, as it is."""
    try:
        return json.dumps([{**spec, "options": {**spec["options"], "minimum": None}} for spec in specs or []])
    except (TypeError, KeyError):
        return json.dumps(specs)
