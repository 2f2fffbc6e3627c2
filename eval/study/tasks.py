"""A study as tasks, each a command of this project, with what it needs and what it leaves."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from ..reading import NoFile
from ..sensitivity.propose import propose
from .base import CODEC, WEIGHTS, export_base, write_checkpoint
from .config import BASE, DOOM, MEASURED, PROPOSED, SHAPES, Plan, plain, read_made, read_yaml

LINEAR = "fps_flex.wan.linear_codec.LinearCodec"
PROPOSAL = "search/schedule.yaml"  # what the study finds, once it has
CONFIGURATION = "configuration.json"  # of the study that a folder holds


@dataclass(frozen=True)
class Task:
    """words: of `python -m`; empty where `call` does it in this process. needs: names of others. leaves: what is there
    once it is done. also: what is there for those that need it. row: that it is of. wanted: for its own sake.
    batch: clips of a training step, which GPUs share out; None takes one GPU.
    """

    name: str
    words: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()
    leaves: tuple[Path, ...] = ()
    also: tuple[Path, ...] = ()
    call: Callable[[], None] | None = field(default=None, compare=False)
    row: str | None = None
    wanted: bool = False
    batch: int | None = None

    def most(self, devices: int) -> int:
        """Of so many GPUs, those that can share it."""
        return max(n for n in range(1, devices + 1) if n == 1 or (self.batch and self.batch % n == 0))

    def on(self, devices: int) -> Task:
        """It on so many GPUs, which make the same steps as one."""
        if self.batch is None or devices == 1:
            return self
        shared = (
            f"--trainer.devices={devices}",
            f"--data.batch_size={self.batch // devices}",
            "--parallel.shard=false",
        )
        return replace(self, words=(*self.words, *shared))

    def record_file(self, out: Path) -> Path:
        return out / "tasks" / f"{self.name}.json"

    def record(self, out: Path) -> dict[str, Any]:
        """Whether it is done, the seconds that it took so far, and its command."""
        try:
            return read_made(self.record_file(out), "done", "seconds")
        except NoFile:
            return {"done": False, "seconds": 0.0}

    def is_done(self, out: Path, needed: bool = False) -> bool:
        """needed: by another one that isn't."""
        return self.record(out)["done"] and all(
            path.exists() for path in (*self.leaves, *(self.also if needed else ()))
        )


def list_tasks(plan: Plan, seeds: list[int]) -> dict[str, Task]:
    """All of a study, by name; each after what it needs, and trainings first, which take longest."""
    once = [name for name, row in plan.rows.items() if row.weights == BASE]
    tasks = [*_list_common(plan), *(_measure(plan, name, 0) for name in once), *_list_search(plan)]
    for seed in seeds:
        tasks += [_train(plan, name, seed) for name in plan.study.trained]
        tasks += [_measure(plan, name, seed) for name in plan.rows if name not in once]
    return {task.name: task for task in tasks}


def _list_common(plan: Plan) -> Iterator[Task]:
    """Clips, codec and pretraining, from which all rows begin; and what is measured of real clips."""
    study, out, data, codec = plan.study, plan.out, _data(plan), ("codec",) if plan.study.codec else ()
    if data:
        drawn = {"out": plan.folder, **plain(study.data), **plain(study.clip)}
        drawn.pop("source")
        yield Task("data", ("train.doom", *_options(drawn)), leaves=(out / "data/metadata.jsonl",))
    if study.codec:
        options = {"folder": plan.folder, "out": out / CODEC, **plain(study.codec), **plain(study.clip)}
        options |= {"val_clips": study.data.val_clips, "seed": study.data.seed}
        yield Task("codec", ("train.codec", *_options(options)), data, (out / CODEC,))
    stages = [*_pretrain(plan, (*data, *codec))]
    yield from stages
    export, write = partial(export_base, plan), partial(write_checkpoint, plan)
    yield Task("export", (), (stages[-1].name, *codec), (out / WEIGHTS,), call=export, wanted=True)
    yield Task("base", (), ("export", *codec), (plan.checkpoint(BASE, 0),), call=write)
    leaves = tuple(out / "real" / name for name in (MEASURED, "features.npz", "classifier.pt", "search-prompts.txt"))
    yield Task("real", _measuring(plan, "real", 0), (*data, "base"), leaves, wanted=True)


def _pretrain(plan: Plan, needs: tuple[str, ...]) -> Iterator[Task]:
    """A run for each configuration, from the weights of the one before; the last is of the study's own clips."""
    start: dict[str, Any] = {}
    for file, run in zip(plan.study.pretraining, plan.pretraining_runs, strict=True):
        loader = read_yaml(file).get("data")  # what it is else train.fit refuses
        said = loader if isinstance(loader, dict) else {}
        own = {f"data.{name}" for name in said} if run.name != BASE else set()
        options = {name: value for name, value in _clips(plan).items() if name not in own} | _codec(plan) | start
        last, name = run / "checkpoints/last.ckpt", run.name.replace(BASE, "pretrain")
        batch = said.get("batch_size")
        shared = batch if type(batch) is int else None  # else on one GPU, or train.fit's to refuse
        yield Task(name, _fit(run, [file], options), needs, (last,), batch=shared)
        start, needs = {"model.checkpoint": last}, (name,)


def _list_search(plan: Plan) -> Iterator[Task]:
    """What eval.sensitivity finds on the base, and the schedule that it proposes."""
    search, folder = plan.study.search, plan.out / "search"
    options = {
        "checkpoint": plan.checkpoint(BASE, 0), "prompts": plan.out / "real/search-prompts.txt", "out": folder,
        "steps": plan.study.measures.steps, "every": search.every, "sampler": "euler", "guidance": 1,
        "windows": search.windows, "granularities": search.granularities,
        **({"encoders": plan.out / CODEC} if plan.study.codec else {}),
        **{f"attention.{name}": getattr(search.attention, name) for name in ("tile", "block", "engine")},
    }  # fmt: skip
    words = ("eval.sensitivity", *_options(options))
    yield Task("search", words, ("base", "real"), (folder / "sensitivity.json",), wanted=True)
    call = partial(propose, folder, budget=search.budget)
    yield Task("propose", (), ("search",), (folder / "schedule.yaml",), call=call, wanted=True)


def _train(plan: Plan, name: str, seed: int) -> Task:
    """A row's fine-tuning from the common base."""
    row = plan.rows[name]
    own = {"model.checkpoint": plan.checkpoint(BASE, 0), "seed_everything": seed, **plan.study.finetuning}
    if row.attention == PROPOSED:  # which says no engine: what the search ran on, it does too
        own["model.attention.engine"] = plan.study.search.attention.engine
    elif row.attention is not None:
        own["model.attention"] = plain(row.attention)
    configs = [plan.study.pretraining[-1], *([plan.out / PROPOSAL] if row.attention == PROPOSED else [])]
    words = _fit(plan.run(name, seed), configs, {**_clips(plan), **_codec(plan), **own, **row.options})
    needs = (*_data(plan), "base", *(("propose",) if row.attention == PROPOSED else ()))
    return Task(f"train-{name}-seed{seed}", words, needs, (plan.checkpoint(name, seed),))


def _measure(plan: Plan, name: str, seed: int) -> Task:
    """Of a row; its videos are compared with those of the row that has the same weights as they were trained."""
    weights, row = plan.rows[name].weights or name, plan.row(name, seed)
    needs = ["base", "real"] if weights == BASE else [f"train-{weights}-seed{seed}"]
    needs += [_measured(plan, plan.against(name), seed)] if name != BASE else []
    words, videos = _measuring(plan, name, seed), (row / "videos",)
    name_of_task = _measured(plan, name, seed)
    return Task(name_of_task, words, (*_data(plan), *needs), (row / MEASURED,), videos, row=name, wanted=True)


def _measured(plan: Plan, name: str, seed: int) -> str:
    """A task's name; rows of the base's weights are measured once."""
    return f"measure-{name}" if plan.rows[name].weights == BASE else f"measure-{name}-seed{seed}"


def _measuring(plan: Plan, what: str, seed: int) -> tuple[str, ...]:
    options = {"config": plan.out / CONFIGURATION, "out": plan.out, "measure": what, "seeds": str(seed)}
    return ("eval.study", *_options(options))


def _fit(run: Path, configs: list[str | Path], options: dict[str, Any]) -> tuple[str, ...]:
    words = ("train.fit", f"--run={run}", "--ckpt_path=last-if-any")
    return (*words, *(f"--config={Path(file).resolve()}" for file in configs), *_options(options))


def _clips(plan: Plan) -> dict[str, Any]:
    """Options of train.fit: the study's clips."""
    study, options = plan.study, {f"data.{name}": value for name, value in plain(plan.study.clip).items()}
    options |= {"data.seed": study.data.seed, "data.val_clips": study.data.val_clips}
    drawn = {"data.train_clips": study.data.clips}
    return options | (drawn if study.data.source == SHAPES else {"data.folder": plan.folder})


def _codec(plan: Plan) -> dict[str, Any]:
    """Likewise: the codec that the study fits, if it does."""
    fitted = {"class_path": LINEAR, "init_args": {"path": str(plan.out / CODEC)}}
    return {"model.codec": fitted} if plan.study.codec else {}


def _data(plan: Plan) -> tuple[str, ...]:
    return ("data",) if plan.study.data.source == DOOM else ()


def _options(values: dict[str, Any]) -> tuple[str, ...]:
    """Words of a command line; what is no text is written as JSON, which YAML reads too."""
    return tuple(f"--{name}={x if isinstance(x, (str, Path)) else json.dumps(x)}" for name, x in values.items())
