"""Where what is known of a folder of clips is kept for the next start: in the user's cache folder."""

from __future__ import annotations

import os
from pathlib import Path

from .atomic import digest_content


def cache_file(folder: Path, suffix: str = ".json") -> Path | None:
    """Where what is known of a folder is kept; None where there is no home folder."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    try:
        root = Path(base) if os.path.isabs(base) else Path.home() / ".cache"
    except RuntimeError:
        return None
    key = digest_content(os.fsencode(folder.resolve()))[:24]
    return root / "fps-flex" / "clips" / f"{key}{suffix}"
