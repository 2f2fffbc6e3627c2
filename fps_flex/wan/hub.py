"""Weights by their name on the Hugging Face hub."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from ..checks import as_path, show
from .experts import INDEX, find_experts

HUB = "hf:"  # before the name of a release, to fetch it
_NAME = re.compile(r"(?P<name>\w[\w.-]*/\w[\w.-]*)(/(?P<part>\w[\w.-]*))?")


def local(path: object) -> Path:
    """Where weights are on disk; of a release on the hub, the transformer is fetched first.

    path: of a file or a folder, or hf: and a release's name, which may end in a folder of it. Raises ValueError for no
    path, and where nothing can be fetched.
    """
    text = path if isinstance(path, str) else str(path) if isinstance(path, Path) else ""
    if not text.startswith(HUB):
        return as_path("path", path)
    match = _NAME.fullmatch(text.removeprefix(HUB))
    if not match:
        raise ValueError(
            f"{show(text)} is no release: expected hf:OWNER/NAME or hf:OWNER/NAME/FOLDER, as "
            "hf:Wan-AI/Wan2.1-T2V-1.3B-Diffusers"
        )
    name, part = match["name"], match["part"] or "transformer"
    if not match["part"] and (experts := find_experts(fetch(name, allow_patterns=[INDEX]))):
        raise ValueError(
            f"{HUB}{name} is a release of two transformers: name one of them, {HUB}{name}/{experts.high.name} for high "
            f"noise or {HUB}{name}/{experts.low.name} for low noise"
        )
    folder = fetch(name, allow_patterns=[INDEX, f"{part}/*.json", f"{part}/*.safetensors"])
    if match["part"]:
        if not (folder / part).is_dir():
            raise ValueError(f"{HUB}{name} has no {part}/ with safetensors")
        return folder / part
    if not (folder / part).is_dir():  # the official layout, with the weights at the root
        folder = fetch(name, allow_patterns=["*.json", "*.safetensors"], ignore_patterns=["*/*"])
    return folder


def release_of(path: str) -> str:
    """hf: and the name of the release that an hf: path is in."""
    return "/".join(path.split("/")[:2])


def fetch(name: str, what: str = "the transformer", **patterns: Any) -> Path:
    """The folder of a release, with the files of these patterns. Raises ValueError, which names `what`, for none."""
    try:
        from huggingface_hub import snapshot_download

        return Path(snapshot_download(name, **patterns))
    except ImportError:
        raise ValueError(f"{HUB}{name} can't be fetched: huggingface_hub is not installed") from None
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ValueError(f"{what} of {HUB}{name} can't be fetched ({reason})") from None
