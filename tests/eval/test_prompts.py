"""Prompts as files hold them, the names of their videos, and the seeds."""

import json
import os
import threading
import unicodedata

import pytest

from eval.generate.command import command, plan_jobs
from eval.generate.prompts import file_name, read_lines, read_prompts
from eval.vbench.plan import PlanOptions, make_plan
from eval.vbench.suite import load_suite
from tests.helpers.vbench_suite import write_suite
from train.common.atomic import beside

SEPARATORS = ["\x0b", "\x0c", "\x1c", "\x1d", "\x1e", "\x85", "\u2028", "\u2029"]


def read(tmp_path, data):
    file = tmp_path / "prompts.txt"
    file.write_bytes(data.encode() if isinstance(data, str) else data)
    return read_prompts(None, file)


@pytest.mark.parametrize(
    "data",
    ["a\nb", "a\nb\n", "a\r\nb\r\n", "\n a \n\n\tb\n \n", "\ufeffa\nb\n", "\ufeffa\r\n\ufeffb\r\n", "a \r\n\r\nb",
     "a\nb\na"],
)  # fmt: skip
def test_a_prompt_is_a_line_without_what_marks_bytes_or_ends(tmp_path, data):
    assert read(tmp_path, data) == ["a", "b"]


@pytest.mark.parametrize("separator", SEPARATORS, ids=ascii)
def test_nothing_else_ends_a_line(tmp_path, separator):
    assert read(tmp_path, f"a{separator}b\nc\n") == [f"a{separator}b", "c"]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("", "holds no prompt: expected one a line"),
        ("\ufeff\n \n", "holds no prompt: expected one a line"),
        ("a\nb\rc\n", "line 2: holds a carriage return, expected lines that end in"),
        ("a\rb", "line 1: holds a carriage return"),
        ("a\nb\0\n", "line 2: holds a NUL character"),
        (b"a\xff", "isn't UTF-8 at byte 1; expected a text file with a prompt a line"),
        ("a\n".encode("utf-16"), "is UTF-16"),
        ("a\n".encode("utf-16-le"), "line 1: holds a NUL character"),
    ],
)
def test_what_is_no_text_is_refused(tmp_path, data, message):
    with pytest.raises(ValueError, match=message):
        read(tmp_path, data)


@pytest.mark.parametrize(
    ("name", "reason"), [("", "Is a directory"), ("nowhere", "No such file"), ("x" * 300, "File name too long")]
)
def test_what_is_no_file_is_refused(tmp_path, name, reason):
    with pytest.raises(ValueError, match=rf"can't be read \({reason}.*expected a text file with a prompt a line"):
        read_prompts(None, tmp_path / name)


def test_a_pipe_is_read_too(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    writer = threading.Thread(target=lambda: (tmp_path / "pipe").write_text("a\nb\n"))
    writer.start()
    assert read_prompts(None, tmp_path / "pipe") == ["a", "b"]
    writer.join()


def test_a_prompt_of_the_command_line_is_that_of_a_file(tmp_path):
    assert read_prompts("\ufeff a red circle\n", None) == read(tmp_path, "\ufeffa red circle") == ["a red circle"]
    for given in ((None, None), ("a", tmp_path / "prompts.txt")):
        with pytest.raises(ValueError, match="expected either --prompt TEXT or --prompts FILE"):
            read_prompts(*given)


def test_a_repeated_prompt_is_named_and_made_once(tmp_path, caplog, monkeypatch):
    assert read(tmp_path, "a\nb\n\na \nb\n") == ["a", "b"]
    (said,) = caplog.messages
    assert (
        "lines that repeat an earlier prompt: 2, the first of them line 4 ('a', as line 1); each prompt is made once"
        in said
    )
    assert len(plan_jobs(["a", "b", "a"], 2, 0)) == 4
    monkeypatch.setenv("RANK", "1")
    caplog.clear()
    assert read(tmp_path, "a\na") == ["a"] and not caplog.messages


@pytest.mark.parametrize("separator", SEPARATORS, ids=ascii)
def test_a_map_of_long_prompts_is_read_alike(tmp_path, separator):
    suite = write_suite(tmp_path / "suite.json")
    prompts = list(dict.fromkeys(entry.prompt for entry in load_suite(suite)))
    long = [f"long{separator}{i}" for i, _ in enumerate(prompts)]
    (tmp_path / "map.txt").write_bytes(("\ufeff" + "\r\n".join(long) + "\r\n").encode())
    planned = make_plan(PlanOptions(suite, prompt_map=tmp_path / "map.txt"))
    assert {video.prompt: video.long for video in planned.videos} == dict(zip(prompts, long, strict=True))
    (tmp_path / "map.txt").write_bytes("\n".join(long).encode("utf-16"))
    with pytest.raises(ValueError, match="map.txt: is UTF-16 .*, expected UTF-8: save it as that$"):
        make_plan(PlanOptions(suite, prompt_map=tmp_path / "map.txt"))


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        ("a red circle, moving left!", "a-red-circle-moving-left-"),
        ("一只猫在草地上奔跑。", "一只猫在草地上奔跑-"),
        ("Grün & 日本, a \"quoted\" path/../name", "grün-日本-a-quoted-path-name-"),
        ("Красный круг", "красный-круг-"),
        ("हिन्दी में एक बिल्ली", "हिन्दी-में-एक-बिल्ली-"),
        ("빨간 원", "빨간-원-"),
        ("CON", "con-"),
        ("..\\..//:*?<>|", ""),
        ("🐈❤️🚗", ""),
        ("", ""),
        ("x" * 500, "x" * 80 + "-"),
        ("猫" * 500, "猫" * 26 + "-"),
        ("ab\u2028c\x1b[0m\0", "ab-c-0m-"),
        ("a\udcff", "a-"),
    ],
)  # fmt: skip
def test_a_name_keeps_the_letters_of_every_script(prompt, words):
    name = file_name(prompt, 7)
    digest = name.removeprefix(words).removesuffix("-seed7")
    assert name == f"{words}{digest}-seed7" and len(digest) == 12 and set(digest) <= set("0123456789abcdef")
    assert name == unicodedata.normalize("NFC", name) and name.isprintable() and not set(name) & set('/\\:*?"<>|. ')


def test_no_two_prompts_or_seeds_share_a_name(tmp_path):
    prompts = ["A cat", "a cat", "a cat.", "a, cat", "é", "e\u0301", "", ".", "🐈", "🐕", "x" * 90, "x" * 91, "ﬁ", "fi"]
    names = [job.name for job in plan_jobs(prompts, 3, 2**62)]
    assert len({unicodedata.normalize("NFKC", name).casefold() for name in names}) == 3 * len(prompts)
    for name in [*names, file_name("猫" * 500, 2**62)]:
        with beside(tmp_path / f"{name}.json") as aside:
            assert len(aside.name.encode()) < 143  # of an encrypted home folder
            aside.touch()


def test_a_video_depends_on_its_prompt_its_number_and_the_seed_alone():
    alone = plan_jobs(["b"], 3, 7)
    assert [job.seed for job in alone] == [7, 8, 9]
    assert plan_jobs(["b"], 1, 8) == alone[1:2]
    for prompts in (["a", "b"], ["b", "a", "c"], ["c", "b", "a"]):
        assert [job for job in plan_jobs(prompts, 3, 7) if job.prompt == "b"] == alone
    assert plan_jobs(["b"], 2, 7) == alone[:2]


def test_another_order_and_more_prompts_keep_the_videos_that_are_there(wan_folder, tmp_path, capsys):
    out = tmp_path / "out"

    def run(*prompts):
        (tmp_path / "prompts.txt").write_text("\n".join(prompts))
        command([f"--checkpoint={wan_folder}", f"--prompts={tmp_path / 'prompts.txt'}", f"--out={out}", "--frames=1",
                 "--height=32", "--width=48", "--steps=1", "--guidance=1"])  # fmt: skip
        return {file.name: file.stat().st_mtime_ns for file in out.glob("*.mp4")}

    before = run("一只猫", "a blue square")
    after = run("a red circle", "a blue square", "一只猫")
    assert "2 of 3 videos are there already" in capsys.readouterr().out
    assert len(after) == 3 and before.items() < after.items()
    said = json.loads((out / f"{file_name('一只猫', 0)}.json").read_text(encoding="utf-8"))
    assert (said["prompt"], said["seed"]) == ("一只猫", 0)


def test_lines_are_kept_where_empty(tmp_path):
    (tmp_path / "lines.txt").write_text("a\n\nb\n")
    assert read_lines(tmp_path / "lines.txt", "a prompt") == ["a", "", "b", ""]
