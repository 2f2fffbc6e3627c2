"""Training runs of configs/tiny.yaml, as short as they can be, and what they leave."""

import csv
import os

import torch

from fps_flex.wan.trained import STATES, read_training_checkpoint
from tests.helpers.commands import ROOT, run_apart
from train.fit import main
from train.module import FlowModule

SHORT = (
    f"--config={ROOT / 'configs/tiny.yaml'}", "--trainer.max_steps=2", "--trainer.val_check_interval=2",
    "--trainer.log_every_n_steps=1", "--checkpoint.every_n_train_steps=2", "--data.val_clips=1", "--data.batch_size=2",
    "--sample.steps=1", "--sample.count=1", "--model.val_levels=1", "--model.warmup_steps=1",
)  # fmt: skip


def tiny_words(run, *options):
    """The command line of a run of two steps in this folder; options come last, and so before these."""
    return [*SHORT, f"--run={run}", *options]


def train_tiny(run, *options):
    """Such a run, in this process: its folder."""
    main(tiny_words(run, *options))
    return run


def tiny_checkpoint(run, *options):
    """The checkpoint of such a run, whose weights have moved far enough to be seen in videos."""
    return train_tiny(run, "--model.lr=0.1", *options) / "checkpoints/last.ckpt"


def train_apart(run, *options):
    """Such a run as a finished process."""
    return run_apart("-m", "train.fit", *tiny_words(run, *options))


def read_checkpoint(run, name="last"):
    return torch.load(run / f"checkpoints/{name}.ckpt", weights_only=True)


def all_tensors(checkpoint):
    """Weights, averages where they are kept, and momenta of a file or a folder, by name."""
    loaded = read_training_checkpoint(checkpoint)
    parts = {part: loaded[part] for part in STATES if part in loaded}
    parts |= loaded["optimizer_states"][0]["state"]
    return {f"{part} {name}": x for part, tensors in parts.items() for name, x in tensors.items()}


def same_tensors(a, b):
    """Whether two state dicts, which must have the same names, hold the same bits."""
    assert a.keys() == b.keys()
    return all(torch.equal(x, b[name]) for name, x in a.items())


def read_log(run):
    """Rows by their step, of which each is what all rows of the step say; the validations' apart."""
    rows = {}
    for part in sorted(run.glob("logs/version_*/metrics.csv")):
        with part.open(newline="") as file:
            for row in csv.DictReader(file):
                if not row["val/loss"] if "val/loss" in row else True:
                    values = {
                        name: float(value) for name, value in row.items() if value and name not in ("step", "epoch")
                    }
                    rows.setdefault(int(row["step"]), {}).update(values)
    return rows


def signal_at(monkeypatch, method, call, number):
    """This process gets a signal while it is in a method for the so-manieth time."""
    original, calls = getattr(FlowModule, method), []

    def patched(self, *args, **kwargs):
        calls.append(1)
        if len(calls) == call:
            os.kill(os.getpid(), number)
        return original(self, *args, **kwargs)

    monkeypatch.setattr(FlowModule, method, patched)
