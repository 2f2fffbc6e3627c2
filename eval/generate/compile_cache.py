"""Compiled graphs and kernels kept in a folder between runs: a first step compiles nothing of what is there.

Files are named after the PyTorch, Triton and GPU that they are for, and each process of a run adds one of what it
compiled itself, since a graph is for its GPU's number in the host. PyTorch looks up whether a graph is the one asked
for, by its code and options. What it keeps are pickles, which run code when they are read. Beside them flash-attn-4
keeps its kernels, by its own version and Python's.
"""

from __future__ import annotations

import fcntl
import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from secrets import token_hex

import torch

from train.common.atomic import beside
from train.common.console import check_writable
from train.common.ranks import speaks

from ..timing import name_device

SUFFIX = ".graphs"
FLASH = "FLASH_ATTENTION_CUTE_DSL_CACHE"

logger = logging.getLogger(__name__)


@contextmanager
def kept_graphs(folder: Path | None) -> Iterator[None]:
    """Read what earlier runs compiled, and on leaving, however that comes about, add what this one did.

    folder: None keeps nothing. Files for another PyTorch or GPU, and damaged ones, are left out with a line.
    Raises ValueError where the folder can't be written.
    """
    if folder is None:
        yield
        return
    check_writable(folder, "--compile_cache")
    known = _read(folder)
    try:
        with _kept_kernels(folder):
            yield
    finally:
        _keep(folder, known)


@contextmanager
def _kept_kernels(folder: Path) -> Iterator[None]:
    """Flash-attn-4 reads these as it is imported, with its first kernel; what a user has set stays."""
    kernels = folder / f"{graphs_for()}.kernels"
    ours = {f"{FLASH}_ENABLED": "1", f"{FLASH}_DIR": str(kernels)} if _can_lock(kernels) else {}
    ours = {name: value for name, value in ours.items() if name not in os.environ}
    os.environ.update(ours)
    try:
        yield
    finally:
        for name in ours:
            del os.environ[name]
        with suppress(OSError):  # it holds some
            kernels.rmdir()


def _can_lock(folder: Path) -> bool:
    """Make a folder. Some network drives can't lock, where flash-attn-4 would wait for it and then fail."""
    probe = folder / f".lock-{token_hex(6)}"
    try:
        folder.mkdir(exist_ok=True)
        with probe.open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if speaks():
            why = error.strerror or error
            logger.warning("no file can be locked in %s (%s): flash-attn-4's kernels are not kept", folder, why)
        return False
    finally:
        with suppress(OSError):
            probe.unlink()
    return True


def graphs_for() -> str:
    """The PyTorch, Triton and GPU here, as a file's name begins."""
    try:
        triton = f" triton {version('triton')}"
    except PackageNotFoundError:
        triton = ""
    return re.sub(r"[^\w.+]+", "-", f"torch {torch.__version__}{triton} {name_device()}")


def _read(folder: Path) -> set[str]:
    """Keys of the graphs that were read."""
    here, files = graphs_for(), sorted(folder.glob(f"*{SUFFIX}"))
    others = sorted({x.name.rpartition("-")[0] for x in files} - {here})
    if others and speaks():
        logger.warning("%s has graphs for %s, which are of no use to %s", folder, ", ".join(others), here)
    return {key for file in files if file.name.rpartition("-")[0] == here for key in _load(file)}


def _load(file: Path) -> set[str]:
    its_logger = logging.getLogger("torch.compiler._cache")
    its_logger.disabled = True  # which shows a traceback
    try:
        found = torch.compiler.load_cache_artifacts(file.read_bytes())
    except Exception:  # pickles from anywhere raise anything
        found = None
    finally:
        its_logger.disabled = False
    if found is None and speaks():
        logger.warning("%s can't be read, expected graphs of an earlier run: they are compiled anew", file)
    return set() if found is None else _keys(found)


def _keep(folder: Path, known: set[str]) -> None:
    """Write what was compiled, unless all of it was read. What fails costs the file alone."""
    saved = torch.compiler.save_cache_artifacts()
    if saved is None or _keys(saved[1]) <= known:
        return
    path = folder / f"{graphs_for()}-{token_hex(6)}{SUFFIX}"  # processes that write the same have a file each
    try:
        with beside(path) as temporary:
            temporary.write_bytes(saved[0])
    except OSError as error:
        if speaks():
            logger.warning("%s was not written (%s): the next run compiles anew", path, error.strerror or error)


def _keys(info: torch.compiler._cache.CacheInfo) -> set[str]:
    return {key for keys in info.artifacts.values() for key in keys}
