"""Training runs of LoRAs beside a tiny base, as short as they can be."""

import json

import torch
from safetensors.torch import save_file

from docs.make.residual import lively_wan
from fps_flex import FPSAttention
from fps_flex.wan import WAN_TINY
from tests.helpers.tiny_run import tiny_words
from train.fit import fit, prepare

RANK, ALPHA = 4, 8.0


def write_base(folder, seed=0):
    """A release of tiny.yaml's sizes whose blocks matter."""
    torch.manual_seed(seed)
    state = lively_wan(WAN_TINY, FPSAttention("dense"), torch.device("cpu")).state_dict()
    folder.mkdir(parents=True, exist_ok=True)
    save_file(state, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"num_heads": WAN_TINY.heads}))
    return folder


def lora_words(run, base, *options):
    """The command line of two steps of distillation."""
    lora = (f"--model.lora.rank={RANK}", f"--model.lora.alpha={ALPHA}", f"--model.checkpoint={base}")
    quiet = "--trainer.enable_progress_bar=false"
    return tiny_words(run, *lora, "--model.objective=distill", quiet, *map(str, options))


def train_lora(run, base, *options):
    """The module that was trained."""
    return train_words(lora_words(run, base, *options))


def train_words(words):
    cli = prepare(words)
    fit(cli)
    return cli.model
