"""The tables and the plot of docs/scale.md, by arithmetic, with measured points where docs/results has them.

python -m docs.make.scale --out docs/scale.png
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

from jsonargparse import auto_cli
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from eval.markdown import table
from fps_flex.wan.sequence import Call
from fps_flex.wan.traffic import Traffic, halo_traffic, ulysses_traffic
from train.common.pictures import save_figure

from .scaling import PLANS, RESULTS, Plan, beside_one, call_of, memory_gb, mfu, step_of

GPUS = (2, 4, 8, 16, 32, 64, 128, 256, 512)


def step_table() -> str:
    head = ("", "GPUs", "clips", "compute", "weights", "attention", "optimizer", "s a step", "tokens/s", "MFU")
    return table(head, (row for plan in PLANS for row in _step_rows(plan)))


def sizes_of(plan: Plan) -> list[int]:
    return [gpus for gpus in GPUS if gpus >= plan.sequence]


def _step_rows(plan: Plan) -> Iterator[tuple[str, ...]]:
    for i, gpus in enumerate(sizes_of(plan)):
        step, clips = step_of(plan, gpus), gpus // plan.sequence
        parts = (f"{x:.2f}" for x in (step.compute, step.weights, step.attention, step.optimizer))
        seconds = f"{step.best:.2f} to {step.worst:.2f}"
        tokens = [_three(clips * prod(plan.grid) / x) for x in (step.worst, step.best)]
        shares = [f"{mfu(plan, x):.2f}" for x in (step.worst, step.best)]
        name = plan.name if i == 0 else ""
        yield name, str(gpus), str(clips), *parts, seconds, " to ".join(tokens), " to ".join(shares)


def _three(value: float) -> str:
    """To three digits."""
    return f"{float(f'{value:.3g}'):,.0f}"


def memory_table() -> str:
    head = ("", "GPUs", "sequence", "state", "block inputs", "gathered", "a block's work", "GB a GPU")
    sizes_of_14b = ((4, 1), (4, 2), (4, 4), (8, 1), (8, 2), (8, 4), (64, 1), (64, 4))
    cases = ((PLANS[0], ((1, 1), (2, 1), (8, 1))), (PLANS[1], sizes_of_14b))
    rows = []
    for plan, sizes in cases:
        for gpus, sequence in sizes:
            parts = memory_gb(plan, gpus, sequence)
            rows.append((plan.name, gpus, sequence, *(f"{x:.1f}" for x in parts), f"{sum(parts):.0f}"))
    return table(head, rows)


def traffic_table() -> str:
    """MB that the busiest process gets in a layer, forward / backward."""
    head = ("", "sequence", "Ulysses", *(f"halo, {level.regime}" for level in PLANS[0].levels))
    rows = []
    for plan in PLANS:
        for processes in (2, 4, 8):
            calls = [call_of(plan, level) for level in plan.levels]
            halos = [_megabytes(halo_traffic, call, processes) for call in calls]
            rows.append((plan.name, processes, _megabytes(ulysses_traffic, calls[0], processes), *halos))
    return table(head, rows)


def _megabytes(count: Callable[[Call, int], Traffic], call: Call, processes: int) -> str:
    try:
        traffic = count(call, processes)
    except ValueError:
        return "not possible"
    return " / ".join(f"{max(x) / 1e6:,.0f}" for x in (traffic.forward, traffic.backward))


@dataclass(frozen=True)
class Point:
    """A step of `eval.bench train` on several GPUs, of a schedule's mix.

    shard: whether they share the weights out. one: seconds of one GPU's in the same run.
    """

    model: str
    way: str
    sequence: int
    shard: bool
    gpus: int
    seconds: float
    tokens_per_second: float
    one: float | None


def measured() -> list[Point]:
    reports = [json.loads(path.read_text()) for path in sorted(RESULTS.glob("train-*.json"))]
    return [point for report in reports for point in _points([x for x in report["rows"] if _is_ours(x)])]


def _is_ours(row: dict[str, Any]) -> bool:
    return row.get("regime") == "mix" and row["schedule"].startswith("fps") and not row["lora"]


def _points(rows: list[dict[str, Any]]) -> Iterator[Point]:
    """parallel: "shard 8" is a clip each, "ulysses 4" and "halo 4" four to a clip."""
    alone = [x["step_seconds"] for x in rows if x.get("parallel", "one") == "one"]
    for row in rows:
        way, _, number = row.get("parallel", "one").partition(" ")
        if way != "one":
            sequence = 1 if way == "shard" else int(number)
            how = (way, sequence, row.get("shard", True), sequence * row["clips"])
            figures = (row["step_seconds"], row["tokens_per_second"], alone[0] if alone else None)
            yield Point(row["model"], *how, *figures)


def comparison_table() -> str:
    """Seconds of a step on several GPUs, from those of one of them in the same run, beside what was measured."""
    head = ("", "GPUs", "how", "weights", "one GPU", "by arithmetic", "measured")
    plans = {plan.size: plan for plan in PLANS}
    rows = []
    for x in measured():
        if x.one is not None:
            plan = replace(plans[x.model], sequence=x.sequence)
            step = beside_one(plan, x.one, x.gpus, x.shard)
            said = f"{step.best:.2f} to {step.worst:.2f}"
            how = (x.gpus, f"`{x.way}`", "shared out" if x.shard else "in each")
            rows.append((plan.name, *how, f"{x.one:.2f}", said, f"{x.seconds:.2f}"))
    return table(head, rows)


def draw(axes: Axes, plan: Plan) -> None:
    """Tokens a second of each GPU, from none of the weights' exchange hidden to all of it."""
    sizes = sizes_of(plan)
    steps, tokens = [step_of(plan, gpus) for gpus in sizes], prod(plan.grid) / plan.sequence
    worst, best = ([tokens / getattr(step, kind) for step in steps] for kind in ("worst", "best"))
    axes.fill_between(sizes, worst, best, alpha=0.4, label="arithmetic: weights' exchange unhidden to hidden")
    points = [
        (x.gpus, x.tokens_per_second / x.gpus)
        for x in measured()
        if (x.model, x.sequence) == (plan.size, plan.sequence)
    ]
    if points:
        axes.plot(*zip(*points, strict=True), "o", color="#e76f51", label="measured, on H200s, one noise level a step")
    axes.set_xscale("log", base=2)
    axes.set(
        xlabel="H100s", ylabel="tokens a second a GPU", xticks=sizes, xticklabels=sizes, ylim=(0, 1.25 * max(best))
    )
    axes.set_title(f"{plan.name}, sequence {plan.sequence}", fontsize=10)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, loc="lower left")


def main(out: Path = Path("docs/scale.png")) -> None:
    """What training takes on many GPUs, by arithmetic: prints the tables of docs/scale.md, and draws its plot.

    Args:
        out: the PNG to write.
    """
    for text in (memory_table(), step_table(), comparison_table(), traffic_table()):
        print(text, end="\n\n")
    out.parent.mkdir(parents=True, exist_ok=True)
    figure = Figure(figsize=(10, 3.5), layout="constrained")
    for axes, plan in zip(figure.subplots(1, 2), PLANS, strict=True):
        draw(axes, plan)
    save_figure(figure, out)


if __name__ == "__main__":
    auto_cli(main)
