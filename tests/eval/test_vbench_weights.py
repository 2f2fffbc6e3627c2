"""What is missing for scoring, and the script that fetches it, run with a curl of our own."""

import hashlib
import os
import shutil
import subprocess
import zipfile

import pytest

from eval.vbench import weights
from eval.vbench.__main__ import command
from eval.vbench.official import Scorer
from eval.vbench.preflight import check_all, describe_readiness, find_missing, write_script
from eval.vbench.suite import DIMENSIONS
from eval.vbench.weights import EVERY, NEEDS, Weight
from tests.helpers.vbench_suite import refused, trust_weights

BERT_MODEL, CLIP_B, CLIP_L, MUSIQ, VICLIP_WORDS = (
    weights.FILES[name] for name in ("bert_model", "clip_b", "clip_l", "musiq", "viclip_words")
)

CURL = """#!/bin/sh
echo "$@" >>"$SERVED/calls"
while [ $# -gt 1 ]; do [ "$1" = -o ] && target=$2; shift; done
file="$SERVED/${1##*/}"
[ -f "$file" ] || { : >"$target"; exit 22; }
cp "$file" "$target"
"""
GIT = """#!/bin/sh
echo "git $@" >>"$SERVED/calls"
while [ $# -gt 1 ]; do shift; done
mkdir -p "$1" && echo pass >"$1/hubconf.py"
"""
DATA = {name: name.encode() * 100 for name in ("a.pth", "b.pth", "in the zip")}
SUM = {name: hashlib.sha256(data).hexdigest() for name, data in DATA.items()}
FILES = [
    Weight("one/a.pth", "https://host/a.pth", len(DATA["a.pth"]), sha256=SUM["a.pth"]),
    Weight('two/$(touch owned) it\'s; "b".pth', "https://host/b.pth", least=100, sha256=SUM["b.pth"][:8]),
    Weight("raft/models/c.pth", "https://host/models.zip", len(DATA["in the zip"]), how="zip", member="models/c d.pth"),
    Weight("dino/main/hubconf.py", "https://host/dino", how="git"),
]


@pytest.fixture
def served(tmp_path):
    """A folder that curl serves from."""
    served = tmp_path / "served"
    served.mkdir()
    for name, text in (("curl", CURL), ("git", GIT)):
        (tmp_path / "bin").mkdir(exist_ok=True)
        (tmp_path / "bin" / name).write_text(text)
        (tmp_path / "bin" / name).chmod(0o755)
    for name in ("a.pth", "b.pth"):
        (served / name).write_bytes(DATA[name])
    with zipfile.ZipFile(served / "models.zip", "w") as packed:
        packed.writestr("models/c d.pth", DATA["in the zip"])
        packed.writestr("models/other.pth", b"0")
    return served


def fetch(tmp_path, served, files=None):
    """(exit code, messages, what was asked for) of the script."""
    script = tmp_path / "fetch it.sh"
    script.write_text(write_script(FILES if files is None else files, tmp_path / "the cache"))
    assert subprocess.run(["sh", "-n", script]).returncode == 0
    (served / "calls").unlink(missing_ok=True)
    path = f"{tmp_path / 'bin'}:{os.environ['PATH']}"
    done = subprocess.run(
        ["sh", script], capture_output=True, text=True, cwd=tmp_path, env={**os.environ, "PATH": path, "SERVED": served}
    )
    calls = (served / "calls").read_text().splitlines() if (served / "calls").exists() else []
    return done.returncode, done.stderr, calls


unzip = pytest.mark.skipif(shutil.which("unzip") is None, reason="needs unzip")


@unzip
def test_the_script_fetches_what_is_missing_and_nothing_twice(tmp_path, served):
    code, said, calls = fetch(tmp_path, served)
    assert code == 0 and said.endswith("all there\n") and len(calls) == 4
    assert all("-L --fail" in call for call in calls if not call.startswith("git"))
    cache = tmp_path / "the cache"
    assert (cache / FILES[0].path).read_bytes() == DATA["a.pth"]
    assert (cache / FILES[1].path).read_bytes() == DATA["b.pth"]
    assert (cache / FILES[2].path).read_bytes() == DATA["in the zip"]
    assert all(file.find_problem(cache) is None for file in FILES)
    assert not list(cache.rglob("*.part")) and not list(tmp_path.rglob("owned"))
    code, said, calls = fetch(tmp_path, served)
    assert (code, calls) == (0, []) and said.count("there already") == 4


@unzip
@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.pth", DATA["a.pth"][:-1], "wrong size: "),
        ("a.pth", DATA["a.pth"][::-1], "wrong checksum: "),
        ("b.pth", b"x" * 99, "has 99 bytes, expected 100 at least"),
        ("b.pth", b"x" * 100, f"expected {SUM['b.pth'][:8]}"),
        ("a.pth", None, "error: 1 could not be fetched"),
        ("models.zip", b"no zip", "error: 1 could not be fetched"),
    ],
)
def test_what_isnt_the_file_is_refused_and_the_others_are_fetched(tmp_path, served, name, data, message):
    if data is None:
        (served / name).unlink()
    else:
        (served / name).write_bytes(data)
    code, said, calls = fetch(tmp_path, served)
    assert code == 1 and message in said and len(calls) == 4
    cache = tmp_path / "the cache"
    there = [file.find_problem(cache) is None for file in FILES]
    assert there.count(False) == 1 and not list(cache.rglob("*.part"))
    for good in ("a.pth", "b.pth"):
        (served / good).write_bytes(DATA[good])
    if name != "models.zip":
        assert fetch(tmp_path, served)[0] == 0


@unzip
def test_a_wrong_file_that_is_there_is_replaced_and_a_half_clone_is_not_touched(tmp_path, served):
    cache = tmp_path / "the cache"
    (cache / "one").mkdir(parents=True)
    (cache / "one/a.pth").write_bytes(DATA["a.pth"][::-1])
    (cache / "dino/main").mkdir(parents=True)
    (cache / "dino/main/mine.txt").write_text("")
    code, said, _ = fetch(tmp_path, served)
    assert code == 1 and "is there without hubconf.py: remove it first" in said
    assert (cache / "one/a.pth").read_bytes() == DATA["a.pth"] and (cache / "dino/main/mine.txt").exists()


def test_each_missing_file_is_listed_once_on_lines_of_its_own(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    folder = tmp_path / ("a long folder name " * 5)
    script = tmp_path / "fetch.sh"
    command(["weights", f"--scorer_weights={folder}", f"--script={script}"])
    lines = capsys.readouterr().out.splitlines()
    every = {file for _, files in NEEDS.values() for file in files}
    assert [line for line in lines if line.startswith(str(folder))] == [
        str(folder / file.path) for file in find_missing(DIMENSIONS, folder)
    ]
    assert len(find_missing(DIMENSIONS, folder)) == len(every) == 16
    at = lines.index(str(folder / CLIP_B.path))
    assert lines[at + 1 : at + 4] == [
        f"  from  {CLIP_B.source}", "  size  353,976,522 bytes", "  for   background_consistency, appearance_style",
    ]  # fmt: skip
    assert lines[-2].startswith(
        f"16 files are missing or wrong (about {sum(file.bytes for file in every) / 1e9:.3g} GB"
    )
    assert subprocess.run(["sh", "-n", script]).returncode == 0
    command(["weights", f"--scorer_weights={folder}", "--dimensions=temporal_flickering"])
    assert "models.zip" in capsys.readouterr().out
    (folder / MUSIQ.path).parent.mkdir(parents=True)
    (folder / MUSIQ.path).write_bytes(b"cut")
    command(["weights", f"--scorer_weights={folder}", "--dimensions=imaging_quality"])
    assert "has 3 bytes, expected 108,503,300 at least" in capsys.readouterr().out
    os.truncate(folder / MUSIQ.path, 109_000_000)
    command(["weights", f"--scorer_weights={folder}", "--dimensions=imaging_quality"])
    assert "wrong checksum: " in capsys.readouterr().out
    trust_weights(monkeypatch)
    command(["weights", f"--scorer_weights={folder}", "--dimensions=imaging_quality", f"--script={script}"])
    assert f"no file is missing in {folder}" in capsys.readouterr().out
    assert subprocess.run(["sh", script], capture_output=True, text=True).stderr == "all there\n"


def test_a_run_says_what_can_be_scored_in_a_line_a_dimension(tmp_path, monkeypatch):
    trust_weights(monkeypatch)
    packages = dict.fromkeys((*EVERY, "clip", "easydict", "pyiqa", "transformers"), True)
    scorer = Scorer({}, packages, None, "cpu", tmp_path / "python", tmp_path)
    chosen = ("temporal_flickering", "dynamic_degree", "imaging_quality", "color")
    (tmp_path / MUSIQ.path).parent.mkdir()
    (tmp_path / MUSIQ.path).touch()
    os.truncate(tmp_path / MUSIQ.path, 109_000_000)
    assert describe_readiness(check_all(chosen, scorer)) == [
        "what can be scored:",
        "  temporal_flickering     ready, unfiltered (1 file)",
        "  dynamic_degree          no: 1 file",
        "  imaging_quality         ready",
        "  color                   no: package detectron2; 3 files",
        "4 files are missing or wrong (about 421 MB): python -m eval.vbench weights lists them",
    ]
    assert describe_readiness(check_all(chosen[1:], None))[1:] == [
        f"  {name:<24}no: needs --scorer_python" for name in chosen[1:]
    ]


def test_checksums_are_those_that_addresses_and_names_carry():
    for file in (CLIP_B, CLIP_L):
        assert file.sha256 in file.source and len(file.sha256) == 64
    assert f"-{MUSIQ.sha256}.pth" in MUSIQ.path
    assert len(VICLIP_WORDS.sha256) == len(BERT_MODEL.sha256) == 64


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--dimensions=beauty"], "dimensions beauty: expected some of"),
        (["--script=/proc/x/fetch.sh"], "/proc/x can't be written"),
        (["--script={tmp}/notes.txt"], "notes.txt was not written by this command: choose another --script"),
        (["--scorer_weights={tmp}/notes.txt"], "notes.txt is a file, expected VBench's folder of weights"),
        (["--scorer_python=nowhere"], "nowhere can't be used"),
    ],
)
def test_mistakes(tmp_path, capsys, arguments, message):
    (tmp_path / "notes.txt").write_text("precious")
    arguments = [text.format(tmp=tmp_path) for text in arguments]
    assert message in refused(capsys, ["weights", f"--scorer_weights={tmp_path}", *arguments])
    assert (tmp_path / "notes.txt").read_text() == "precious"


def test_the_script_says_first_which_tool_is_missing(tmp_path):
    script, tools = tmp_path / "fetch.sh", tmp_path / "tools"
    script.write_text(write_script(FILES[:1], tmp_path / "cache"))
    tools.mkdir()
    done = subprocess.run(
        [shutil.which("sh"), script], capture_output=True, text=True, env={"PATH": str(tools)}, cwd=tmp_path
    )
    assert (done.returncode, done.stderr) == (1, "error: needs curl, which isn't there: install it first\n")
    assert not (tmp_path / "cache").exists()


def test_the_script_goes_on_with_half_a_file(tmp_path, served):
    """A curl that, as the real one, appends to what is there."""
    half = tmp_path / "the cache/one/a.pth.part"
    half.parent.mkdir(parents=True)
    half.write_bytes(DATA["a.pth"][:40])
    (tmp_path / "bin/curl").write_text(CURL.replace('cp "$file" "$target"', 'tail -c +41 "$file" >>"$target"'))
    code, _, calls = fetch(tmp_path, served, FILES[:1])
    assert code == 0 and "-C - -o" in calls[0]
    assert (tmp_path / "the cache" / FILES[0].path).read_bytes() == DATA["a.pth"]
