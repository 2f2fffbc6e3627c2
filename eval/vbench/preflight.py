"""What the scorer's environment and the weights on disk lack, by dimension, and a script that fetches the files."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from shlex import quote

from fps_flex.checks import at_home
from train.common.atomic import check_ours
from train.common.console import check_writable

from ..reading import write_plainly
from .official import Scorer, find_weights, open_scorer
from .plan import choose_dimensions
from .suite import FLICKER
from .values import group
from .weights import EVERY, NEEDS, Weight, show_bytes

DETECTRON2 = "-m pip install --no-build-isolation git+https://github.com/facebookresearch/detectron2"
NO_SCORER = "needs --scorer_python"
SCRIPT = Path(__file__).with_name("fetch.sh")  # less the files


@dataclass(frozen=True)
class Readiness:
    """Whether a dimension can be scored, and what is missing if not. files, packages: those missing or wrong."""

    problems: tuple[str, ...]
    files: tuple[Weight, ...] = ()
    packages: tuple[str, ...] = ()

    @property
    def ready(self) -> bool:
        return not self.problems

    def summarise(self) -> str:
        """What is missing, in a few words."""
        packages = [f"package {', '.join(self.packages)}"] if self.packages else []
        files = [f"{len(self.files)} file{'s' if len(self.files) > 1 else ''}"] if self.files else []
        return "; ".join(packages + files) or NO_SCORER


def check(dimension: str, scorer: Scorer | None) -> Readiness:
    """Of a dimension as the official package scores it, or of the static filter, which temporal_flickering takes."""
    if scorer is None:
        how = "the Python of an environment with vbench (python -m eval.vbench setup-scorer DIR makes one)"
        return Readiness((f"{NO_SCORER}, {how}",))
    packages, files = NEEDS[dimension]
    absent = tuple(name for name in (*EVERY, *packages) if not scorer.packages.get(name))
    problems = [f"missing package {name} in the environment of {scorer.python}" for name in absent]
    problems += [f"detectron2 is left to you: {scorer.python} {DETECTRON2}"] if "detectron2" in absent else []
    wrong = {file: problem for file in files if (problem := file.find_problem(scorer.weights))}
    return Readiness((*problems, *wrong.values()), (*wrong,), absent)


def check_all(dimensions: Iterable[str], scorer: Scorer | None) -> dict[str, Readiness]:
    return {name: check(name, scorer) for name in dimensions}


def describe_readiness(checked: dict[str, Readiness]) -> list[str]:
    """What can be scored: a line a dimension, and one for all files that are missing."""
    lines = ["what can be scored:"]
    for name, one in checked.items():
        how = "ready" if one.ready else f"no: {one.summarise()}"
        if name == FLICKER:
            how = "ready, with the static filter" if one.ready else f"ready, unfiltered ({one.summarise()})"
        lines.append(f"  {name:<24}{how}")
    missing = dict.fromkeys(file for one in checked.values() for file in one.files)
    return lines + ([f"{_count(missing)}: python -m eval.vbench weights lists them"] if missing else [])


def _count(missing: Collection[Weight]) -> str:
    """How many, and of what size together."""
    files = "1 file is" if len(missing) == 1 else f"{len(missing)} files are"
    return f"{files} missing or wrong (about {show_bytes(sum(file.bytes for file in missing))})"


def weights_command(
    dimensions: list[str] | None = None,
    scorer_python: Path | None = None,
    scorer_weights: Path | None = None,
    script: Path | None = None,
) -> None:
    """List the files that are missing for scoring: where each is from, its size, where it goes and what needs it.

    Args:
        dimensions: some of the sixteen; none takes all.
        scorer_python: Python of the scorer's environment, to list packages that it lacks too.
        scorer_weights: VBench's folder of weights; none takes $VBENCH_CACHE_DIR, or ~/.cache/vbench.
        script: also write a shell script that fetches the files, with curl, and unzip and git where they are needed.
    """
    folder, chosen = find_weights(scorer_weights), choose_dimensions(dimensions)
    if scorer_python is not None:
        print("\n".join(_describe_packages(chosen, open_scorer(scorer_python, "auto", folder))))
    missing = find_missing(chosen, folder)
    lines = describe_missing(missing, folder)
    if script is not None:
        script = at_home(script)
        check_writable(script.parent, "--script")
        check_ours(script, "python -m eval.vbench weights", "choose another --script")
        write_plainly(script, write_script(missing, folder))
        lines.append(f"wrote {script}: sh {quote(str(script))} fetches what is missing")
    print("\n".join(lines))


def find_missing(dimensions: Iterable[str], folder: Path) -> dict[Weight, list[str]]:
    """Each file that is missing or wrong, in the order of the dimensions, and the dimensions that need it."""
    needed = group((file, name) for name in dimensions for file in NEEDS[name][1])
    return {file: names for file, names in needed.items() if file.find_problem(folder)}


def _describe_packages(dimensions: tuple[str, ...], scorer: Scorer) -> list[str]:
    lacking = group((x, name) for name, one in check_all(dimensions, scorer).items() for x in one.packages)
    lines = [f"missing package {package}, for {', '.join(names)}" for package, names in lacking.items()]
    if "detectron2" in lacking:
        lines.append(f"  detectron2 is left to you: {scorer.python} {DETECTRON2}")
    return lines or [f"no package is missing in the environment of {scorer.python}"]


def describe_missing(missing: dict[Weight, list[str]], folder: Path) -> list[str]:
    if not missing:
        return [f"no file is missing in {folder}"]
    lines = []
    for file, names in missing.items():
        problem = file.find_problem(folder)
        kinds = {"zip": f" (a zip, of which {file.member} is taken)", "git": " (git clone of the folder)", "file": ""}
        lines += [
            f"{folder / file.path}" + ("" if problem.startswith("missing") else f"  {problem}"),
            f"  from  {file.source}{kinds[file.how]}",
            f"  size  {file.describe_size()}",
            f"  for   {', '.join(names)}",
        ]
    return [*lines, f"{_count(missing)}; nothing is downloaded by this command"]


def write_script(missing: Iterable[Weight], folder: Path) -> str:
    """POSIX sh, with every name quoted."""
    lines = []
    for file in missing:
        path = folder / file.path
        if file.how == "git":
            call = ["clone", file.source, str(path.parent), path.name]
        else:
            size = "" if file.size is None else str(file.size)
            call = ["fetch", file.source, str(path), size, str(file.bytes), file.sha256]
            call += [file.member] if file.how == "zip" else []
        lines.append(" ".join([call[0], *map(quote, call[1:])]) + " || failed=$((failed + 1))\n")
    kinds = {file.how for file in missing}
    tools = [tool for tool, of in (("curl", {"file", "zip"}), ("unzip", {"zip"}), ("git", {"git"})) if kinds & of]
    needs = f"needs {' '.join(tools)}\n" if tools else ""
    return SCRIPT.read_text(encoding="utf-8").replace("# FILES\n", needs + "".join(lines))
