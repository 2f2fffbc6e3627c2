"""Measure on the machine at hand, with random weights and inputs in the real sizes.

python -m eval.bench kernel --size 14B       one layer's attention beside every dense rival that is installed
python -m eval.bench profile --size 14B      where that time goes, kernel by kernel; of a whole block with --what block
python -m eval.bench length                  the same over growing grids
python -m eval.bench model --size 14B        a forward pass of the transformer beside stock diffusers'
python -m eval.bench pipeline --size 1.3B    a step of a stock diffusers pipeline, before and after `install`
python -m eval.bench video --size 14B        a whole video, from prompt to mp4, stage by stage
python -m eval.bench train --size 1.3B       training steps
python -m eval.bench data                    reading a prepared data set
torchrun --nproc_per_node 2 -m -- eval.bench train --parallel "[one,shard,ulysses,halo]"   GPUs beside one
"""

from __future__ import annotations

import logging
import warnings

import torch.distributed as dist

from train.common.console import cli_errors, run_command
from train.common.work import leave_together

from .data import data
from .kernel import kernel
from .length import length
from .model import model
from .pipeline import pipeline
from .profile import profile
from .train import train
from .video import video


def command(args: list[str] | None = None) -> None:
    """args: the command line, without the command; by default this process's own."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    with cli_errors("stopped; what was measured before is written"):
        commands = [kernel, profile, length, model, pipeline, video, train, data]
        run_command(commands, args, lists=(), prog="python -m eval.bench", description=__doc__.splitlines()[0])
        if dist.is_available() and dist.is_initialized():
            leave_together()
