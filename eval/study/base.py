"""The pretrained weights as a file that can go elsewhere, and as the checkpoint that rows start from."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from fps_flex.checks import show
from fps_flex.wan.casting import Cast
from fps_flex.wan.codecs import Codec
from fps_flex.wan.files import open_safetensors
from fps_flex.wan.fingerprint import digest_held, held_in_file
from fps_flex.wan.trained import read_training_checkpoint
from fps_flex.wan.weights import open_weights
from fps_flex.wan.writing import write_file
from train.common.atomic import beside

from ..generate.models import build
from .config import BASE, Plan, first_difference

KEPT = ("wan", "attention", "residual", "shift", "noise_levels", "step", "codec", "text", "clip")
WEIGHTS, CODEC = "base.safetensors", "codec.safetensors"  # in a study's folder


def export_base(plan: Plan) -> None:
    """The averaged weights in bf16 (norms and time embedding in fp32); the header says what they were trained as."""
    weights, cast = open_weights(plan.run(BASE, 0) / "checkpoints/last.ckpt"), Cast("bf16")
    record = {name: weights.trained[name] for name in KEPT}
    specs = {name: cast.spec(name, spec) for name, spec in weights.specs.items()}
    codec = _codec_of(plan, record).fingerprint()
    header = {"fps_flex": json.dumps(record), "study": json.dumps(plan.describe_base()), "codec": codec}
    with beside(plan.out / WEIGHTS) as temporary:
        write_file(temporary, specs, lambda name: cast(name, weights.read(name)), header)


def fingerprint(plan: Plan) -> str:
    return digest_held(held_in_file(plan.out / WEIGHTS))


def take_base(plan: Plan, weights: Path) -> None:
    """Copy exported weights into a study, with the codec that lies beside them where the study fits one.

    Raises ValueError for what is no such file, of another pretraining, or without its codec, and where the study has
    another base.
    """
    read_header(plan, weights)
    if set(_list_bases(plan)) - {digest_held(held_in_file(weights))}:
        raise ValueError(f"{plan.out} has another base than {weights}: choose another --out, or leave --base out")
    for name in (WEIGHTS, *([CODEC] if plan.study.codec else [])):
        origin, place = weights if name == WEIGHTS else weights.with_name(name), plan.out / name
        if not origin.is_file():
            raise ValueError(f"there is no {origin}: copy it out of the study that made {weights}")
        if not (place.exists() and place.samefile(origin)):
            with beside(place) as temporary:
                shutil.copyfile(origin, temporary)


def _list_bases(plan: Plan) -> Iterator[str]:
    """Fingerprints of the base that a study has, as a file and as the checkpoint of it."""
    if (plan.out / WEIGHTS).exists():
        yield fingerprint(plan)
    if (checkpoint := plan.checkpoint(BASE, 0)).exists():
        yield read_training_checkpoint(checkpoint)["fps_flex"]["run_id"]


def read_header(plan: Plan, weights: Path) -> dict[str, str]:
    """Raises ValueError for what is no base of a study, or of another pretraining."""
    if not weights.is_file():
        raise ValueError(f"there is no base {weights}: expected the {WEIGHTS} of a study")
    with open_safetensors(weights) as opened:
        header = opened.metadata() or {}
    if not {"fps_flex", "study", "codec"} <= header.keys():
        raise ValueError(f"{weights} is no base of a study (its header has {show(sorted(header))})")
    if other := first_difference(json.loads(header["study"]), plan.describe_base()):
        raise ValueError(f"{weights} was pretrained with other settings: {other}")
    return header


def write_checkpoint(plan: Plan) -> None:
    """The same weights as train.fit and eval.generate take them. Raises ValueError for another codec than theirs."""
    file = plan.out / WEIGHTS
    header = read_header(plan, file)
    record = json.loads(header["fps_flex"])
    codec = _codec_of(plan, record)
    if codec.fingerprint() != header["codec"]:
        raise ValueError(
            f"{file} was trained with the codec {header['codec']}, and {plan.out / CODEC} is {codec.fingerprint()}: "
            "take both out of one study, with --base FILE"
        )
    with open_safetensors(file) as opened:
        state = {f"model.{name}": opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 - not a mapping
    with beside(plan.checkpoint(BASE, 0)) as temporary:
        torch.save(
            {
                "state_dict": state,
                "fps_flex": {**record, "codec": codec.spec() | codec.identity(), "run_id": fingerprint(plan)},
            },
            temporary,
        )


def _codec_of(plan: Plan, record: dict[str, Any]) -> Codec:
    """One that a study fitted is in its own folder, wherever it was in training."""
    options = {**record["codec"]["options"], **({"path": str(plan.out / CODEC)} if plan.study.codec else {})}
    return build(str(plan.out / WEIGHTS), {"kind": record["codec"]["kind"], "options": options}, Codec, None)
