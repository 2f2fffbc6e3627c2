"""Files as users hand them over: JSON, alone or in a zip, in the shape that is expected; or a line of what is wrong."""

from __future__ import annotations

import json
import stat
import zipfile
from codecs import BOM_UTF8
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from io import BytesIO
from pathlib import Path
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from fps_flex.checks import is_real, is_whole, show
from train.common import atomic

LARGEST = 1 << 28  # bytes of a file, and of all that a zip holds: ten times what VBench writes
DEEPEST = 50  # lists and objects in each other


class NoFile(ValueError):
    """There is none."""


def read_json(path: Path, kind: Any = Any) -> Any:
    """As `shape` has it. Raises NoFile, and ValueError for what can't be read or isn't such JSON."""
    return shape("it", kind, parse_json(str(path), read_bytes(path)))


def read_bytes(path: Path) -> bytes:
    """Raises NoFile, and ValueError for a folder, a device, a file that may not be read, and one too large."""
    try:
        about = path.stat()
        if not stat.S_ISREG(about.st_mode):
            raise ValueError(f"{path} is a {'folder' if stat.S_ISDIR(about.st_mode) else 'device'}, expected a file")
        _check_size(str(path), about.st_size)
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise NoFile(f"there is no file {path}") from None
    except OSError as error:
        raise ValueError(f"{path} can't be read ({error.strerror or error})") from None


def parse_json(name: str, data: bytes) -> Any:
    """Raises ValueError for what isn't JSON in UTF-8, has a key twice, or text that no file could hold."""
    try:
        text = data.removeprefix(BOM_UTF8).decode()
        value = json.loads(text, object_pairs_hook=_refuse_twins)
        if "\\u" in text:
            json.dumps(value, ensure_ascii=False).encode()  # half of a surrogate pair can't be
        if not _is_shallow(value, DEEPEST):
            raise RecursionError
        return value
    except RecursionError:
        raise ValueError(f"{name} can't be read as JSON: it is nested too deeply") from None
    except ValueError as error:
        raise ValueError(f"{name} can't be read as JSON: {error}") from None


def parse(kind: Any, data: bytes, name: str = "it") -> Any:
    """JSON as `shape` has it. Raises ValueError."""
    return shape(name, kind, parse_json(name, data))


def _refuse_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    unique = dict(pairs)
    if len(unique) < len(pairs):
        ((key, times),) = Counter(key for key, _ in pairs).most_common(1)
        raise ValueError(f"it has {show(key)} {times} times")
    return unique


def _is_shallow(value: Any, levels: int) -> bool:
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return levels > 0 and all(_is_shallow(part, levels - 1) for part in parts if isinstance(part, (dict, list)))


def plain(text: str) -> str:
    """In one line that any terminal can show: names of files may hold anything."""
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text)


def is_zip(data: bytes) -> bool:
    """Or starts like one, and is damaged."""
    return data.startswith(b"PK") or zipfile.is_zipfile(BytesIO(data))


def open_zip(name: str, data: bytes) -> zipfile.ZipFile:
    """Raises ValueError for one that is damaged, or holds too much."""
    with _unpacking(name):
        packed = zipfile.ZipFile(BytesIO(data))
    _check_size(name, sum(info.file_size for info in packed.infolist()))
    return packed


def read_zipped(packed: zipfile.ZipFile, member: zipfile.ZipInfo, name: str = "it") -> bytes:
    """Raises ValueError for what is damaged, packed in an unknown way, or needs a password."""
    if member.flag_bits & 1:
        raise ValueError(f"{name} needs a password: give it without one")
    with _unpacking(name):
        return packed.read(member)


@contextmanager
def _unpacking(name: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # zipfile and its decoders raise a dozen kinds for what is wrong with a file
        raise ValueError(plain(f"{name} can't be unpacked ({error or type(error).__name__})")) from None


def _check_size(name: str, size: int) -> None:
    if size > LARGEST:
        raise ValueError(f"{name} holds {size:,} bytes, expected at most {LARGEST:,}")


def shape(name: str, kind: Any, value: Any) -> Any:
    """JSON as an instance of a dataclass, or of a type that such a field has. Raises ValueError for another shape."""
    origin, parts = get_origin(kind), get_args(kind)
    if kind is Any:
        return value
    if is_dataclass(kind):
        return _shape_fields(name, kind, value)
    if origin in (Union, UnionType):
        return None if value is None else shape(name, next(part for part in parts if part is not type(None)), value)
    if origin in (tuple, list) and isinstance(value, list):
        return origin(shape(f"{name}[{i}]", parts[0], x) for i, x in enumerate(value))
    if origin is dict and isinstance(value, dict):
        return {key: shape(f"{name}.{key}", parts[1], x) for key, x in value.items()}
    if kind is int and is_whole(value) or kind is float and is_real(value):
        return value
    if kind in (str, bool, Path) and isinstance(value, kind):
        return value
    expected = {"tuple": "list", "str": "text"}.get((origin or kind).__name__, (origin or kind).__name__)
    raise ValueError(f"{name} is {show(value)}, expected a {expected}")


def _shape_fields(name: str, kind: type, value: Any) -> Any:
    if not isinstance(value, dict):
        raise ValueError(f"{name} is {show(value)}, expected an object with {', '.join(x.name for x in fields(kind))}")
    hints = _hints(kind)
    needed = [x.name for x in fields(kind) if x.default is MISSING and x.default_factory is MISSING]
    lacking, unknown = [x for x in needed if x not in value], [x for x in value if x not in hints]
    if lacking or unknown:
        raise ValueError(f"{name} {'lacks' if lacking else 'has an unknown'} {', '.join(lacking or unknown)}")
    return kind(**{key: shape(f"{name}.{key}", hints[key], x) for key, x in value.items()})


_hints = cache(get_type_hints)


def write_json(path: Path, value: Any) -> None:
    """As all three, whole or not at all, in a folder that is made where there is none. Raises ValueError otherwise."""
    with _writing(path):
        atomic.write_json(path, value)


def write_plainly(path: Path, content: str | bytes) -> None:
    with _writing(path), atomic.beside(path) as temporary:
        temporary.write_bytes(content if isinstance(content, bytes) else content.encode())


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Raises ValueError where it can't be written, or is something else than a file."""
    try:
        if path.exists() and not path.is_file():
            raise ValueError(f"{path} is a {'folder' if path.is_dir() else 'device'}, expected a file to write")
        path.parent.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        raise ValueError(f"{path} can't be written ({error.strerror or error})") from None
