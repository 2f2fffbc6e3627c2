"""From errors at some steps to those of any schedule: of the whole model, and of each layer's part."""

from __future__ import annotations

import numpy as np
import torch

from fps_flex import Regime, StepSchedule
from fps_flex.quant import CodeFormat

from .candidates import on_grid
from .fronts import Choice
from .result import Sensitivity

LEAST = 1e-20  # relative MSE that has a logarithm


def over_steps(measured: Sensitivity, errors: np.ndarray) -> np.ndarray:
    """Errors at the measured steps [step, ...] -> at all of the sampler's, between them along their logarithms."""
    flat = np.log(errors.clip(LEAST)).reshape(len(errors), -1)
    progress = measured.progress()
    every = [np.interp(progress, progress[measured.steps], column) for column in flat.T]
    return np.exp(np.stack(every, 1)).reshape(len(progress), *errors.shape[1:])


def share_out(measured: Sensitivity) -> np.ndarray:
    """Each layer's part in the velocity's error [step, candidate, layer]; a candidate's parts sum to what it has.

    A layer's part is as large as its attention's error times its gain, the velocity's error over attention's where the
    probe candidate is in that layer alone. Raises ValueError where that wasn't measured.
    """
    if measured.one_layer is None:
        raise ValueError("layers weren't measured one at a time: measure again with --layers true, into another --out")
    attention = measured.attention_mse.mean(-1).clip(LEAST)
    gain = np.array(measured.one_layer) / attention[:, measured.probe]
    parts = attention * gain[:, None]
    total = parts.sum(-1, keepdims=True)
    return measured.velocity_mse[..., None] * parts / total.clip(LEAST)


def predict(measured: Sensitivity, errors: np.ndarray, schedule: StepSchedule, codes: CodeFormat = "e4m3") -> Choice:
    """What a schedule costs in density and in error at all steps [step, candidate].

    Raises ValueError for a regime that wasn't measured.
    """
    candidates = measured.list_candidates()
    place = {str(one): i for i, one in enumerate([*candidates, on_grid(Regime(), measured.layout)])}
    names = [str(on_grid(regime, measured.layout, codes)) for regime in schedule.regimes]
    missing = [name for name in names if name not in place]
    if missing:
        raise ValueError(f"{missing[0]} was not measured")
    levels = torch.tensor(measured.levels, dtype=torch.float64)
    of_step = [place[names[i]] for i in schedule.regime_index(levels)]
    densities = [*(one.density for one in candidates), 1.0]
    errors = np.concatenate([errors, np.zeros((len(errors), 1))], 1)  # dense attention has none
    density, error = np.mean([densities[i] for i in of_step]), errors[range(len(of_step)), of_step].mean()
    return Choice(float(density), float(error), tuple(of_step))


def as_schedule(measured: Sensitivity, choice: Choice) -> StepSchedule:
    """With bounds halfway between two steps, so that no rounding of a sampler's levels moves one."""
    progress, candidates = measured.progress(), measured.list_candidates()
    first, regimes = zip(*((step, candidates[i].regime) for step, i in choice.stretches()), strict=True)
    bounds = tuple(float(f"{(progress[step - 1] + progress[step]) / 2:.4g}") for step in first[1:])
    return StepSchedule(bounds, regimes, measured.shift)
