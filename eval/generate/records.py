"""The record of a video, the JSON beside it: what made it, and how that differs from what would make it now."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fps_flex.attention import with_earlier
from fps_flex.checks import show
from train.common.atomic import ELSEWHERE, digest_file, write_json

from ..timing import find_commit, name_device
from .models import TextToVideo, describe, find_fingerprints
from .sampling import build_scheduler, list_regimes, mean_density

if TYPE_CHECKING:
    from .jobs import Job, Settings

BEGINNING = '{"name":'  # of a record less its blanks, however short it was cut
NOTED = {"density", "versions", "machine", "seconds", "peak_gb", "processes", "sha256"}  # and not compared
OF_WEIGHTS = {"fingerprints", "trained_steps", "low_noise_trained_steps"}


@dataclass(frozen=True)
class Records:
    """Videos in a folder, and their records in that or another, of a model and settings.

    shared: what all records say of these.
    """

    model: TextToVideo
    settings: Settings
    videos: Path
    folder: Path
    shared: dict[str, Any]

    def video(self, job: Job) -> Path:
        return self.videos / f"{job.name}.mp4"

    def file(self, job: Job) -> Path:
        return self.folder / f"{job.name}.json"

    def say(self, job: Job) -> dict[str, Any]:
        return {**asdict(job), **self.shared}

    def write(self, job: Job, video: Path, seconds: float, peak_gb: float, processes: int) -> None:
        """video: where it lies before it takes its place, which comes after: so none is ever without its record.

        processes: that made it together. peak_gb: of one of them.
        """
        spent = {"seconds": round(seconds, 3), "peak_gb": round(peak_gb, 3), "processes": processes}
        made = {**spent, "sha256": digest_file(video)}
        for path in (self.file(job), self.video(job)):
            if path.is_dir():
                path.rmdir()
        write_json(self.file(job), {**self.say(job), **made})

    def why(self, job: Job, read_video: bool = True) -> str | None:
        """Why a video has to be made: what is wrong with it, or nothing where it isn't there; None where it is whole.

        read_video: look at its bytes too. Raises ValueError where making it would write over what isn't ours, or was
        made with other settings.
        """
        video, file = self.video(job), self.file(job)
        for path in (video, file):
            _check_replaceable(path)
        is_there = os.path.lexists(video)  # looked at first: another process may just be writing both
        if not os.path.lexists(file):
            if is_there:
                raise ValueError(f"{video} has no record that says what made it ({file}): {ELSEWHERE}")
            return ""
        made = read_record(file, self.say(job))
        if made is None:
            return f"{file} is broken: its video is made again"
        if not is_there:
            return ""
        if other := find_other_weights(video, made, self.say(job)):
            return f"{video} was made with {' and '.join(other)}: it is made again"
        if read_video and _digest(video) != made["sha256"]:
            return f"{video} has other bytes than its record says: it is made again (to keep it, stop and move it away)"
        return None

    def check_all(self, jobs: Iterable[Job]) -> None:
        """Raises ValueError as `why`, before any is made."""
        for job in jobs:
            self.why(job, read_video=False)

    def count_missing(self, jobs: Iterable[Job]) -> int:
        """Videos that are not there whole and as these settings make them."""
        missing = 0
        for job in jobs:
            try:
                missing += self.why(job) is not None
            except ValueError:
                missing += 1
        return missing


def open_records(model: TextToVideo, settings: Settings, out: Path, folder: Path | None = None) -> Records:
    """folder: of the records; None puts them beside the videos. Raises ValueError for broken encoders."""
    scheduler, layers = build_scheduler(settings.sampler, settings.steps, settings.shift), model.weights.config.layers
    versions = {name: version(name) for name in ("torch", "diffusers")}
    shared = {
        **asdict(settings),
        **describe(model),
        "regimes": list_regimes(model.attention, scheduler),
        "density": mean_density(model.attention, model.grid(settings.clip.size), scheduler, layers),
        "fingerprints": find_fingerprints(model),
        "versions": versions,
        "machine": {"device": name_device(), "commit": find_commit(), "versions": versions},
    }
    return Records(model, settings, out, folder or out, json.loads(json.dumps(shared)))


def read_record(file: Path, expected: dict[str, Any]) -> dict[str, Any] | None:
    """None for one that was cut or emptied. Raises ValueError for a file that is no record of a video.

    expected: what a record holds, at least.
    """
    try:
        text = file.read_bytes().decode(errors="replace").strip("\0 \r\n\t") if file.is_file() else ""
        record = json.loads(text) if text else None
    except OSError as error:
        raise ValueError(f"{file} can't be read ({error.strerror}): {ELSEWHERE}") from None
    except (ValueError, RecursionError):
        plain = "".join(text.split())[: len(BEGINNING)]
        record = None if BEGINNING.startswith(plain) else text
    if not record:
        return None
    if not isinstance(record, dict):
        raise ValueError(f"{file} is no record of a video, it holds {show(record)}: {ELSEWHERE}")
    lacking = [name for name in (*expected, "sha256") if name not in record]
    if lacking:
        raise ValueError(f"{file} is no record of a video that this version made, it lacks {lacking[0]}: {ELSEWHERE}")
    return record


def part_of(record: dict[str, Any], name: str) -> dict[str, Any]:
    """Of a record that anyone may have written: empty where it has none, or something else."""
    return part if isinstance(part := record.get(name), dict) else {}


def _digest(video: Path) -> str | None:
    """Raises ValueError for a file that can't be read."""
    try:
        return digest_file(video)
    except OSError as error:
        raise ValueError(f"{video} can't be read ({error.strerror}): {ELSEWHERE}") from None


def _check_replaceable(path: Path) -> None:
    """Raises ValueError for what is neither a file nor an empty folder."""
    is_empty = path.is_dir() and not path.is_symlink() and not any(path.iterdir())
    if path.exists() and not path.is_file() and not is_empty:
        raise ValueError(f"{path} is no file: {ELSEWHERE}")


@dataclass(frozen=True)
class Part:
    """Weights that a video depends on, less their LoRAs, of each of which the path, the strength and the fingerprint.

    path: where they lay. options: what else a configuration says of them.
    """

    path: str | None
    options: Any
    fingerprint: str | None
    loras: tuple[tuple[Any, ...], ...] = ()


def find_other_weights(video: Path, made: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """What weights and LoRAs a video was made with in place of those of now, in words.

    What moved is the same. Raises ValueError for other weights of another path, and for any other setting that differs.
    """
    were, are = _parts(made), _parts(now)
    changed = [name for name in are if were[name].fingerprint != are[name].fingerprint]
    _check_settings(video, made, now, changed)
    paths, loras = [are[name].path or name for name in changed], []
    for name, part in are.items():
        was, now_is = were[name].loras, part.loras
        if [x[:2] for x in was] == [x[:2] for x in now_is]:  # given as then: it is the files that are others
            paths += [x[0] for x, y in zip(was, now_is, strict=True) if x != y]
        elif [x[1:] for x in was] != [x[1:] for x in now_is]:
            noise = " for low noise" if name == "low_noise" else ""
            loras.append(f"another LoRA{noise} ({_name_loras(was)}, now {_name_loras(now_is)})")
    weights = f"other weights than are now in {' and '.join(dict.fromkeys(paths))}"
    return [*([weights] if paths else []), *loras]


def _check_settings(video: Path, made: dict[str, Any], now: dict[str, Any], changed: list[str]) -> None:
    """changed: names of parts with other weights. Raises ValueError where they lay elsewhere, or a setting differs."""
    were, are = _parts(made), _parts(now)
    made = {**made, "attention": with_earlier(made["attention"])}
    plain = [name for name in now if name not in {*NOTED, *OF_WEIGHTS, *are}]
    other = [name for name in plain if not says_the_same(made[name], now[name])]
    other += [name for name in are if not says_the_same(were[name].options, are[name].options)]
    other += [name for name in changed if were[name].path != are[name].path and name not in other]
    if other:
        was = ", ".join(f"{name} {made[name]} (now {now[name]})" for name in other)
        raise ValueError(f"{video} was made with {was}: choose another --out")


def _name_loras(loras: tuple[tuple[Any, ...], ...]) -> str:
    return " and ".join(f"{path}:{strength}" for path, strength, _ in loras) or "none"


def _parts(record: dict[str, Any]) -> dict[str, Part]:
    """By the name of the setting that says where they lie."""
    digests, parts = part_of(record, "fingerprints"), {}
    for name, key, added in (("checkpoint", "transformer", "loras"), ("low_noise", "low_noise", "low_noise_loras")):
        entries = said if isinstance(said := digests.get(added), list) else []
        loras = [(x.get("path"), x.get("strength"), x.get("fingerprint")) for x in entries if isinstance(x, dict)]
        alone = str(digests.get(key)).partition(", lora ")[0]
        parts[name] = Part(record[name], None, alone, tuple(loras))
    for name in ("codec", "text"):
        options = _flatten(record[name])
        parts[name] = Part(options.pop("path", None), options, digests.get(name))
    return parts


def _flatten(spec: Any) -> dict[str, Any]:
    """An encoder's kind and options; of a record that was written over, whatever it says."""
    if not (isinstance(spec, dict) and isinstance(spec.get("options"), dict)):
        return {"spec": spec}
    return {"kind": spec.get("kind"), **spec["options"]}


def says_the_same(one: Any, other: Any) -> bool:
    """Whether two values are the same JSON: to Python 1, 1.0 and true are equal, but as settings they differ."""
    return json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)
