"""Whether a checkpoint holds all that a run goes on with, and of the same model.

Lightning takes what it finds: without its loops, or with callbacks of another type, a run would begin anew in silence.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fps_flex.checks import is_whole, show
from fps_flex.wan.casting import check_finite
from fps_flex.wan.streamed import Streamed, dtype_of, shape_of
from fps_flex.wan.trained import STATES

from .optimizers import check_momentum, shape_of_momentum

if TYPE_CHECKING:
    from .data import VideoData
    from .module import FlowModule

NEEDED = {
    "optimizer_states": list,
    "lr_schedulers": list,
    "loops": dict,
    "callbacks": dict,
    "global_step": int,
    "epoch": int,
    "pytorch-lightning_version": str,
}
DECAY = "ema.decay"  # of the averaged weights; None keeps none
TOLD = ("position", "options", "val_loss", "run_id")
SET_ANEW = (
    "params",
    "lr",
    "initial_lr",
    "betas",
    "eps",
    "weight_decay",
)  # of an optimizer's group, by the configuration


def check_resumable(checkpoint: dict[str, Any], module: FlowModule) -> None:
    """checkpoint: as read_training_checkpoint gives it. Where processes share the model, each looks at the values of
    its own rows when it takes them. Raises ValueError with what is missing or wrong.
    """
    record = checkpoint["fps_flex"]
    needed = NEEDED if keeps_no_average(record) else {"current_model_state": dict, **NEEDED}
    lacking = [name for name in needed if name not in checkpoint] + [name for name in TOLD if name not in record]
    if lacking:
        raise ValueError(f"it lacks {', '.join(lacking)}")
    for name, kind in needed.items():
        if not isinstance(checkpoint[name], (kind, Streamed)) or isinstance(checkpoint[name], bool):
            raise ValueError(f"its {name} is {show(checkpoint[name])}, expected a {kind.__name__}")
    if not re.match(r"\d+\.\d+", checkpoint["pytorch-lightning_version"]):
        raise ValueError(f"its pytorch-lightning_version is {show(checkpoint['pytorch-lightning_version'])}")
    _check_counts(checkpoint, record["position"]["step"])
    for name in (x for x in STATES if x in checkpoint):
        _check_state(name, checkpoint[name], module)
    _check_optimizer(checkpoint["optimizer_states"], module, trained=checkpoint["global_step"] > 0)
    _check_schedule(checkpoint["lr_schedulers"])
    for name, state in checkpoint["callbacks"].items():
        if not isinstance(name, str) or not isinstance(state, dict):
            raise ValueError(f"its callbacks hold {show(state)} of {show(name)}, expected a dict of a callback")


def keeps_no_average(record: dict[str, Any]) -> bool:
    """record: what a checkpoint says. Whether its run had no averaged weights, and so `state_dict` alone."""
    return record.get("options", {}).get(DECAY, 0) is None


def check_taken(path: Path, record: dict[str, Any], data: VideoData) -> None:
    """Raises ValueError where a checkpoint has not counted the clips of as many sizes as the data set has."""
    counted, sizes = len(record["position"]["taken"]), len(data.buckets())
    if counted != sizes:
        raise ValueError(
            f"{path} is no checkpoint to go on from: it has taken clips of {counted} sizes, there are {sizes}"
        )


def _check_counts(checkpoint: dict[str, Any], step: int) -> None:
    if not (isinstance(loop := checkpoint["loops"].get("fit_loop"), dict) and loop):
        raise ValueError("it lacks loops.fit_loop")
    if checkpoint["global_step"] != step or checkpoint["fps_flex"].get("step", step) != step:
        raise ValueError(f"it was saved at step {checkpoint['global_step']}, and its position is of step {step}")
    if checkpoint["epoch"] != 0:
        raise ValueError(f"its epoch is {checkpoint['epoch']}, expected 0: a run has one")


def _check_state(part: str, state: Mapping[str, Tensor], module: FlowModule) -> None:
    state_now = module.model.state_dict()
    shapes = {f"model.{name}": tuple(state_now[name].shape) for name in module.saved_names()}
    for name in dict.fromkeys((*shapes, *state)):
        shape = shape_of(state, name) if name in state else None
        if shape != shapes.get(name):
            raise ValueError(
                f"its {part} holds {name} of shape {shape}, this configuration expects {shapes.get(name)}: "
                "use the configuration it was trained with"
            )
    for name in state:
        if not (dtype := dtype_of(state, name)).is_floating_point:
            raise ValueError(f"its {part}'s {name} is of {dtype}, expected floating-point weights")
        if not module.making.sharded:
            check_finite(f"its {part}'s {name}", state[name])


def _check_optimizer(states: list[Any], module: FlowModule, trained: bool) -> None:
    """One, whose groups are as this configuration makes them and whose momenta are the parameters'."""
    if len(states) != 1 or not isinstance(states[0], dict):
        raise ValueError(f"its optimizer_states are {show(states)}, expected one optimizer's")
    (state,), (group,) = states, module.configure_optimizers()["optimizer"].param_groups
    shapes = dict(enumerate(tuple(x.shape) for x in group["params"]))
    groups, momenta = state.get("param_groups"), state.get("state")
    if not isinstance(groups, list) or len(groups) != 1 or not isinstance(groups[0], dict):
        raise ValueError(f"its optimizer's param_groups are {show(groups)}, expected one group")
    if groups[0].get("params") != list(shapes):
        raise ValueError(f"its optimizer's params are {show(groups[0].get('params'))}, expected 0 to {len(shapes) - 1}")
    other = [x for x in group if x not in SET_ANEW and groups[0].get(x, group[x]) is not group[x]]
    if other:
        raise ValueError(f"its optimizer's {other[0]} is {show(groups[0].get(other[0]))}, expected {group[other[0]]}")
    if not isinstance(momenta, dict) or (trained and momenta.keys() != shapes.keys()):
        raise ValueError("its optimizer's state is not of this model's parameters")
    for index, momentum in momenta.items():
        if not _is_momentum(momentum, shapes.get(index)):
            raise ValueError(
                f"its optimizer's state of parameter {show(index)} is not one of shape {shapes.get(index)}"
            )
        for name, mean in () if module.making.sharded else momentum.items():
            if isinstance(mean, Tensor):
                check_momentum(f"its optimizer's {name} of parameter {index}", name, mean)


def _is_momentum(momentum: object, shape: tuple[int, ...] | None) -> bool:
    """As AdamW keeps it: how often it stepped, and two means of gradients."""
    if isinstance(momentum, Streamed):
        shapes = {name: momentum.shape(name) for name in momentum}
    elif isinstance(momentum, dict) and all(_has_values(x) or isinstance(x, dict) for x in momentum.values()):
        shapes = {name: shape_of_momentum(x) for name, x in momentum.items()}
    else:
        return False
    return shapes == {"step": (), "exp_avg": shape, "exp_avg_sq": shape}


def _has_values(x: object) -> bool:
    return isinstance(x, Tensor) and x.layout == torch.strided and not x.is_meta and x.is_floating_point()


def _check_schedule(schedules: list[Any]) -> None:
    if len(schedules) != 1 or not isinstance(schedules[0], dict):
        raise ValueError(f"its lr_schedulers are {show(schedules)}, expected one")
    (schedule,) = schedules
    for name in ("last_epoch", "_step_count"):
        if not is_whole(schedule.get(name)) or schedule[name] < 0:
            raise ValueError(f"its lr_schedulers' {name} is {show(schedule.get(name))}, expected a number of steps")
    if schedule.get("lr_lambdas") != [None]:
        raise ValueError(f"its lr_schedulers' lr_lambdas are {show(schedule.get('lr_lambdas'))}, expected [None]")
