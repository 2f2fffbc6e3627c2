"""What was scored before: a line of JSON for each video, appended as soon as it is known."""

from __future__ import annotations

import hashlib
import json
import logging
from pathlib import Path
from typing import Any

from train.whole import write_text

log = logging.getLogger("fps_flex")


class Cache:
    """Values of videos in one dimension, by the video's bytes and name, and by what scored it.

    The name counts because it says the prompt, which most dimensions compare the video with. A line cut short, by a
    process that was killed, is left out and said.
    """

    def __init__(self, path: Path, scorer: dict[str, Any]):
        self._path, self._scorer = path, hash_text(json.dumps(scorer, sort_keys=True))
        self._known: dict[tuple[str, str], tuple[float | None, float]] = {}
        whole = []
        text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
        lines = text.splitlines()
        for line in lines:
            try:
                said = json.loads(line)
                if said["scorer"] == self._scorer:
                    self._known[said["name"], said["sha256"]] = said["value"], said["weight"]
                whole.append(line)
            except (ValueError, TypeError, KeyError):
                continue
        broken = len(lines) - len(whole)
        if broken:
            log.warning("%s: %s of %s lines can't be read: their videos are scored again", path, broken, len(lines))
        if broken or not text.endswith("\n"):
            write_text(path, "".join(f"{line}\n" for line in whole))

    def find(self, name: str, sha256: str) -> tuple[float | None, float] | None:
        """Value and weight in the mean; a None value counts for nothing. None when it isn't known."""
        return self._known.get((name, sha256))

    def add(self, name: str, sha256: str, value: float | None, weight: float) -> None:
        self._known[name, sha256] = value, weight
        said = {"name": name, "sha256": sha256, "value": value, "weight": weight, "scorer": self._scorer}
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(said) + "\n")


def hash_text(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def hash_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
