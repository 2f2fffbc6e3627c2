"""What several workers of pytest-xdist need, made by the first of them that asks."""

import fcntl
import os
import shutil
from pathlib import Path


def once(tmp_path_factory, name, make):
    """The folder that make(folder) has filled; not to be changed."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / name
    with open(f"{folder}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not Path(f"{folder}.done").exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            make(folder)
            Path(f"{folder}.done").touch()
    return folder
