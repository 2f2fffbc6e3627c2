"""Tables of captions: CSV with commas, tabs or semicolons."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .entries import CAPTION_KEYS, VIDEO_KEYS, Row, plain_name, read_entry
from .listing import is_video

EXPECTED = "expected video,prompt"


def read_table(path: Path, text: str) -> list[Row]:
    """Raises ValueError for a table without a header or a row, and for a row that isn't as the header says."""
    delimiter, columns = _read_header(path, text)
    rows: list[Row] = []
    for number, (line, fields) in enumerate(_records(path, text, delimiter), start=1):
        where = f"{path}, row {number}" + (f" (line {line})" if line != number else "")
        if number > 1 and any(fields):
            rows += _read_record(fields, columns, delimiter, where)
    if not rows:
        raise ValueError(f"{path} names no clip: {EXPECTED} in a row for each")
    return rows


def _read_header(path: Path, text: str) -> tuple[str, list[str]]:
    """The delimiter, and the columns' plain names."""
    first = text.lstrip("\n").partition("\n")[0]
    for delimiter in ",\t;":
        columns = [plain_name(name) for name in _split(first, delimiter)]
        if all(any(key in columns for key in keys) for keys in (VIDEO_KEYS, CAPTION_KEYS)):
            twice = [name for name in (*VIDEO_KEYS, *CAPTION_KEYS) if columns.count(name) > 1]
            if twice:
                raise ValueError(f"{path} has the column {twice[0]} twice")
            return delimiter, columns
    names = [name for name in _split(first, ",") if name]
    if any(is_video(name) for name in re.split(r"[,;\t]", first.replace('"', ""))):
        raise ValueError(f"{path} has no header, its first line is {first[:200]!r}: put video,prompt above it")
    lacking = {"video": VIDEO_KEYS, "prompt": CAPTION_KEYS}
    missing = [name for name, keys in lacking.items() if not any(key in map(plain_name, names) for key in keys)]
    raise ValueError(
        f"{path} lacks the column {' and '.join(missing)}: it has {','.join(names) or 'none'}, {EXPECTED} "
        f"(or {', '.join(VIDEO_KEYS[1:])} and {', '.join(CAPTION_KEYS[1:])})"
    )


def _split(line: str, delimiter: str) -> list[str]:
    return [name.strip() for name in next(csv.reader([line], delimiter=delimiter, skipinitialspace=True), [])]


def _records(path: Path, text: str, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """(the line it begins in, fields) of the header and each row."""
    lines = (line.rstrip(" ") + "\n" for line in text.split("\n"))
    table = csv.reader(lines, delimiter=delimiter, skipinitialspace=True, strict=True)
    line = 1
    try:
        for fields in table:
            if fields:
                _check_lines(path, line, fields, delimiter)
                yield line, [field.strip() for field in fields]
            line = table.line_num + 1
    except csv.Error as error:
        if "field larger" in str(error):
            raise ValueError(f"{path}, after line {line - 1}: malformed CSV ({error})") from None
        inside = f"closes in the middle of a field (line {table.line_num})"
        closing = "is never closed" if "unexpected end" in str(error) else inside
        raise ValueError(
            f"{path}, line {line}: malformed CSV: a quote that opens here {closing}; a quote in quotes is doubled"
        ) from None


def _check_lines(path: Path, line: int, fields: list[str], delimiter: str) -> None:
    """Raises ValueError for a field in quotes that seems to have taken in the next rows."""
    for field in fields:
        for inner in field.split("\n")[1:]:
            if delimiter in inner and any(is_video(part.strip(' "')) for part in inner.split(delimiter)):
                raise ValueError(
                    f"{path}, line {line}: a quote that opens here takes in what looks like a row ({inner[:80]!r}): "
                    "close it before that"
                )


def _read_record(fields: list[str], columns: list[str], delimiter: str, where: str) -> Iterator[Row]:
    if len(fields) != len(columns):
        hint = "put a caption that has one in double quotes" if len(fields) > len(columns) else "each has its place"
        sign = {",": "comma", "\t": "tab", ";": "semicolon"}[delimiter]
        raise ValueError(
            f"{where}: has {len(fields)} fields between {sign}s, expected {len(columns)} ({','.join(columns)}): {hint}"
        )
    entry: dict[str, Any] = {}
    for name, field in zip(columns, fields, strict=True):
        entry.setdefault(name, field)
    video = next(key for key in VIDEO_KEYS if key in entry)
    if not entry[video]:
        raise ValueError(f"{where}: the column {video} is empty")
    return read_entry(entry, where)
