"""How commands speak to their users: one line about what is wrong."""

from __future__ import annotations

import logging
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import zip_longest
from pathlib import Path
from typing import Any, NoReturn

import torch
import yaml
from jsonargparse import ArgumentError, Namespace, auto_cli, capture_parser, get_loader, set_loader
from yaml import YAMLError

from fps_flex import FPSAttention

from .ending import exit_code
from .ranks import speaks
from .refusals import check_known, one_line
from .work import tells_of_a_lost_process, wait_for_the_first

TEXTS = ("--prompt", "--negative_prompt")  # options that are text as it is, and may be empty
SCHEDULE_PART = re.compile(r"--((?:\w+\.)*attention)\.schedule\.(\w+)")

_load_yaml = get_loader("yaml")


class Verbatim(str):
    """Text of a command line that YAML would make nothing of: null, ~, or a # and what follows."""

    __slots__ = ()


yaml.SafeDumper.add_representer(Verbatim, lambda dumper, text: dumper.represent_str(str(text)))


def load_yaml(text: str) -> Any:
    """YAML as jsonargparse reads it, and None for null inside lists and dicts.

    An option below one that can be a string as well (schedule.regimes) gets what was parsed as Python writes it.
    """
    if isinstance(text, Verbatim):
        return str(text)
    try:
        return _none_for_null(_load_yaml(text), inside=False)
    except RecursionError:
        raise YAMLError("a value in it contains itself") from None


def _none_for_null(value: Any, inside: bool = True) -> Any:
    if isinstance(value, list):
        return [_none_for_null(x) for x in value]
    if isinstance(value, dict):
        return {key: _none_for_null(x) for key, x in value.items()}
    return None if inside and value == "None" else value


set_loader("yaml", load_yaml, (YAMLError,))


def run_command(components: Any, args: list[str] | None, lists: Sequence[str] = (), **options: Any) -> None:
    """jsonargparse's auto_cli, which raises whatever is wrong. args: None takes this process's own.

    lists: options that are given once for each of their values.
    """
    options |= {"exit_on_error": False, "allow_abbrev": False}

    def parse(words: list[str]) -> Namespace:
        return capture_parser(lambda: auto_cli(components, args=[], **options)).parse_args(words)

    args = add_to_lists(keep_texts(sys.argv[1:] if args is None else args), lists)
    check_schedule_parts(args, parse)
    check_no_empty(args)
    check_known(args, parse)
    auto_cli(components, args=args, **options)


def keep_texts(args: list[str]) -> list[str]:
    """A command line whose TEXTS stay what they are where YAML would read nothing."""
    kept: list[str] = []
    for word in args:
        option, sign, value = word.partition("=")
        if sign and option in TEXTS and _is_nothing(value):
            kept += [option, Verbatim(f" {value}" if value.startswith("-") else value)]  # "---" would be an option
        else:
            kept.append(Verbatim(word) if kept and kept[-1] in TEXTS and _is_nothing(word) else word)
    return kept


def add_to_lists(args: list[str], lists: Sequence[str]) -> list[str]:
    """A command line whose `lists` get another value each time, in place of another list."""
    parts = [(word, *word.partition("=")) for word in args]
    return [f"{option}+{sign}{value}" if option in lists else word for word, option, sign, value in parts]


def _is_nothing(text: str) -> bool:
    """Whether YAML makes nothing of a text."""
    try:
        return _load_yaml(text) is None
    except (YAMLError, UnicodeError):
        return False


def check_no_empty(args: list[str]) -> None:
    """Raises ValueError for an option with nothing for its value, as an unset variable of the shell leaves it."""
    for word, after in zip_longest(args, args[1:]):
        option, sign, value = word.partition("=")
        empty = not value.strip() if sign else after is not None and not after.strip()
        if option.startswith("--") and empty and option not in TEXTS:
            raise ValueError(f"{option} is empty: give it a value, or leave it out")


def check_schedule_parts(args: list[str], parse: Callable[[list[str]], Namespace]) -> None:
    """Raises ValueError for parts of a schedule beside a preset, named or an option's default: the parser forgets it.

    Where parts change a trained schedule, those that aren't given are None, and no preset is forgotten.

    args: a command line. parse: as the command does.
    """
    args = [word for word in args if not word.startswith("--print_config")]  # which would print and end all
    parts = {i: match.groups() for i, word in enumerate(args) if (match := SCHEDULE_PART.match(word))}
    if not parts:
        return
    values = [i + 1 for i in parts if "=" not in args[i]]
    rest, whole = parse([word for i, word in enumerate(args) if i not in (*parts, *values)]), parse(args)
    for i, (option, _) in parts.items():
        preset = _schedule_of(rest, option)
        given = {part for other, part in parts.values() if other == option}
        schedule = vars(_schedule_of(whole, option))
        if preset is None and any(value is not None for part, value in schedule.items() if part not in given):
            preset = FPSAttention.schedule
        if isinstance(preset, str):
            raise ValueError(
                f"{args[i]} changes a part of {option}.schedule, which is the preset {preset!r}: write out its bounds, "
                "regimes and shift in its place"
            )


def _schedule_of(parsed: Namespace, option: str) -> Namespace | str | None:
    """option: an attention. None where neither is said."""
    attention = parsed.get(parsed.get("subcommand") or "", parsed).get(option)
    return attention and attention.schedule


@contextmanager
def cli_errors(interrupted: str) -> Iterator[None]:
    """A command's work: a user's mistake ends it in one line with exit code 2, Ctrl-C with 130 and `interrupted`.

    So do other signals that it heeds, with their own exit codes. A GPU whose memory is full ends it in one line too, as
    does the end of a process that it computes with, with exit code 1. Of several processes the first says it; the
    others' own mistakes are said after a while.
    """
    logging.basicConfig(format="%(message)s")
    logging.getLogger("fps_flex").setLevel(logging.INFO)
    try:
        yield
    except (ValueError, ArgumentError) as error:
        wait_for_the_first()
        stop(one_line(error), code=2)
    except torch.OutOfMemoryError as error:
        stop(one_line(error), code=1)
    except RuntimeError as error:
        if not tells_of_a_lost_process(str(error)):
            raise
        wait_for_the_first()
        stop("another process of this run is gone: unless it was killed or stopped, its own line says why", code=1)
    except KeyboardInterrupt as interrupt:
        if speaks():
            print(f"error: {interrupted}", file=sys.stderr)
        sys.exit(exit_code(interrupt))


def stop(message: str, code: int) -> NoReturn:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(code)


@contextmanager
def writable(*folders: Path, option: str = "--out") -> Iterator[None]:
    """Folders to write into, made where they aren't there; what a ValueError leaves empty of them goes again.

    Raises ValueError as `check_writable`.
    """
    made = {path for folder in folders for path in (folder, *folder.parents) if not os.path.exists(path)}
    try:
        for folder in folders:
            check_writable(folder, option)
        yield
    except ValueError:
        for path in sorted(made, key=lambda path: len(path.parts), reverse=True):
            with suppress(OSError):  # it isn't empty, or another process has removed it
                path.rmdir()
        raise


def check_writable(folder: Path, option: str) -> None:
    """Make a folder. Raises ValueError when files can't be written into it; option: what names another."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".writable-{os.getpid()}"
        probe.touch()
        probe.unlink(missing_ok=True)  # another machine's process may have this one's number
    except OSError as error:
        raise ValueError(f"{folder} can't be written ({error.strerror}): choose another {option}") from None
