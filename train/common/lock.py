"""That no two runs share a folder."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

logger = logging.getLogger(__name__)


@contextmanager
def locked(run: Path, option: str = "--run FOLDER") -> Iterator[None]:
    """This process's alone, until it ends however it ends. Raises ValueError where another holds the folder.

    option: what names another folder.
    """
    with (run / ".lock").open("a+") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EAGAIN):
                logger.warning("%s can't be locked (%s): start no second run in it", run, error.strerror)
            else:
                file.seek(0)
                holder = file.read().strip() or "another process"
                raise ValueError(f"{run} is in use by {holder}: wait for it, or choose another {option}") from None
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        yield
