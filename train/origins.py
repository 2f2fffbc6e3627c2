"""What a clip was cut from, by the name that PySceneDetect, FFmpeg and people's scripts gave it."""

from __future__ import annotations

import os
import re
from typing import Literal, NamedTuple

NUMBER = r"\d[\d.:]*"
WORDS = "scene|subclip|clip|part|pt|shot|segment|seg|chunk|cut|split|piece|section|take|c"

# what train.prepare writes: the source's key, a tag (and a caption's), milliseconds
PREPARED = re.compile(r"(?P<base>[0-9a-f]{16})(?:-[0-9a-f]{8}){1,2}-\d{8,}")
# film-Scene-001
SCENE = re.compile(r"(?P<base>.+)-Scene-\d+")
# film_clip3, film part 02, film.shot-4_of_9
PIECE = re.compile(
    rf"(?P<base>.+?)[ _.-]+(?:{WORDS})[ _.-]*{NUMBER}(?:[ _.-]*(?:to|of)?[ _.-]*{NUMBER})?", re.IGNORECASE
)
# film_0_81, film_41to181, film-0:00:10.000-0:00:15.000, filmSUB12_15; times or frames, the first less than the second
RANGE = re.compile(rf"(?P<base>.+?)(?:[ _.-]+|SUB)(?P<first>{NUMBER})s?(?:[_-]*to[_-]*|[_~-]+)(?P<last>{NUMBER})s?")
# film.0001, film_0001, film_1_of_9, film (1)
NUMBERED = re.compile(r"(?P<base>.+?)(?:[ _.-]+(?:of[ _.-]+)?\d+|\s*\(\d+\))+")

# names of these words and numbers tell nothing of a source: clip_0001, IMG_0001
PLAIN_WORDS = """
video videos vid clip clips scene scenes subclip part pt shot seg segment chunk cut split piece section take file frame
frames image img pic photo sample output out input test train val valid validation data dataset item my the new final
raw mvi dsc dscn dscf dji gopr gh gx pxl mov vlc rec record recording screen v s c
"""
PLAIN = frozenset(PLAIN_WORDS.split())


class Origin(NamedTuple):
    """video: what a clip was cut from; itself where it wasn't cut. cut: whether its name says that it was.

    maybe: its name only ends in a number, as those of a collection do.
    """

    video: str
    itself: str
    cut: Literal["surely", "maybe", ""]


def find_origin(video: str) -> Origin:
    """Folders don't count, but for names that tell nothing without."""
    whole = os.path.splitext(os.path.normpath(video))[0]
    folder, stem = os.path.split(whole)
    path = whole.casefold()
    if stem.isdigit():
        return Origin(path, path, "")
    if match := PREPARED.fullmatch(stem):
        return Origin(match["base"], path, "surely")
    base, cut = stem, ""
    while match := SCENE.fullmatch(base) or _piece(base) or _range(base):
        base, cut = match["base"], "maybe" if match.re is RANGE and _tells_nothing(match["base"]) else "surely"
    if not cut and (match := NUMBERED.fullmatch(base)) and not _tells_nothing(match["base"]):
        base, cut = match["base"], "maybe"
    name = os.path.join(folder, base) if _tells_nothing(base) else base
    return Origin(name.casefold(), path, cut)


def _piece(name: str) -> re.Match[str] | None:
    """Not clip_part_0001, which is as good as a number."""
    match = PIECE.fullmatch(name)
    return match if match and re.search(r"\d", match["base"]) or match and not _tells_nothing(match["base"]) else None


def _range(name: str) -> re.Match[str] | None:
    match = RANGE.fullmatch(name)
    return match if match and _numbers(match["first"]) < _numbers(match["last"]) else None


def _numbers(text: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", text)]


def _tells_nothing(name: str) -> bool:
    return all(not word or word in PLAIN for word in re.split(r"[\W\d_]+", name.casefold()))
