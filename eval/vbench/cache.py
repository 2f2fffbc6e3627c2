"""What was scored before: a line of JSON for each video, appended as soon as it is known."""

from __future__ import annotations

import json
import logging
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from train.common.atomic import digest_content

from ..reading import NoFile, parse, read_bytes, write_plainly
from .values import to_value, to_weight

log = logging.getLogger("fps_flex")


@dataclass(frozen=True)
class Line:
    """What is kept of a video. scorer: a hash of all that its value depends on besides the video."""

    name: str
    sha256: str
    value: float | None
    weight: float
    scorer: str


class Cache:
    """Values of videos in one dimension, by the video's bytes and name, and by what scored it.

    The name counts because it says the prompt, which most dimensions compare the video with. A line cut short, by a
    process that was killed, is left out and said.
    """

    def __init__(self, folder: Path, dimension: str, scorer: dict[str, Any]):
        """Raises ValueError where there is something else in the file's place."""
        self._path, self._dimension = folder / f"{dimension}.jsonl", dimension
        self._scorer = digest_content(json.dumps(scorer, sort_keys=True))
        self._known: dict[tuple[str, str], tuple[float | None, float]] = {}
        try:
            data = read_bytes(self._path)
        except NoFile:
            return
        lines = data.splitlines()
        whole = [line for line in lines if self._read(line)]
        if broken := len(lines) - len(whole):
            told = f"{broken} of {len(lines)} lines can't be read: their videos are scored again"
            log.warning("%s: %s", self._path, told)
        if broken or not data.endswith(b"\n"):
            write_plainly(self._path, "".join(f"{line.decode()}\n" for line in whole))

    def _read(self, line: bytes) -> bool:
        """Whether a line is whole; it is known from now on, where it is of this scorer."""
        try:
            entry = parse(Line, line)
            if entry.value is not None:
                to_value(self._dimension, entry.value)
                to_weight(entry.weight)
        except ValueError:
            return False
        if entry.scorer == self._scorer:
            self._known[entry.name, entry.sha256] = entry.value, entry.weight
        return True

    def find(self, name: str, sha256: str) -> tuple[float | None, float] | None:
        """Value and weight in the mean; a None value counts for nothing. None when it isn't known."""
        return self._known.get((name, sha256))

    def add(self, name: str, sha256: str, value: float | None, weight: float) -> None:
        self._known[name, sha256] = value, weight
        entry = asdict(Line(name, sha256, value, weight, self._scorer))
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")
