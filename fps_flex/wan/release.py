"""The parts of a release on disk, in the diffusers layout: found, fetched from the hub, and their config.json read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..checks import as_instance, at_home, show
from .hub import HUB, fetch

RELEASE = "Wan-AI/Wan2.1-T2V-1.3B-Diffusers"
# of each part: the file that says what it is, and what else is expected
CONTENTS = {
    "vae": ("config.json", "safetensors"),
    "text_encoder": ("config.json", "safetensors"),
    "tokenizer": ("tokenizer_config.json", "tokenizer.json or spiece.model"),
}


class PartError(ValueError):
    """A part of a release is missing or broken."""


def find_part(path: str, part: str) -> Path:
    """The folder of a part; of a release on the hub, it is fetched first. Raises PartError where there is none."""
    folder = _folder(path, part)
    config, contents = CONTENTS[part]
    if not (folder / part / config).is_file():
        pickles = sorted(file.name for file in folder.glob("*.pth"))
        instead = f"{', '.join(pickles)}, which are pickles" if pickles else "none"
        raise PartError(f"expected {part}/ with {contents} in {path}, found {instead}: {RELEASE} has that folder")
    return folder / part


def read_config(path: str, part: str, kind: str) -> dict[str, Any]:
    """config.json of a part. Raises PartError where there is none, or it is of another kind."""
    file = find_part(path, part) / "config.json"
    config = read_json(file)
    named = config.get("architectures") or ()
    if not isinstance(named, list | tuple):
        raise PartError(f"{file} is no configuration: fetch it again")
    names = (config.get("_class_name"), *named)
    if kind not in names:
        described = " ".join(str(name) for name in names if name) or "nameless model"
        raise PartError(f"{file} describes a {described}, expected a {kind}")
    return config


def read_json(file: Path) -> dict[str, Any]:
    """A part's configuration. Raises PartError unless the file holds a JSON object."""
    try:
        return as_instance(file.name, json.loads(file.read_text(encoding="utf-8")), dict)
    except (OSError, ValueError, RecursionError):
        raise PartError(f"{file} is no configuration: fetch it again") from None


def require_entry(file: str, config: dict[str, Any], name: str, fits: bool, expected: str) -> None:
    """Raises PartError unless an entry of a configuration fits. file: that it is from."""
    if not fits:
        given = f"says {name} = {show(config[name])}" if name in config else f"lacks {name}"
        raise PartError(f"{file} {given}, expected {expected}: fetch it again")


def load_part(kind: Any, path: str, part: str, **options: Any) -> Any:
    """What `kind` makes of a part. Raises PartError when it can't be loaded."""
    folder = find_part(path, part)
    try:
        return kind.from_pretrained(folder, local_files_only=True, **options)
    except Exception as error:
        raise PartError(f"{folder} can't be loaded ({first_line(error)}): fetch it again") from None


def first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _folder(path: str, part: str) -> Path:
    """Where a release is on disk; of one on the hub, the part is fetched first."""
    if not as_instance("path", path, str).startswith(HUB):
        folder = at_home(path)
        if not folder.is_dir():
            raise PartError(f"no folder {path}: expected a Wan2.1 in the diffusers layout, or {HUB}{RELEASE} to fetch")
        return folder
    try:
        return fetch(path.removeprefix(HUB), f"{part}/", allow_patterns=f"{part}/*")
    except ValueError as error:
        raise PartError(str(error)) from None
