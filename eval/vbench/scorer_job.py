"""What a scorer's subprocess finds: a folder with the videos of a job, links to weights, and no way to download."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from .reading import read_json

DOWNLOADERS = ("wget", "curl", "git")


def prepare_job(
    folder: Path,
    suite: Path,
    device: str,
    dimension: str,
    items: list[dict[str, Any]],
    videos: Path,
    weights: Path,
) -> Path:
    """A folder of links to the videos to score and nothing else, their entries of the suite, and the job.

    The official code takes every file's extension from the first that it finds, and scores all that it finds.
    """
    linked, names = folder / "videos", {item["name"] for item in items}
    linked.mkdir()
    for name in sorted(names):
        (linked / name).symlink_to((videos / name).resolve())
    prompts = {item["prompt"] for item in items}
    entries = [entry for entry in read_json(suite) if dimension in entry["dimension"] and entry["prompt_en"] in prompts]
    info, job = folder / "info.json", folder / "job.json"
    info.write_text(json.dumps(entries), encoding="utf-8")
    _link_what_is_looked_for_elsewhere(folder, weights)
    said = {"dimension": dimension, "device": device, "info": str(info), "videos": str(linked),
            "work": str(folder), "items": items}  # fmt: skip
    job.write_text(json.dumps(said), encoding="utf-8")
    return job


def _link_what_is_looked_for_elsewhere(folder: Path, weights: Path) -> None:
    """DINO's code has its weights from torch.hub's cache, BERT's name stands for a folder where the code runs."""
    hub = folder / "hub" / "checkpoints"
    hub.mkdir(parents=True)
    (hub / "dino_vitbase16_pretrain.pth").symlink_to(weights / "dino_model/dino_vitbase16_pretrain.pth")
    (folder / "bert-base-uncased").symlink_to(weights / "bert_model/bert-base-uncased")


def set_environment(folder: Path, weights: Path) -> dict[str, str]:
    """Where weights are, and nothing that downloads: the official code would when it misses them."""
    tools = folder / "bin"
    tools.mkdir()
    for name in DOWNLOADERS:
        tool = tools / name
        tool.write_text(f'#!/bin/sh\necho "{name} refused: weights are never downloaded ($*)" >&2\nexit 1\n')
        tool.chmod(0o755)
    offline = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "TORCH_HOME": str(folder)}
    path = f"{tools}{os.pathsep}{os.environ.get('PATH', '')}"
    return {**os.environ, **offline, "VBENCH_CACHE_DIR": str(weights), "PATH": path}
