"""What is said of clips that are left out: the first by name and reason, of the rest how many, and where all are."""

from __future__ import annotations

import logging
import os
import re
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from .common.atomic import write_text
from .common.ranks import speaks

NAMED = 20
KINDS = 8


class LeftOut(NamedTuple):
    path: Path
    reason: str

    def __str__(self) -> str:
        """Bytes of a name that are no UTF-8 as \\xff."""
        return os.fsencode(f"{self.path}: {self.reason}").decode(errors="backslashreplace")


def tell_left_out(logger: logging.Logger, clips: list[LeftOut], total: int, folder: Path, file: Path | None) -> None:
    """total: clips that there are in the folder. file: where all are listed that are too many to be said."""
    if not clips or not speaks():
        return
    for clip in clips[:NAMED]:
        logger.warning("left out a clip: %s", clip)
    rest = clips[NAMED:]
    if rest:
        kinds = Counter(_kind(clip.reason) for clip in rest).most_common()
        parts = [f"{count} of them: {kind}" for kind, count in kinds[:KINDS]]
        others = sum(count for _, count in kinds[KINDS:])
        parts += [f"{others} for other reasons"] if others else []
        logger.warning("left out %d more clips%s; %s", len(rest), _write(file, clips), "; ".join(parts))
    logger.warning("left out %d of the %d clips in %s", len(clips), total, folder)


def _kind(reason: str) -> str:
    """A reason without the number that differs from clip to clip."""
    return re.sub(r"\d[\d.]*", "...", reason, count=1)


def _write(file: Path | None, clips: list[LeftOut]) -> str:
    try:
        if file is not None:
            write_text(file, "".join(f"{clip}\n" for clip in clips))
            return f", all are listed in {file}"
    except (OSError, UnicodeEncodeError):
        pass  # it is only told less
    return ""
