"""What is read of a run and of others' results: zips, and files of all kinds of wrong."""

import json
import os
import random
import zipfile
from dataclasses import asdict

import pytest

from eval.reading import parse, parse_json, read_bytes, shape, write_json
from eval.vbench.__main__ import command
from eval.vbench.cache import Cache
from eval.vbench.check import Findings, Seen, read_seen
from eval.vbench.report import collect, describe_report, to_dict
from eval.vbench.results import read_results
from eval.vbench.suite import load_suite, read_plan, write_plan
from eval.vbench.values import Result
from tests.helpers.vbench_suite import (
    ROWS,
    draw_official,
    plan_of,
    refused,
    write_results,
    write_suite,
    write_wheel,
)

# files of all kinds of wrong


def write_zip(path, method=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(path, "w", method) as packed:
        for name in ("scene", "color"):
            packed.writestr(f"{name}_eval_results.json", json.dumps({name: 0.5}))
    return path


def spoil(data, kind):
    """A zip that is encrypted, packed by an unknown method, of wrong content, cut short, or that claims to be huge."""
    data, central = bytearray(data), data.index(b"PK\x01\x02")
    if kind == "encrypted":
        data[6] |= 1
        data[central + 8] |= 1
    if kind == "method":
        data[8] = data[central + 10] = 77
    if kind == "content":
        data[14] ^= 255
        data[central + 16] ^= 255
    if kind == "cut":
        del data[-40:]
    if kind == "huge":
        data[central + 24 : central + 28] = (2**31).to_bytes(4, "little")
    return bytes(data)


@pytest.mark.parametrize(
    ("kind", "whole", "why"),
    [
        ("encrypted", False, "needs a password"),
        ("method", False, "compression method is not supported"),
        ("content", False, "Bad CRC-32"),
        ("cut", True, "can't be unpacked (File is not a zip file)"),
        ("huge", True, "bytes, expected at most"),
    ],
)
def test_a_zip_that_cant_be_unpacked_is_named(tmp_path, capsys, kind, whole, why):
    path = write_zip(tmp_path / "a.zip")
    path.write_bytes(spoil(path.read_bytes(), kind))
    if whole:
        line = refused(capsys, ["aggregate", path])
        assert why in line and str(path) in line
    else:  # the first of two files
        results = read_results(path)
        assert [*results.scores] == ["color"] and why in results.problems[0]
        assert f"{path}:scene_eval_results.json" in results.problems[0]
    wheel = write_wheel(tmp_path / "a.whl")
    with zipfile.ZipFile(wheel) as packed:
        text = packed.read("vbench/VBench_full_info.json")
    with zipfile.ZipFile(wheel, "w") as packed:
        packed.writestr("vbench/VBench_full_info.json", text)
    wheel.write_bytes(spoil(wheel.read_bytes(), kind))
    line = refused(capsys, ["plan", f"--suite={wheel}", f"--out={tmp_path / 'run'}"])
    assert why in line and str(wheel) in line


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_two_files_of_one_name_in_a_zip_are_both_read(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as packed:
        for score in (0.5, 0.6):
            packed.writestr("scene_eval_results.json", json.dumps({"scene": score}))
    results = read_results(tmp_path / "a.zip")
    assert results.scores["scene"].score is None and "both score scene, differently" in results.problems[0]


def test_what_is_written_over_a_folder_or_a_device_is_refused_in_a_line(tmp_path, capsys):
    path = write_results(tmp_path / "a", {"scene": 0.5})
    (tmp_path / "folder").mkdir()
    assert f"{tmp_path / 'folder'} can't be replaced (Is a directory)" in refused(
        capsys, ["aggregate", path, f"--json={tmp_path / 'folder'}"]
    )
    assert "/dev/null is a device" in refused(capsys, ["aggregate", path, "--json=/dev/null"])
    assert "/proc/x/a.json can't be written" in refused(capsys, ["aggregate", path, "--json=/proc/x/a.json"])
    assert f"{path}/x_eval_results.json/a can't be" in refused(
        capsys, ["aggregate", path, f"--json={path}/x_eval_results.json/a"]
    )
    command(["aggregate", path, f"--json={tmp_path / 'new/folder/a.json'}"])
    assert json.loads((tmp_path / "new/folder/a.json").read_text())["dimensions"]["scene"]["score"] == 0.5


@pytest.mark.parametrize("place", ["a folder", "a device", "a pipe", "a loop"])
@pytest.mark.parametrize("name", ["plan.json", "scores/scene.json", "cache/scene.jsonl"])
def test_what_is_no_file_is_named(run, capsys, place, name):
    file = run / name
    file.unlink()
    make = {"a folder": file.mkdir, "a device": lambda: file.symlink_to("/dev/zero"),
            "a pipe": lambda: os.mkfifo(file), "a loop": lambda: file.symlink_to(file)}  # fmt: skip
    make[place]()
    with pytest.raises(ValueError, match=name.split("/")[-1]):
        READERS[name](run)


def test_what_can_be_made_again_is_left_with_a_warning(run, caplog, name="seen.json"):
    for text in ("null", "[]", "3", "{", '{"a": 1}', "[" * 100_000):
        (run / name).write_text(text)
        assert not READERS[name](run) and f"{name} can't be used" in caplog.text
        caplog.clear()
    (run / name).unlink()
    (run / name).mkdir()
    assert not READERS[name](run) and "is a folder, expected a file" in caplog.text


# fuzzing

SCORES = {"a-0.mp4": 0.25, "a-1.mp4": 0.75}
OTHERS = (None, [], {}, 0, -1, 3.5, 1e308, True, "", "x", "../x", [[]], {"a": []}, float("nan"), float("inf"), 10**400)


@pytest.fixture
def run(tmp_path):
    """A run with each kind of file, and others beside it."""
    tmp_path /= "run"
    tmp_path.mkdir()
    plan = plan_of("a-0.mp4", "a-1.mp4")
    write_plan(tmp_path / "plan.json", plan)
    findings = Findings(2, 2, ("a-1.mp4",), 0, {"b": "c"}, {}, ("a-0.mp4",), {"x": ""})
    write_json(tmp_path / "check.json", asdict(findings))
    write_json(tmp_path / "seen.json", {"a-0.mp4": asdict(Seen(["x", 3, 5], 4, 16, 16, 8.0, None))})
    result = Result("scene", 0.5, SCORES, True, ("a",), {"a": "b"}, None, {"name": "x"}, "note", "0", {})
    write_json(tmp_path / "scores/scene.json", asdict(result))
    write_json(tmp_path / "records/a-0.json", {"name": "a-0", "prompt": "a", "seed": 0, "steps": 2})
    cache = Cache(tmp_path / "cache", "scene", {})
    for name, value in SCORES.items():
        cache.add(name, "0", value, 16.0)
    write_results(
        tmp_path.parent / "official", {"scene": draw_official("scene", 1, False), "color": [0.5, json.loads(ROWS)]}
    )
    write_zip(tmp_path / "a.zip")
    write_suite(tmp_path / "suite.json")
    write_wheel(tmp_path / "suite.whl")
    return tmp_path


def read_whole(path):
    """As `aggregate` does, and what it makes of it."""
    found = collect(path)
    return "\n".join(describe_report(found)).encode(), json.dumps(to_dict(found), ensure_ascii=False).encode()


READERS = {
    "plan.json": lambda run: read_plan(run / "plan.json"),
    "check.json": lambda run: parse(Findings, read_bytes(run / "check.json")),
    "seen.json": lambda run: read_seen(run / "seen.json"),
    "scores/scene.json": read_whole,
    "records/a-0.json": read_whole,
    "cache/scene.jsonl": lambda run: Cache(run / "cache", "scene", {}).find("a-0.mp4", "0"),
    "../official/x_eval_results.json": lambda run: read_whole(run.parent / "official"),
    "a.zip": lambda run: read_whole(run / "a.zip"),
    "suite.json": lambda run: load_suite(run / "suite.json"),
    "suite.whl": lambda run: load_suite(run / "suite.whl"),
}


def mutate(data, draw):
    """Cut short, some bytes changed, or a part of the JSON replaced by other JSON."""
    kind = draw.choice(("cut", "flip", "part", "part", "part"))
    if kind == "cut":
        return data[: draw.randrange(len(data))]
    if kind == "part":
        try:
            said = json.loads(data)
        except ValueError:
            kind = "flip"
        else:
            return json.dumps(replace_part(said, draw)).encode()
    changed = bytearray(data)
    for _ in range(draw.randint(1, 4)):
        changed[draw.randrange(len(changed))] = draw.randrange(256)
    return bytes(changed)


def replace_part(said, draw):
    if not isinstance(said, (dict, list)) or not said or draw.random() < 0.15:
        return draw.choice(OTHERS)
    keys = [*said] if isinstance(said, dict) else [*range(len(said))]
    key = draw.choice(keys)
    changed = said.copy()
    if draw.random() < 0.1:
        del changed[key]
    else:
        changed[key] = replace_part(said[key], draw)
    return changed


@pytest.mark.parametrize("name", READERS)
def test_a_file_that_is_anything_is_read_or_refused_in_a_line(run, name):
    """Only ValueError comes out; and what is taken is a score."""
    draw, data = random.Random(name), (run / name).read_bytes()
    assert READERS[name](run) is not None  # as it should be, it is read
    refusals = 0
    for _ in range(150):
        (run / name).write_bytes(mutate(data, draw))
        try:
            found = READERS[name](run)
        except ValueError as error:
            refusals += 1
            assert len(str(error).splitlines()) == 1, error
        else:
            if isinstance(found, tuple) and found and isinstance(found[-1], bytes):
                scores = [one["score"] for one in parse_json("it", found[-1])["dimensions"].values()]
                assert all(score is None or -1.002 <= score <= 1.002 for score in scores)
    assert refusals > 20 or name in ("check.json", "seen.json", "cache/scene.jsonl", "records/a-0.json")


def test_shapes_are_those_of_the_fields():
    with pytest.raises(ValueError, match=r"it.videos is \[\], expected a dict"):
        shape("it", Result, {"dimension": "scene", "videos": []})
    with pytest.raises(ValueError, match="it lacks dimension"):
        shape("it", Result, {})
    with pytest.raises(ValueError, match="it has an unknown beauty"):
        shape("it", Result, {"dimension": "scene", "beauty": 1})
    with pytest.raises(ValueError, match=r"it.missing\[0\] is 3, expected a text"):
        shape("it", Result, {"dimension": "scene", "missing": [3]})
    assert shape("it", Result, {"dimension": "scene", "missing": ["a"]}).missing == ("a",)
