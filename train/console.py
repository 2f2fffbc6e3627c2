"""How commands speak to their users: one line about what is wrong."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import NoReturn


def one_line(error: Exception) -> str:
    """An error's message without the parser's account of how it tried each type that an option can have."""
    noise = ("Does not validate", "Subtypes:", "Errors:", "Given value type:", "Given value: Namespace")
    lines = [line.strip(" -") for line in str(error).splitlines()]
    return "; ".join(line for line in lines if line and not line.startswith(noise)).replace(":;", ":")


def stop(message: str, code: int) -> NoReturn:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(code)


def check_writable(folder: Path, option: str) -> None:
    """Make a folder. Raises ValueError when files can't be written into it; option: what names another."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".writable-{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise ValueError(f"{folder} can't be written ({error.strerror}): choose another {option}") from None
