"""What was measured and what is proposed, in words."""

from __future__ import annotations

from math import sqrt

import numpy as np

from fps_flex.quant import CodeFormat
from fps_flex.schedule import PRESETS

from ..markdown import table
from .errors import snr_db
from .fronts import Choice, pick_density
from .predict import LEAST, over_steps, predict
from .result import Sensitivity

ALIGN = "llrrrrr"


def percent(relative_mse: float) -> str:
    """Of the exact one's norm."""
    return f"{100 * sqrt(relative_mse):.2f} %"


def describe_candidates(measured: Sensitivity) -> str:
    """A line per candidate, by density, and where attention is most sensitive."""
    candidates = measured.list_candidates()
    mse, cosine = measured.velocity_mse, np.array(measured.velocity.cosine).mean(0)
    rows = []
    for i in sorted(range(len(candidates)), key=lambda i: (candidates[i].density, mse[:, i].mean())):
        mean, noise = mse[:, i].mean(), snr_db(mse[:, i].mean())
        worst = measured.steps[int(mse[:, i].argmax())]
        one = candidates[i]
        snr = "" if noise is None else f"{noise:.1f}"
        rows.append((one, one.kind, f"{one.density:.3f}", percent(mean), snr, f"{cosine[i]:.5f}", worst))
    head = ("candidate", "kind", "density", "velocity error", "SNR, dB", "cosine", "worst step")
    return f"{table(head, rows, ALIGN)}\n\n{describe_worst(measured)}"


def describe_worst(measured: Sensitivity) -> str:
    """Where each kind of candidate changes attention most, by the geometric mean over its candidates."""
    kinds = np.array([one.kind for one in measured.list_candidates()])
    lines = []
    for kind in dict.fromkeys(kinds):
        errors = np.exp(np.log(measured.attention_mse[:, kinds == kind].clip(LEAST)).mean(1))
        step, layer, head = np.unravel_index(errors.argmax(), errors.shape)
        lines.append(
            f"{kind}: attention changes most at step {measured.steps[step]}, layer {layer}, head {head}, by "
            f"{percent(errors[step, layer, head])} of its output, against {percent(np.median(errors))} in the median"
        )
    return "\n".join(lines)


def compare_presets(measured: Sensitivity, front: list[Choice], codes: CodeFormat) -> list[tuple[str, ...]]:
    """A row per preset: its density and error, and the least error at that density."""
    rows, errors = [], over_steps(measured, measured.velocity_mse)
    for name, schedule in PRESETS.items():
        if not schedule.is_dense:
            own = predict(measured, errors, schedule, codes)
            best = pick_density(front, own.density)
            rows.append((name, f"{own.density:.3f}", percent(own.error), percent(best.error) if best else "none"))
    return rows
