"""What a run goes on from, and what may have changed since."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fps_flex.attention import EARLIER
from fps_flex.checks import as_path
from fps_flex.wan.lora import Lora
from fps_flex.wan.trained import read_training_checkpoint

from .building import describe_lora
from .checkpoints import BEST, INTERRUPTED, LAST, RESUMABLE, checkpoint_folder, trained_steps
from .common.atomic import recover
from .data import VideoData
from .module import FlowModule
from .resumable import DECAY, check_resumable

logger = logging.getLogger(__name__)

# A run that goes on with other ones would meet its clips in another order, or be another model.
FIXED = (
    *("seed_everything", "data.seed", "data.val_clips", "data.train_clips", "data.clips", "model.checkpoint"),
    *("model.lora", "model.adapter", "model.objective", "model.flow_weight", "model.optimizer"),
)
FIXED_PARTS = ("model.wan.", "model.codec.", "model.text.", "model.lora.")
BASE = "model.checkpoint"  # of a LoRA known by its weights, wherever they lie
ELSEWHERE = (".path", ".dtype")  # of an encoder: where it lies and how it is loaded, not what it is
LAST_IF_ANY = "last-if-any"  # of --ckpt_path
ATTENTION = "model.attention."
UNSAID = ("run", "ckpt_path", "config", "data.folder")
DRAWN = ("sample.mp4", "sample.png", "loss.png")  # into a run's folder, at its end


def find_checkpoint(run: Path, wanted: str | None) -> Path | None:
    """The file behind --ckpt_path; None for a new run. `last` is the readable one with the most steps.

    Raises ValueError when there is none, and when a run would overwrite another.
    """
    folder = checkpoint_folder(run)
    for name in RESUMABLE if wanted else ():
        recover(folder / name)
    present = [folder / name for name in RESUMABLE if (folder / name).exists()]
    if wanted is None or (wanted == LAST_IF_ANY and not present):
        if present:
            raise ValueError(f"{run} holds a run already: go on with --ckpt_path last, or choose another --run FOLDER")
        if others := [name for name in DRAWN if (run / name).exists() and not (run / "logs").exists()]:
            raise ValueError(f"{run / others[0]} is of no run here, and would be replaced: choose another --run FOLDER")
        return None
    if wanted in ("last", LAST_IF_ANY):
        return _most_trained(folder, present)
    path = folder / BEST if wanted == "best" else as_path("--ckpt_path", wanted)
    if not path.exists():
        if wanted == "best":
            raise ValueError(f"no {BEST} in {folder}: leave out --ckpt_path to start a new run")
        raise ValueError(f"no checkpoint {wanted}: expected a path, 'last', 'last-if-any' or 'best'")
    if present and path.resolve().parent != folder.resolve():
        raise ValueError(f"{run} holds another run than {path}: choose another --run FOLDER to go on from that in")
    return path


def _most_trained(folder: Path, present: list[Path]) -> Path:
    """Raises ValueError where none can be read."""
    if not present:
        raise ValueError(f"no {LAST} or {INTERRUPTED} in {folder}: leave out --ckpt_path to start a new run")
    steps = {path: trained_steps(path) for path in present}
    broken = [path for path in present if steps[path] is None]
    readable = [path for path in present if steps[path] is not None]
    if not readable:
        read_training_checkpoint(present[0])  # says what is wrong with it
        names = ", ".join(map(str, present))
        raise ValueError(f"{names} can't be gone on from: start a new run in another --run FOLDER")
    for path in broken:
        logger.warning("%s can't be read and is left aside", path)
    return max(readable, key=lambda path: steps[path])


def check_checkpoint(path: Path, module: FlowModule) -> dict[str, Any]:
    """What a checkpoint says of its run. Raises ValueError when it can't be gone on from with such a model."""
    checkpoint = read_training_checkpoint(path)
    record = checkpoint["fps_flex"]
    try:
        _check_lora(path, record.get("lora"), module.making.lora)
        check_resumable(checkpoint, module)
        module.codec.check_identity(record.get("codec", {}))
        _check_base(record.get("base"), module.base_record.get("base"))
    except ValueError as error:
        raise ValueError(f"{path} is no checkpoint to go on from: {error}") from None
    return record


def _check_lora(path: Path, before: dict[str, Any] | None, lora: Lora | None) -> None:
    """Raises ValueError where one trained a LoRA and the other all weights, and for a LoRA of another kind."""
    now = None if lora is None else describe_lora(lora)
    if before is None and now is not None:
        raise ValueError(
            "it holds all of a model's weights, and this configuration trains a LoRA: leave out model.lora, or start "
            f"a LoRA beside them with --model.checkpoint {path} and another --run FOLDER"
        )
    if before is not None and now is None:
        raise ValueError(
            f"it holds a LoRA, and this configuration trains all weights: set model.lora.rank {before['rank']}, or "
            f"start from the sum with --model.checkpoint {path} and another --run FOLDER"
        )
    if before and now and (other := [name for name in now if before[name] != now[name]]):
        changes = "; ".join(f"model.lora.{x} was {_say(before[x])}, is {_say(now[x])}" for x in other)
        raise ValueError(
            f"{changes}. Set them back, or start a new LoRA on the sum with --model.checkpoint {path} and another "
            "--run FOLDER"
        )


def _check_base(before: dict[str, Any] | None, now: dict[str, Any] | None) -> None:
    """Raises ValueError where a LoRA would go on beside other weights, or a teacher would be another."""
    if now is None:
        return
    if before is None:
        raise ValueError("it lacks fps_flex.base")
    if before["fingerprint"] != now["fingerprint"]:
        raise ValueError(
            f"it was trained on {before['path']} ({before['fingerprint']}), and --model.checkpoint is {now['path']} "
            f"({now['fingerprint']})"
        )


def options_of(config: dict[str, Any], module: FlowModule, data: VideoData) -> dict[str, Any]:
    """All that was asked of a run as plain values by dotted names: attention by its numbers, clips by their names."""
    options = {name: value for name, value in _flatten(config) if not name.startswith(ATTENTION)}
    attention = json.loads(json.dumps(asdict(module.model.attention)))
    here = {"data.clips": data.clips(), "data.captions": data.captions(), "model.residual": module.model.residual}
    return options | dict(_flatten({"model": {"attention": attention}})) | here


def compare_options(path: Path, before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """What is taken from the configuration though the run began with something else, a line each.

    Raises ValueError for what can't change in a run.
    """
    earlier = {f"{ATTENTION}{name}": value for name, value in EARLIER.items()}
    before = {name: value for name, value in earlier.items() if name in now} | before
    names = [name for name in sorted(before.keys() | now.keys()) if _differs(before.get(name), now.get(name))]
    names = [name for name in names if name not in UNSAID]
    fixed = [name for name in names if name in FIXED or (name.startswith(FIXED_PARTS) and not name.endswith(ELSEWHERE))]
    if now.get("model.lora.rank") is not None:
        fixed = [name for name in fixed if name != BASE]
    if fixed:
        changes = "; ".join(f"{name} was {_option(before, name)}, is {_option(now, name)}" for name in fixed)
        start = "model.checkpoint" if now.get("model.lora.rank") is None else "model.adapter"
        raise ValueError(
            f"{path} can't be gone on from with other settings: {changes}. Set them back, or start a new run from its "
            f"weights with --{start} {path} and another --run FOLDER"
        )
    return [f"{name} {_option(before, name)} -> {_option(now, name)}{_meaning(name, before, now)}" for name in names]


def _option(options: dict[str, Any], name: str) -> str:
    """As YAML has it; one that isn't there is of another version, or of a part that the run hasn't."""
    return _say(options[name]) if name in options else "(not there)"


def _meaning(name: str, before: dict[str, Any], now: dict[str, Any]) -> str:
    """What becomes of the averaged weights where they begin or end."""
    if name != DECAY or None not in (before.get(name, 0), now.get(name)):
        return ""
    return ": the average is dropped" if now.get(name) is None else ": the average begins as the weights of that step"


def _flatten(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict) and value:
        for key, item in value.items():
            yield from _flatten(item, f"{name}.{key}" if name else str(key))
    else:
        yield name, value


def _differs(a: Any, b: Any) -> bool:
    """As written down: 1 is not 1.0, nor true."""
    return json.dumps(a, sort_keys=True, default=str) != json.dumps(b, sort_keys=True, default=str)


def _say(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=str)
