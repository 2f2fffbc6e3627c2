"""Videos of a tiny release or checkpoint and their records, and what changes the weights that made them."""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from eval.generate.command import command

QUICK = ["--prompt=a", "--frames=1", "--height=32", "--width=48", "--steps=1", "--guidance=1"]
TINY = ["--prompt=a", "--steps=1", "--guidance=1"]


def making(checkpoint, out, *more):
    return [f"--checkpoint={checkpoint}", f"--out={out}", *QUICK, *more]


def said_of(capsys, arguments):
    capsys.readouterr()
    command(arguments)
    return capsys.readouterr().out


def contents(folder):
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def record(out):
    """Of the first video there."""
    return json.loads(next(out.glob("*.json")).read_text())


def change(folder, by=0.1):
    """Other values in the first safetensors of a folder."""
    file = next(iter(sorted(Path(folder).glob("*.safetensors"))))
    save_file({name: x + by for name, x in load_file(file).items()}, file, {"format": "pt"})


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def retrain(path, **said):
    """As if a run had gone on, or another had begun."""
    held = torch.load(path, weights_only=True)
    held["fps_flex"] |= said
    for part in ("state_dict", "current_model_state"):
        held[part] = {name: x + 0.01 for name, x in held[part].items()}
    torch.save(held, path)
