"""Commands as their users run them, and what they say of a mistake."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BESIDE = re.compile(r"Seed set|.*(━|%\|)|$")  # what Lightning and progress bars write


def refused(capture, command, words, code=2):
    """The one line in which a command ends: `error: ...` alone on stderr but for bars, with that exit code.

    capture: capsys, or capfd where libraries write past Python. words: the command line, of anything that has a str.
    """
    capture.readouterr()
    with pytest.raises(SystemExit) as stopped:
        command([str(word) for word in words])
    lines = [line for line in capture.readouterr().err.splitlines() if not BESIDE.match(line)]
    assert stopped.value.code == code, (stopped.value.code, lines)
    assert len(lines) == 1 and lines[0].startswith("error: "), lines
    return lines[0]


def refused_unmeasured(capsys, command, words, pattern):
    """A benchmark's refusal, whose last line says so, before it printed more than a table's head."""
    with pytest.raises(SystemExit) as stopped:
        command(words)
    printed = capsys.readouterr()
    assert stopped.value.code == 2 and re.search(pattern, printed.err.strip().splitlines()[-1])
    assert len([line for line in printed.out.splitlines() if line.startswith("|")]) <= 2


def run_apart(*words, timeout=120, **environment):
    """A finished process of this Python, in the project's folder; words: `-m train.fit ...`, or a script's path."""
    return subprocess.run(
        [sys.executable, *map(str, words)], cwd=ROOT, env={**os.environ, **environment}, capture_output=True, text=True,
        timeout=timeout,
    )  # fmt: skip
