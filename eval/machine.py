"""What ran: the device's name, and the checkout's commit."""

from __future__ import annotations

import os
import platform
import subprocess
from functools import cache
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
CPUS = Path("/proc/cpuinfo")


def name_device() -> str:
    """Of the GPU in use, or else of the CPU."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    lines = CPUS.read_text().splitlines() if CPUS.is_file() else []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return (named or [platform.processor()])[0] or platform.machine()


@cache
def find_commit() -> str | None:
    """Of the checkout that this runs from, with "+changes" where tracked files differ; None where it is no checkout."""
    if not (ROOT / ".git").exists():
        return None
    said = ["git", "-C", str(ROOT), "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty=+changes"]
    try:  # without locks, so that processes side by side don't meet at one
        found = subprocess.run(said, capture_output=True, text=True, env=os.environ | {"GIT_OPTIONAL_LOCKS": "0"})
    except OSError:
        return None
    return found.stdout.strip() or None
