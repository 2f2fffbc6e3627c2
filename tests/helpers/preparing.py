"""train.prepare on small videos with small settings, and what it leaves."""

import hashlib
import json
import subprocess
import sys

import torch
import yaml
from safetensors.torch import save_file

from tests.helpers.commands import ROOT
from tests.helpers.raw_clips import scene, write
from train.prepare.__main__ import command

SMALL = {
    "codec": {"class_path": "fps_flex.wan.codecs.PixelCodec", "init_args": {"stride": [2, 2, 2]}},
    "text": {"class_path": "fps_flex.wan.codecs.ByteText", "init_args": {"dim": 32, "length": 40}},
    "frames": 10, "fps": 8, "height": 32, "width": 32, "limits": {"min_side": 100},
}  # fmt: skip


def write_config(path, config):
    path.write_text(yaml.safe_dump(config))
    return path


def small_scene(path, seed, frames=24, height=120, width=160):
    """A video that SMALL keeps: a second and a half of 160x120."""
    return write(path, scene(seed, frames, height, width))


def caption(folder):
    """A metadata.csv for all videos below a folder."""
    videos = sorted(path.relative_to(folder) for path in folder.rglob("*") if path.suffix in (".mp4", ".mkv"))
    rows = [f'"{video}","a clip named {video.stem}"' for video in videos]
    (folder / "metadata.csv").write_text("\n".join(["video,prompt", *rows]))
    return folder


def prepare_words(source, out, config, *options):
    """The command line."""
    return [f"--config={config}", f"--source={source}", f"--out={out}", *options]


def prepare(source, out, config, *options):
    command(prepare_words(source, out, config, *options))


def read_manifest(out):
    return [json.loads(line) for line in (out / "manifest.jsonl").read_text().splitlines()]


def verdicts(out):
    """Video -> what speaks against each of its clips, without the details."""
    kinds_of = {}
    for entry in read_manifest(out):
        kinds = [reason.partition(":")[0].partition(" of ")[0] for reason in entry["reasons"]]
        kinds_of.setdefault(entry["video"], []).append(kinds)
        assert entry["kept"] is (not kinds)
    return kinds_of


def contents(out):
    """The data set, without what it was made from."""
    return {
        str(path.relative_to(out)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(out.rglob("*"))
        if path.is_file() and "work" not in path.parts
    }


def write_scorer(folder):
    """A CLIP of random weights and a head on it: what train.prepare.scorers.ClipAesthetic takes."""
    from transformers import CLIPConfig, CLIPModel

    torch.manual_seed(0)
    tower = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision = {**tower, "image_size": 32, "patch_size": 8}
    model = CLIPModel(CLIPConfig(text_config=tower, vision_config=vision, projection_dim=16))
    model.save_pretrained(folder / "clip")
    save_file({"weight": torch.randn(1, 16), "bias": torch.zeros(1)}, folder / "head.safetensors")
    return {"clip": str(folder / "clip"), "head": str(folder / "head.safetensors")}


def with_scorer(options):
    """SMALL with that scorer."""
    return {**SMALL, "scorers": [{"class_path": "train.prepare.scorers.ClipAesthetic", "init_args": options}]}


def times(folder):
    """File -> when it was written."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != ".lock")
    return {path: path.stat().st_mtime_ns for path in files}


def start_preparing(*arguments, **options):
    """A process that prepares; the arguments are those of prepare_words."""
    command = [sys.executable, "-m", "train.prepare", *prepare_words(*arguments)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, text=True, **options)
