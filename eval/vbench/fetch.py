"""The files that are missing for scoring, and a shell script that fetches them. Nothing here fetches anything."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from shlex import quote

from fps_flex.checks import at_home
from train.common.atomic import check_ours
from train.common.console import check_writable

from .official import open_scorer
from .plan import choose_dimensions
from .preflight import DETECTRON2, check_all
from .reading import write_plainly
from .score import find_weights
from .suite import FLICKER
from .weights import NEEDS, STATIC_FILTER, Weight, show_bytes

SCRIPT = """\
#!/bin/sh
# Fetches the files that VBench's scorers lack, from where the official code has them. Written by
# python -m eval.vbench weights. Run again, it fetches only what is still missing.
set -u
failed=0

say() { printf '%s\\n' "$*" >&2; }

sum_of() {
    if command -v sha256sum >/dev/null 2>&1; then sha256sum <"$1"; else shasum -a 256 <"$1"; fi | cut -c 1-64
}

# is_right FILE EXACT_SIZE LEAST_SIZE SHA256; an empty size or checksum isn't known
is_right() {
    bytes=$(wc -c <"$1" | tr -d ' ')
    if [ -n "$2" ] && [ "$bytes" -ne "$2" ]; then say "wrong size: $1 has $bytes bytes, expected $2"; return 1; fi
    if [ "$bytes" -lt "$3" ]; then say "wrong size: $1 has $bytes bytes, expected $3 at least"; return 1; fi
    if [ -n "$4" ]; then
        sum=$(sum_of "$1")
        case $sum in "$4"*) ;; *) say "wrong checksum: $1 has sha256 $sum, expected $4"; return 1 ;; esac
    fi
}

# fetch URL FILE EXACT_SIZE LEAST_SIZE SHA256 [MEMBER of the zip that lies at URL]
fetch() {
    if [ -f "$2" ] && is_right "$2" "$3" "$4" "$5"; then say "there already: $2"; return 0; fi
    say "fetching $2"
    mkdir -p "$(dirname "$2")" || return 1
    if [ $# -eq 6 ]; then
        get "$1" "$2.zip.part" || return 1
        unzip -p "$2.zip.part" "$6" >"$2.part"
    else
        get "$1" "$2.part" || return 1
    fi && is_right "$2.part" "$3" "$4" "$5" && mv -f "$2.part" "$2"
    result=$?
    rm -f "$2.part" "$2.zip.part"
    return $result
}

# get URL FILE; goes on with what an earlier try, or one that was stopped, left of the file
get() {
    curl -L --fail --retry 3 -C - -o "$2" "$1" && return 0
    result=$?
    case $result in 33 | 36) ;; *) [ "$result" -ne 22 ] || rm -f "$2"; return $result ;; esac
    rm -f "$2"  # this server can't go on in the middle
    curl -L --fail --retry 3 -o "$2" "$1"
}

# needs TOOL...
needs() {
    for tool in "$@"; do
        command -v "$tool" >/dev/null 2>&1 || { say "error: needs $tool, which isn't there: install it first"; exit 1; }
    done
}

# clone URL FOLDER FILE_THAT_IT_HAS
clone() {
    if [ -f "$2/$3" ]; then say "there already: $2"; return 0; fi
    if [ -e "$2" ]; then say "$2 is there without $3: remove it first"; return 1; fi
    say "cloning $2"
    mkdir -p "$(dirname "$2")" && rm -rf "$2.part" && git clone --depth 1 "$1" "$2.part" &&
        [ -f "$2.part/$3" ] && mv "$2.part" "$2" && return 0
    rm -rf "$2.part"
    return 1
}

"""
END = """
if [ "$failed" -gt 0 ]; then say "error: $failed could not be fetched"; exit 1; fi
say "all there"
"""


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
        print("\n".join(_describe_packages(chosen, scorer_python, folder)))
    missing = find_missing(chosen, folder)
    lines = describe_missing(missing, chosen, folder)
    if script is not None:
        script = at_home(script)
        check_writable(script.parent, "--script")
        check_ours(script, "python -m eval.vbench weights", "choose another --script")
        write_plainly(script, write_script(missing, folder))
        lines.append(f"wrote {script}: sh {quote(str(script))} fetches what is missing")
    print("\n".join(lines))


def find_missing(dimensions: Iterable[str], folder: Path) -> list[Weight]:
    """Each file that is missing or of a wrong size, once, in the order of the dimensions."""
    needed = dict.fromkeys(file for name in dimensions for file in _list_files(name))
    return [file for file in needed if file.find_problem(folder)]


def _list_files(dimension: str) -> tuple[Weight, ...]:
    """temporal_flickering needs what its static filter does."""
    return NEEDS[STATIC_FILTER if dimension == FLICKER else dimension][1]


def _describe_packages(dimensions: tuple[str, ...], python: Path, folder: Path) -> list[str]:
    checked, static_filter = check_all(dimensions, open_scorer(python, "auto"), folder)
    lacking: dict[str, list[str]] = {}
    for one in (*checked, *([static_filter] if FLICKER in dimensions else [])):
        for package in one.packages:
            lacking.setdefault(package, []).append(one.dimension)
    lines = [f"missing package {package}, for {', '.join(names)}" for package, names in lacking.items()]
    if "detectron2" in lacking:
        lines.append(f"  its installation is up to you: {python} {DETECTRON2}")
    return lines or [f"no package is missing in the environment of {python}"]


def describe_missing(missing: list[Weight], dimensions: Iterable[str], folder: Path) -> list[str]:
    """A paragraph a file."""
    if not missing:
        return [f"no file is missing in {folder}"]
    lines = []
    for file in missing:
        names = [name for name in dimensions if file in _list_files(name)]
        problem = file.find_problem(folder)
        kinds = {"zip": f" (a zip, of which {file.member} is taken)", "git": " (git clone of the folder)", "file": ""}
        lines += [
            f"{folder / file.path}" + ("" if problem.startswith("missing") else f"  {problem}"),
            f"  from  {file.source}{kinds[file.how]}",
            f"  size  {file.describe_size()}",
            f"  for   {', '.join(names)}",
        ]
    total = show_bytes(sum(file.bytes for file in missing))
    count = "1 file is" if len(missing) == 1 else f"{len(missing)} files are"
    return [*lines, f"{count} missing or wrong, about {total}; nothing is downloaded by this command"]


def write_script(missing: list[Weight], folder: Path) -> str:
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
    return SCRIPT + (f"needs {' '.join(tools)}\n" if tools else "") + "".join(lines) + END
