"""Prompts: read from a file, each once, and the names of their videos."""

from __future__ import annotations

import hashlib
import logging
import unicodedata
from pathlib import Path

from fps_flex.checks import show
from train.common.ranks import speaks
from train.texts import read_utf8

logger = logging.getLogger(__name__)

WORDS = 80  # bytes of a name; with hash, seed and what is written aside it stays far below the 255 of file systems
MARK = "\ufeff"  # byte-order mark, also where files were joined


def read_lines(path: Path, each: str) -> list[str]:
    """The lines of a text file, which end at \\n or \\r\\n alone, less blanks around them; empty ones too.

    Other separators, such as U+2028, stay inside a line. each: what a line is, for the errors.
    Raises ValueError for what can't be read or isn't UTF-8, and for a \\r that ends no line.
    """
    try:
        lines = read_utf8(path).replace("\r\n", "\n").split("\n")
    except ValueError as error:
        told = str(error) if "expected" in str(error) else f"{error}; expected a text file with {each} a line"
        raise ValueError(told) from None
    lone = next((number for number, line in enumerate(lines, start=1) if "\r" in line), None)
    if lone is not None:
        raise ValueError(f"{path}, line {lone}: holds a carriage return, expected lines that end in \\n or \\r\\n")
    return [_clean(line) for line in lines]


def _clean(line: str) -> str:
    return line.strip().strip(MARK).strip()


def read_prompts(prompt: str | None, prompts: Path | None) -> list[str]:
    """Each prompt once, in the file's order; lines that repeat one are named.

    Raises ValueError unless exactly one is given and it holds a prompt.
    """
    if (prompt is None) == (prompts is None):
        raise ValueError("expected either --prompt TEXT or --prompts FILE")
    if prompt is not None:
        return [_clean(prompt)]
    lines = read_lines(prompts, "a prompt")
    first: dict[str, int] = {}
    again = [(number, line) for number, line in enumerate(lines, start=1)
             if line and first.setdefault(line, number) != number]  # fmt: skip
    if not first:
        raise ValueError(f"{prompts} holds no prompt: expected one a line")
    if again and speaks():
        number, line = again[0]
        logger.warning(
            "%s: lines that repeat an earlier prompt: %d, the first of them line %d (%s, as line %d); each prompt is "
            "made once: --count makes more videos of each",
            prompts, len(again), number, show(line), first[line],
        )  # fmt: skip
    return list(first)


def file_name(prompt: str, seed: int) -> str:
    """A file name, less its suffix, that depends on prompt and seed alone and differs for each.

    The prompt's letters and digits, of whatever script, in lower case (Unicode's NFC), cut to WORDS bytes; then a hash
    of the whole prompt, so that no two prompts share a name where a file system ignores case; then the seed. Such a
    name has no character that is reserved anywhere and is none of Windows' own.
    """
    plain = unicodedata.normalize("NFC", prompt.lower())
    kept = "".join(x if unicodedata.category(x)[0] in "LMN" else " " for x in plain)
    words = "-".join(word for word in kept.split() if any(map(str.isalnum, word)))
    short = words.encode()[:WORDS].decode(errors="ignore").rstrip("-")
    digest = hashlib.sha256(prompt.encode(errors="surrogatepass")).hexdigest()[:12]
    return "-".join(filter(None, (short, digest, f"seed{seed}")))
