"""Scores of dimensions, from every video's own value, cached, by whatever computes it; what fails is named."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from train.common.atomic import digest_content, digest_file
from train.common.console import check_writable
from train.common.videos import ClipError
from train.common.work import progress_bar

from ..reading import NoFile, read_json, write_json
from . import flicker
from .cache import Cache
from .check import find_usable
from .official import Outcome, Scorer, ScorerOptions, score_official
from .plan import choose_dimensions
from .preflight import check_all, describe_readiness
from .results import parse_ours
from .suite import DIMENSIONS, FLICKER, Plan, Planned
from .values import Result, add_note, group, mean, to_value, to_weight
from .weights import NEEDS, STATIC_FILTER

log = logging.getLogger("fps_flex")
STATIC = 5  # videos of a prompt that the static filter keeps
NO_SCORER = ScorerOptions()
Kept = dict[str, list[str]]  # names of static videos, by prompt


@dataclass(frozen=True)
class Scoring:
    """What the dimensions of a run share. out: for the scores. hashes, problems: as of `find_usable`."""

    videos: Path
    plan: Plan
    out: Path
    hashes: dict[str, str]
    problems: dict[str, str]
    scorer: Scorer | None

    def score_official(self, dimension: str) -> Result:
        scorer, wanted = self._describe_scorer(dimension), self.plan.expected(dimension)
        outcome = self._ask(dimension, [{"name": v.name, "prompt": v.prompt} for v in self._usable(wanted)], scorer)
        left_out = sum(value is None for value, _ in outcome.results.values())
        if left_out:
            outcome.notes.append(f"videos that officially count for nothing, since no such object was seen: {left_out}")
        return self._finish(dimension, wanted, outcome, scorer)

    def score_flicker(self, filtered: bool) -> Result:
        """filtered: whether the static filter can be used."""
        native = {"name": "native", "version": flicker.VERSION, "av": version("av")}
        kept, chosen = self._choose_static() if filtered else ({}, Outcome())
        notes = [f"the static filter failed: {chosen.failure}"] if chosen.failure else []
        if filtered := filtered and not chosen.failure:
            scorer = {**native, "static_filter": self._describe_scorer(STATIC_FILTER)}
            wanted, names = self.plan.of(FLICKER), [name for names in kept.values() for name in names]
            outcome, short = Outcome(errors=chosen.errors), sum(len(names) < STATIC for names in kept.values())
            notes += [f"prompts with fewer than {STATIC} static videos: {short}"] if short else []
        else:
            scorer, wanted, outcome = native, self.plan.expected(FLICKER), Outcome()
            names = [video.name for video in self._usable(wanted)]
            notes.append("unfiltered: the official score is of static videos only")
        self._score_native(names, native, outcome)
        if deep := sum(flicker.bits(self.videos / name) > 8 for name in outcome.results):
            notes.append(f"videos of more than 8 bits, whose official score differs from the third digit on: {deep}")
        outcome.notes = notes
        return self._finish(FLICKER, wanted, outcome, scorer, filtered)

    def score_nothing(self, dimension: str, problems: Iterable[str]) -> Result:
        """What was scored before stays, as long as the videos are the same."""
        wanted, before = self.plan.expected(dimension), self._read_before(dimension)
        if before and before.score is not None and before.digest == self._digest(wanted):
            log.warning("%s can't be scored now, but was before, of the same videos: that score stays", dimension)
            return before
        return self._finish(dimension, wanted, Outcome(failure="; ".join(problems)), {})

    def _choose_static(self) -> tuple[Kept, Outcome]:
        """The first five static videos of each prompt, in the order of their names: "-10" before "-2", as officially.

        Also what the filter said.
        """
        scorer, every = self._describe_scorer(STATIC_FILTER), self.plan.of(FLICKER)
        cache, usable = self._cache(STATIC_FILTER, scorer), sorted(self._usable(every), key=lambda video: video.name)
        items, counts = [], Counter()
        for video in usable:
            static, _ = cache.find(video.name, self.hashes[video.name]) or (None, 1)
            if counts[video.prompt] < STATIC:
                items.append({"name": video.name, "prompt": video.prompt, "static": static})
            counts[video.prompt] += bool(static)
        outcome = self._ask(STATIC_FILTER, items, scorer)
        static = group((x.prompt, x.name) for x in usable if outcome.results.get(x.name, (0.0, 1))[0])
        return {video.prompt: static.get(video.prompt, [])[:STATIC] for video in every}, outcome

    def _ask(self, dimension: str, items: list[dict[str, Any]], scorer: dict[str, Any]) -> Outcome:
        """The official package's values: those known, and what it says of the other videos now."""
        cache = self._cache(dimension, scorer)
        found = {item["name"]: cache.find(item["name"], self.hashes[item["name"]]) for item in items}
        known = {name: result for name, result in found.items() if result is not None}
        if len(known) == len(items):
            return Outcome(known)
        if dimension != STATIC_FILTER:  # which skips videos by what it knows of the others
            items = [item for item in items if item["name"] not in known]
        with progress_bar() as progress:
            bar = progress.add_task(dimension, total=len(items))

            def keep(name: str, value: Any, weight: Any) -> None:
                if value is not None:
                    value, weight = to_value(dimension, value), to_weight(weight)
                cache.add(name, self.hashes[name], value, weight)
                progress.advance(bar)

            log_file = self.out / "logs" / f"{dimension}.log"
            outcome = score_official(self.scorer, dimension, items, self.videos, log_file, keep)
        outcome.results = {**known, **outcome.results}
        return outcome

    def _score_native(self, names: list[str], scorer: dict[str, Any], outcome: Outcome) -> None:
        cache = self._cache(FLICKER, scorer)
        with progress_bar() as progress:
            for name in progress.track(names, description=FLICKER):
                result = cache.find(name, self.hashes[name])
                try:
                    if result is None:
                        result = flicker.score_flicker(self.videos / name), 1
                        cache.add(name, self.hashes[name], *result)
                    outcome.results[name] = result
                except ClipError as error:
                    outcome.errors[name] = str(error).removeprefix(f"{self.videos / name}: ")

    def _finish(
        self, dimension: str, wanted: list[Planned], said: Outcome, scorer: dict[str, Any], filtered: bool | None = None
    ) -> Result:
        """The mean over videos, each with its weight, as the official function takes it; written whole."""
        names = dict.fromkeys(video.name for video in wanted)
        errors = {name: reason for name, reason in {**self.problems, **said.errors}.items() if name in names}
        if dimension != FLICKER and said.failure is None:
            unseen = self.hashes.keys() & names.keys() - said.results.keys() - errors.keys()
            errors |= dict.fromkeys(sorted(unseen), "the official code did not look at it")
        counted = {name: said.results[name] for name in names if said.results.get(name, (None,))[0] is not None}
        videos = {name: float(value) for name, (value, _) in counted.items()}
        weights = {name: float(weight) for name, (_, weight) in counted.items()}
        weights = weights if len({*weights.values()}) > 1 else {}
        missing = [name for name in names if name not in self.hashes or name in errors]
        left_out = [name for name, (value, _) in said.results.items() if value is None and name in names]
        if filtered:  # what it saw and didn't choose; it looks no further once it has five of a prompt
            left_out = [name for name in names if name not in videos and name not in missing]
        result = Result(
            dimension,
            mean(videos, weights) / DIMENSIONS[dimension].unit if videos else None,
            videos,
            bool(videos) and not missing and said.failure is None,
            tuple(missing),
            errors,
            filtered,
            scorer,
            note=add_note(said.failure or "", *said.notes),
            digest=self._digest(wanted),
            weights=weights,
            left_out=tuple(left_out),
        )
        write_json(self.out / f"{dimension}.json", asdict(result))
        return result

    def _usable(self, wanted: Iterable[Planned]) -> list[Planned]:
        return [video for video in wanted if video.name in self.hashes]

    def _cache(self, dimension: str, scorer: dict[str, Any]) -> Cache:
        return Cache(self.out / "cache", dimension, scorer)

    def _describe_scorer(self, dimension: str) -> dict[str, Any]:
        """All that a value depends on besides the video; what is cached is known by it."""
        versions = dict(self.scorer.versions)
        files = {weight.path: digest_file(self.scorer.weights / weight.path) for weight in NEEDS[dimension][1]}
        return {"name": "vbench", "version": versions.pop("vbench", None), "device": self.scorer.device,
                "versions": versions, "weights": files}  # fmt: skip

    def _digest(self, wanted: Iterable[Planned]) -> str:
        return digest_content(json.dumps([[video.name, self.hashes.get(video.name)] for video in wanted]))

    def _read_before(self, dimension: str) -> Result | None:
        file = self.out / f"{dimension}.json"
        try:
            return parse_ours(read_json(file, dict[str, Any]))
        except NoFile:
            return None
        except ValueError as error:
            log.warning("%s can't be used (%s): it is written again", file, error)
            return None


def score(
    videos: Path, plan: Plan, out: Path, dimensions: Iterable[str] | None = None, options: ScorerOptions = NO_SCORER
) -> dict[str, Result]:
    """Score each dimension and write out/scores/{dimension}.json.

    What was scored before, of the same bytes and by the same scorer, is not done again. dimensions: some of the plan's;
    None for all. Raises ValueError where nothing can be done: no such folder, a dimension that isn't planned, a Python
    that can't be used, or a GPU that isn't there.
    """
    chosen = choose_dimensions(dimensions, plan.dimensions, "the plan has")
    if not videos.is_dir():
        raise ValueError(f"no folder of videos {videos}: generate them first, or plan with another folder")
    check_writable(out / "scores", "--out")
    scorer = options.open()
    checked = check_all(chosen, scorer)
    print("\n".join(describe_readiness(checked)))
    run, results = Scoring(videos, plan, out / "scores", *find_usable(videos, plan, chosen, out), scorer), {}
    for name, one in checked.items():
        if name == FLICKER:
            results[name] = run.score_flicker(one.ready)
        else:
            results[name] = run.score_official(name) if one.ready else run.score_nothing(name, one.problems)
        print(_describe(results[name]), flush=True)
    complete = sum(result.complete for result in results.values())
    print(f"{complete} of {len(results)} dimensions complete; all in {out / 'scores'}")
    return results


def _describe(result: Result) -> str:
    if not result.scorer:
        return f"{result.dimension:<24}{'-':>8}  not scored: {result.note.split('; ')[0]}"
    value = "-" if result.score is None else f"{result.score:.4f}"
    parts = [f"{result.dimension:<24}{value:>8}  videos: {len(result.videos)}"]
    parts += [f"incomplete, missing: {len(result.missing)}"] if result.missing else []
    parts += [result.note] if result.note else []
    return "; ".join([*parts, *(f"{name}: {reason}" for name, reason in [*result.errors.items()][:3])])
