"""What the parser says is wrong, in one line; and what it doesn't say."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentError, Namespace, get_loader

NOISE = (
    "Does not validate", "Subtypes:", "Errors:", "Expected a path but",
    "Given value type:", "Given value: Namespace", "Given value: (Namespace", "Given value: NestedArg",
)  # fmt: skip
NULL = re.compile("Expected (a )?<class 'NoneType'>")
TEXT = "Expected a <class 'str'>"
EXPECTED = re.compile(r"(Expected (?:(?!Got value|: ).)+)(: .*)?$")  # of the whole value
OF_A_PART = "Problem with given class_path"  # and of no other type, since its options are the matter
UNKNOWN = re.compile("is not accepted|does not accept option")

_load_yaml = get_loader("yaml")  # the parser's own


def one_line(error: BaseException) -> str:
    """An error's message in one line.

    Without the parser's account of how it tried each type that an option can have, and, where a loader's process
    failed, without that process's traceback.
    """
    text = str(error) or type(error).__name__
    if "Original Traceback" in text:
        text = text.strip().splitlines()[-1].partition(": ")[2] or text.strip().splitlines()[-1]
    lines = [line.strip().removeprefix("- ") for line in text.splitlines()]
    lines = [line for line in lines if line and not line.startswith(NOISE)]
    kinds = {line for line in lines if line.startswith("Expected") and not NULL.fullmatch(line)}
    lines = [line for line in lines if line != TEXT or kinds == {TEXT}]  # beside another type it is a name for that
    line = "; ".join(_join_null(lines)).replace(":;", ":")
    line = line.replace("Expected a dot import path string", "expected its options")
    line = re.sub(r"Problem with given class_path '(?:\w+\.)*(\w+)':", r"in \1:", line)
    return re.sub(r'": (?:in \w+: )?Parser key "', ".", line)


def _join_null(lines: list[str]) -> list[str]:
    """`or null` behind the last of the other types that a value may have, or beside what is wrong with a part of it."""
    joined: list[str] = []
    for line in lines:
        last = joined[-1] if joined else ""
        if not NULL.fullmatch(line):
            joined.append(line)
        elif EXPECTED.match(last):
            joined[-1] = EXPECTED.sub(r"\1 or null\2", last)
        elif not any(line.startswith(OF_A_PART) for line in joined):
            joined.append("or null")
    return joined


def check_known(args: list[str], parse: Callable[[list[str]], Namespace]) -> None:
    """Raises ValueError for an option that there isn't, with an empty mapping for its value.

    The parser drops that in silence, and refuses null: each empty mapping of a file or of the command line is tried as
    null. args: a command line. parse: as the command does.
    """
    for i, word in enumerate(args):
        option, sign, value = word.partition("=")
        if not option.startswith("--"):
            continue
        after = args[i + 1 :] if sign else args[i + 2 :]
        for tried in _with_nulls(_read_mapping(option, value if sign else "".join(args[i + 1 : i + 2]))):
            words = [*args[:i], f"{option}={json.dumps(tried, default=str)}", *after]
            try:
                parse([word for word in words if not word.startswith("--print_config")])  # which would end all
            except (ArgumentError, ValueError) as error:
                if UNKNOWN.search(str(error)):
                    raise ValueError(one_line(error)) from None


def _read_mapping(option: str, value: str) -> Any:
    """Of a file of options, or of the value itself; None for what can't be read, or has no mapping in braces."""
    try:
        is_file = os.path.isfile(value) and (option == "--config" or value.endswith((".yaml", ".yml")))
        text = Path(value).read_text(encoding="utf-8") if is_file else value
        value = _load_yaml(text) if "{" in text else None
        json.dumps(value, default=str)  # raises ValueError where it contains itself
        return value
    except (OSError, ValueError, yaml.YAMLError):
        return None


def _with_nulls(value: Any) -> Iterator[Any]:
    """As it is, but for one of the empty mappings in it each time, in whose place is None."""
    if isinstance(value, dict):
        for key, part in value.items():
            yield from ({**value, key: other} for other in ([None] if part == {} else _with_nulls(part)))
    elif isinstance(value, list):
        for i, part in enumerate(value):
            yield from ([*value[:i], other, *value[i + 1 :]] for other in _with_nulls(part))
