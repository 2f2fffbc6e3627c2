"""Scores of dimensions, from every video's own value, cached, by whatever computes it; what fails is named."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console

from train.common.atomic import digest_file
from train.common.console import check_writable
from train.common.videos import ClipError
from train.common.work import progress_bar

from . import flicker
from .cache import Cache, hash_text
from .check import Stock, find_usable, warn_of_strays
from .official import Outcome, Scorer, ScorerOptions, score_official
from .preflight import NEEDS, STATIC_FILTER, Readiness, check_all, describe_readiness
from .reading import NoFile, read_json, write_json
from .results import parse_ours
from .suite import DIMENSIONS, FLICKER, Plan, Planned
from .values import Result, mean, to_value, to_weight

log = logging.getLogger("fps_flex")
STATIC = 5  # videos of a prompt that the static filter keeps
NO_SCORER = ScorerOptions()


class Scoring:
    """What the dimensions of a run share."""

    def __init__(self, videos: Path, plan: Plan, out: Path, stock: Stock, scorer: Scorer | None, weights: Path):
        self.videos, self.plan, self.out, self.stock = videos, plan, out, stock
        self.scorer, self.weights = scorer, weights

    def score_official(self, dimension: str) -> Result:
        scorer = self._describe_scorer(dimension)
        wanted = self.plan.expected(dimension)
        outcome = self._ask(dimension, [{"name": v.name, "prompt": v.prompt} for v in self._usable(wanted)], scorer)
        left_out = sum(value is None for value, _ in outcome.results.values())
        note = [outcome.failure] if outcome.failure else []
        if left_out:
            note.append(f"videos that officially count for nothing, since no such object was seen: {left_out}")
        return self._finish(dimension, wanted, outcome, scorer, note)

    def score_flicker(self, static_filter: Readiness) -> Result:
        scorer = {"name": "native", "version": flicker.VERSION, "av": version("av")}
        wanted, outcome, note = self.plan.expected(FLICKER), Outcome(), []
        filtered = static_filter.ready
        if filtered:
            every = [video for video in self.plan.videos if FLICKER in video.dimensions]
            kept, errors, failure = self._choose_static(every)
            if failure:
                filtered, note = False, [f"the static filter failed: {failure}"]
            else:
                wanted, outcome.errors = every, errors
                scorer["static_filter"] = self._describe_scorer(STATIC_FILTER)
                short = sum(len(names) < STATIC for names in kept.values())
                note = [f"prompts with fewer than {STATIC} static videos: {short}"] if short else []
        names = [name for names in kept.values() for name in names] if filtered else [
            video.name for video in self._usable(wanted)]  # fmt: skip
        self._score_native(names, {name: scorer[name] for name in ("name", "version", "av")}, outcome)
        if not filtered:
            note.append("unfiltered: the official score is of static videos only")
        deep = sum(flicker.bits(self.videos / name) > 8 for name in outcome.results)
        if deep:
            note.append(f"videos of more than 8 bits, whose official score differs from the third digit on: {deep}")
        return self._finish(FLICKER, wanted, outcome, scorer, note, filtered)

    def score_nothing(self, readiness: Readiness) -> Result:
        """What was scored before stays, as long as the videos are the same."""
        dimension = readiness.dimension
        wanted, before = self.plan.expected(dimension), self._read_before(dimension)
        if before and before.score is not None and before.digest == self._digest(wanted):
            log.warning("%s can't be scored now, but was before, of the same videos: that score stays", dimension)
            return before
        failed = Outcome(failure="; ".join(readiness.problems))
        return self._finish(dimension, wanted, failed, {}, [failed.failure])

    def _choose_static(self, every: list[Planned]) -> tuple[dict[str, list[str]], dict[str, str], str | None]:
        """The first five static videos of each prompt, in the order of their names: "-10" before "-2", as officially.

        Also what went wrong, by name, and why the filter ended early, if it did.
        """
        scorer = self._describe_scorer(STATIC_FILTER)
        cache, usable = self._cache(STATIC_FILTER, scorer), sorted(self._usable(every), key=lambda video: video.name)
        items, counts = [], Counter()
        for video in usable:
            static, _ = cache.find(video.name, self.stock.hashes[video.name]) or (None, 1)
            if counts[video.prompt] < STATIC:
                items.append({"name": video.name, "prompt": video.prompt, "static": static})
            counts[video.prompt] += bool(static)
        outcome = self._ask(STATIC_FILTER, items, scorer)
        kept: dict[str, list[str]] = {video.prompt: [] for video in every}
        for video in usable:
            value, _ = outcome.results.get(video.name, (0.0, 1))
            if value and len(kept[video.prompt]) < STATIC:
                kept[video.prompt].append(video.name)
        return kept, outcome.errors, outcome.failure

    def _ask(self, dimension: str, items: list[dict[str, Any]], scorer: dict[str, Any]) -> Outcome:
        """The official package's values: those known, and what it says of the other videos now."""
        cache, hashes = self._cache(dimension, scorer), self.stock.hashes
        known = {item["name"]: cache.find(item["name"], hashes[item["name"]]) for item in items}
        known = {name: result for name, result in known.items() if result is not None}
        if dimension != STATIC_FILTER:  # which skips videos by what it knows of the others
            items = [item for item in items if item["name"] not in known]
        outcome = Outcome()
        if any(item["name"] not in known for item in items):
            with progress_bar() as progress:
                bar = progress.add_task(dimension, total=len(items))

                def keep(name: str, value: Any, weight: Any) -> None:
                    if value is not None:
                        value, weight = to_value(dimension, value), to_weight(weight)
                    cache.add(name, hashes[name], value, weight)
                    progress.advance(bar)

                log_file = self.out / "logs" / f"{dimension}.log"
                outcome = score_official(self.scorer, dimension, items, self.videos, self.weights, log_file, keep)
        outcome.results = {**known, **outcome.results}
        return outcome

    def _score_native(self, names: list[str], scorer: dict[str, Any], outcome: Outcome) -> None:
        cache = self._cache(FLICKER, scorer)
        with progress_bar() as progress:
            for name in progress.track(names, description=FLICKER):
                result = cache.find(name, self.stock.hashes[name])
                try:
                    if result is None:
                        result = flicker.score_flicker(self.videos / name), 1
                        cache.add(name, self.stock.hashes[name], *result)
                    outcome.results[name] = result
                except ClipError as error:
                    outcome.errors[name] = str(error).removeprefix(f"{self.videos / name}: ")

    def _finish(
        self,
        dimension: str,
        wanted: list[Planned],
        outcome: Outcome,
        scorer: dict[str, Any],
        note: list[str],
        filtered: bool | None = None,
    ) -> Result:
        """The mean over videos, each with its weight, as the official function takes it; written whole."""
        names = dict.fromkeys(video.name for video in wanted)
        errors = {name: reason for name, reason in {**self.stock.problems, **outcome.errors}.items() if name in names}
        if dimension != FLICKER and outcome.failure is None:
            unseen = self.stock.hashes.keys() & names.keys() - outcome.results.keys() - errors.keys()
            errors |= dict.fromkeys(sorted(unseen), "the official code did not look at it")
        counted = {name: outcome.results[name] for name in names if outcome.results.get(name, (None,))[0] is not None}
        videos = {name: float(value) for name, (value, _) in counted.items()}
        weights = {name: float(weight) for name, (_, weight) in counted.items()}
        weights = weights if len({*weights.values()}) > 1 else {}
        missing = [name for name in names if name not in self.stock.hashes or name in errors]
        left_out = [name for name, (value, _) in outcome.results.items() if value is None and name in names]
        if filtered:  # what it saw and didn't choose; it looks no further once it has five of a prompt
            left_out = [name for name in names if name not in videos and name not in missing]
        result = Result(
            dimension,
            mean(videos, weights) / DIMENSIONS[dimension].unit if videos else None,
            videos,
            bool(videos) and not missing and outcome.failure is None,
            tuple(missing),
            errors,
            filtered,
            scorer,
            "; ".join(note),
            self._digest(wanted),
            weights,
            tuple(left_out),
        )
        write_json(self._file(dimension), asdict(result))
        return result

    def _usable(self, wanted: Iterable[Planned]) -> list[Planned]:
        return [video for video in wanted if video.name in self.stock.hashes]

    def _cache(self, dimension: str, scorer: dict[str, Any]) -> Cache:
        return Cache(self.out / "cache", dimension, scorer)

    def _describe_scorer(self, dimension: str) -> dict[str, Any]:
        """All that a value depends on besides the video; what is cached is known by it."""
        files = {weight.path: digest_file(self.weights / weight.path) for weight in NEEDS[dimension][1]}
        versions = {name: number for name, number in self.scorer.versions.items() if name != "vbench"}
        return {"name": "vbench", "version": self.scorer.versions.get("vbench"), "device": self.scorer.device,
                "versions": versions, "weights": files}  # fmt: skip

    def _digest(self, wanted: Iterable[Planned]) -> str:
        return hash_text(json.dumps([[video.name, self.stock.hashes.get(video.name)] for video in wanted]))

    def _read_before(self, dimension: str) -> Result | None:
        try:
            return parse_ours(read_json(self._file(dimension)))
        except NoFile:
            return None
        except ValueError as error:
            log.warning("%s can't be used (%s): it is written again", self._file(dimension), error)
            return None

    def _file(self, dimension: str) -> Path:
        return self.out / f"{dimension}.json"


def score(
    videos: Path,
    plan: Plan,
    out: Path,
    dimensions: Iterable[str] | None = None,
    options: ScorerOptions = NO_SCORER,
) -> dict[str, Result]:
    """Score each dimension and write out/scores/{dimension}.json.

    What was scored before, of the same bytes and by the same scorer, is not done again. dimensions: some of the plan's;
    None for all. Raises ValueError where nothing can be done: no such folder, a dimension that isn't planned, a Python
    that can't be used, or a GPU that isn't there.
    """
    chosen = [name for name in plan.dimensions if dimensions is None or name in dimensions]
    unknown = [name for name in dimensions or () if name not in plan.dimensions]
    if unknown or not chosen:
        raise ValueError(f"dimensions {', '.join(unknown) or 'is empty'}: the plan has {', '.join(plan.dimensions)}")
    if not videos.is_dir():
        raise ValueError(f"no folder of videos {videos}: generate them first, or plan with another folder")
    check_writable(out / "scores", "--out")
    scorer, weights = options.open()
    checked, static_filter = check_all(chosen, scorer, weights)
    console = Console()
    print("\n".join(describe_readiness(checked, static_filter)))
    stock = find_usable(videos, (x.name for x in plan.videos if {*x.dimensions} & {*chosen}), out)
    warn_of_strays(videos, plan)
    run = Scoring(videos, plan, out / "scores", stock, scorer, weights)
    results = {}
    for one in checked:
        if one.dimension == FLICKER:
            result = run.score_flicker(static_filter)
        else:
            result = run.score_official(one.dimension) if one.ready else run.score_nothing(one)
        results[one.dimension] = result
        console.print(_describe(result), soft_wrap=True, highlight=False, markup=False)
    complete = sum(result.complete for result in results.values())
    console.print(f"{complete} of {len(results)} dimensions complete; all in {out / 'scores'}", soft_wrap=True)
    return results


def _describe(result: Result) -> str:
    if not result.scorer:
        return f"{result.dimension:<24}{'-':>8}  not scored: {result.note.split('; ')[0]}"
    value = "-" if result.score is None else f"{result.score:.4f}"
    parts = [f"{result.dimension:<24}{value:>8}  videos: {len(result.videos)}"]
    if result.missing:
        parts.append(f"incomplete, missing: {len(result.missing)}")
    parts += [result.note] if result.note else []
    parts += [f"{name}: {reason}" for name, reason in list(result.errors.items())[:3]]
    return "; ".join(parts)
