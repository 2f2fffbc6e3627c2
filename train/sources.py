"""The captions of a folder of clips, in the formats that fine-tuners of Wan have."""

from __future__ import annotations

import json
import logging
import os
import unicodedata
from pathlib import Path
from typing import Any

from fps_flex.checks import some

from .common.ranks import speaks
from .entries import Row, read_entry
from .listing import is_video, list_files
from .tables import read_table
from .texts import find_prompts, read_lists, read_text, read_texts

logger = logging.getLogger(__name__)

FORMATS = "metadata.csv with the columns video,prompt, metadata.jsonl, videos2caption.json or a .txt beside each video"


def read_rows(folder: Path) -> list[Row]:
    """The captions of a folder, by the first there is of the FORMATS; a video may have several.

    The order is the file's own; that of videos with a .txt each is their paths'. Raises ValueError for no folder, none
    of the formats, no clip, and a malformed file.
    """
    if folder.is_file():
        raise ValueError(f"{folder} is a file, expected a folder of clips with {FORMATS}: give the folder it is in")
    if not folder.is_dir():
        raise ValueError(f"no folder {folder}: expected a folder of clips with {FORMATS}")
    file, rows = _find_file(folder), None
    if file is None:
        rows = read_texts(folder)
        file = None if rows else _only(folder, "csv") or _only(folder, "tsv")
    if file is not None:
        rows = [row._replace(video=_find_video(folder, row.video)) for row in _read_file(file)]
        if speaks():
            _tell_unread(folder, file, rows)
    if not rows:
        raise ValueError(f"no captions in {folder}: expected {FORMATS}")
    rows = _without_test(folder, rows)
    empty = sum(not row.prompt for row in rows)
    if empty and speaks():
        logger.warning("%d of the %d captions in %s are empty", empty, len(rows), folder)
    return rows


def _without_test(folder: Path, rows: list[Row]) -> list[Row]:
    """What is for a test is neither trained on nor validated with."""
    kept = [row for row in rows if row.split != "test"]
    if not kept:
        raise ValueError(f"all {len(rows)} captions in {folder} are of the split test: expected some of train")
    if len(kept) < len(rows) and speaks():
        logger.warning("captions in %s of the split test, which aren't read: %d", folder, len(rows) - len(kept))
    return kept


def _find_file(folder: Path) -> Path | None:
    """The first file of captions that there is; None where each video may have its own."""
    return next(iter(_find_files(folder)), None)


def _find_files(folder: Path) -> list[Path]:
    tables = [folder / name for name in ("metadata.csv", "metadata.tsv") if (folder / name).is_file()]
    lines = [folder / "metadata.jsonl"] if (folder / "metadata.jsonl").is_file() else []
    if not tables and not lines:
        lines = [file for file in [_only(folder, "jsonl")] if file]
    others = [folder / name for name in ("videos2caption.json", "metadata.json") if (folder / name).is_file()]
    lists = [folder / "videos.txt"] if find_prompts(folder) and (folder / "videos.txt").is_file() else []
    return [*tables, *lines, *others, *lists]


def _only(folder: Path, suffix: str) -> Path | None:
    """The only file of this kind. Raises ValueError where it isn't clear which."""
    files = sorted(path for path in folder.glob(f"*.{suffix}") if path.is_file() and not path.name.startswith("."))
    if len(files) > 1:
        kind = "JSONL" if suffix == "jsonl" else suffix.upper()
        names = some([path.name for path in files], 10)
        raise ValueError(f"{folder} has {len(files)} {kind} files ({names}): expected one, or metadata.{suffix}")
    return files[0] if files else None


def _read_file(path: Path) -> list[Row]:
    if path.suffix == ".jsonl":
        return _read_jsonl(path)
    if path.suffix == ".json":
        return _read_json(path)
    if path.suffix == ".txt":
        return read_lists(path, find_prompts(path.parent))
    return read_table(path, read_text(path))


def _read_jsonl(path: Path) -> list[Row]:
    rows: list[Row] = []
    # splitlines() would also split at separators that JSON allows in a string
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if line.strip():
            rows += read_entry(_parse(line, path, number), f"{path}, line {number}")
    if not rows:
        raise ValueError(f"{path} names no clip: expected a line with a JSON object for each")
    return rows


def _read_json(path: Path) -> list[Row]:
    """FastVideo's list of {path, cap}."""
    entries = _parse(read_text(path), path)
    if not isinstance(entries, list) or not entries:
        raise ValueError(f"{path} names no clip: expected a list with {{path, cap}} for each")
    return [row for i, entry in enumerate(entries, start=1) for row in read_entry(entry, f"{path}, entry {i}")]


def _parse(text: str, path: Path, line: int | None = None) -> Any:
    """line: where the text is in the file; None for all of it."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        where = f"{path}, line {line or error.lineno}"
        raise ValueError(f"{where}: malformed JSON ({error.msg} at column {error.colno})") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}, line {line or 1}: malformed JSON ({error})") from None


def _find_video(folder: Path, video: str) -> str:
    """A video under the name that it has in the folder, where that differs: in videos/, or written as Windows does."""
    if os.path.exists(os.path.join(folder, video)):
        return video
    plain = [name for form in ("NFC", "NFD") for name in (unicodedata.normalize(form, video), video)]
    slashed = [name.replace("\\", "/") for name in plain]
    for name in (*plain, *slashed):
        for found in (name, f"videos/{name}"):
            if os.path.exists(folder / found):
                return Path(found).as_posix()
    return video


def _tell_unread(folder: Path, file: Path, rows: list[Row]) -> None:
    """What of the folder isn't read: other files of captions, and videos that this one doesn't name."""
    others = [other.name for other in _find_files(folder) if other != file]
    if others:
        logger.warning("captions are read from %s; %s beside it isn't read", file, " and ".join(others))
    here = folder.absolute()
    inside = (os.path.relpath(row.video, here) if os.path.isabs(row.video) else row.video for row in rows)
    named = set(map(os.path.normpath, inside))
    unnamed = sum(is_video(path) and os.path.normpath(path) not in named for path in list_files(folder))
    if unnamed:
        logger.warning("videos in %s that %s doesn't name, and that aren't read: %d", folder, file.name, unnamed)
