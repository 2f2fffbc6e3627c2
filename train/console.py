"""How commands speak to their users: one line about what is wrong."""

from __future__ import annotations

import sys
from typing import NoReturn


def one_line(error: Exception) -> str:
    """An error's message without the parser's account of how it tried each type that an option can have."""
    noise = ("Does not validate", "Subtypes:", "Errors:", "Given value type:", "Given value: Namespace")
    lines = [line.strip(" -") for line in str(error).splitlines()]
    return "; ".join(line for line in lines if line and not line.startswith(noise)).replace(":;", ":")


def stop(message: str, code: int) -> NoReturn:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(code)
