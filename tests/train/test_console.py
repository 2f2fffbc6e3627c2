"""What the commands have in common at the door."""

import re
from dataclasses import dataclass
from typing import Literal

import pytest
import yaml
from jsonargparse import ArgumentError

from eval.bench.command import command as bench
from eval.fidelity.command import command as fidelity
from eval.generate.command import command as generate
from eval.generate.jobs import Options
from eval.generate.models import open_model
from eval.vbench.__main__ import command as vbench
from tests.helpers.commands import refused
from tests.helpers.tiny_run import tiny_words
from train.common.console import check_no_empty, cli_errors, run_command
from train.common.refusals import one_line
from train.fit import main as fit
from train.prepare.__main__ import command as prepare


@dataclass(frozen=True)
class Part:
    s: float | None = None


@pytest.mark.parametrize("given", [["--model.checkpoint="], ["--model.checkpoint", ""], ["--model.checkpoint= "]])
def test_an_option_without_its_value_is_refused(tmp_path, capsys, given):
    """As an unset variable of the shell leaves it; random weights would be trained."""
    assert "--model.checkpoint is empty" in refused(capsys, fit, tiny_words(tmp_path / "run", *given))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("run", "words", "option"),
    [
        (generate, ["--checkpoint=x", "--prompt=a", "--out="], "--out"),
        (generate, ["--checkpoint=", "--prompt=a", "--out=o"], "--checkpoint"),
        (generate, ["--checkpoint=x", "--prompt=a", "--out=o", "--low_noise="], "--low_noise"),
        (generate, ["--checkpoint=x", "--prompt=a", "--out=o", "--encoders", ""], "--encoders"),
        (fidelity, ["models", "--checkpoint=x", "--prompt=a", "--out=o", "--trained="], "--trained"),
        (prepare, ["--config=configs/prepare.yaml", "--source=", "--out=o"], "--source"),
    ],
)
def test_in_every_command(capsys, run, words, option):
    assert f"{option} is empty" in refused(capsys, run, words)


def test_a_prompt_may_be_empty_and_a_value_may_look_like_one():
    check_no_empty(["--prompt=", "--negative_prompt", "", "--out=a=b", "--flag", "--x", "-1", "word", ""])


@pytest.mark.parametrize("name", ["checkpoint", "low_noise", "encoders"])
def test_an_empty_path_of_a_configuration_is_refused_too(name):
    with pytest.raises(ValueError, match=f"{name} is empty, expected a path"):
        open_model(Options(**{"checkpoint": "somewhere", name: " "}))


def test_a_printed_configuration_holds_the_parts_of_a_schedule_and_can_be_read_again(tmp_path, capsys):
    words = ["--checkpoint=x", "--prompt=a", "--out=o", "--attention.tile=null"]
    with pytest.raises(SystemExit):
        generate([*words, "--attention.engine=eager", "--attention.schedule.shift=3", "--print_config"])
    printed = capsys.readouterr().out
    assert yaml.safe_load(printed)["attention"]["schedule"] == {"bounds": None, "regimes": None, "shift": 3.0}
    (tmp_path / "own.yaml").write_text(printed)
    with pytest.raises(SystemExit):
        generate([f"--config={tmp_path / 'own.yaml'}", "--print_config"])
    assert yaml.safe_load(capsys.readouterr().out) == yaml.safe_load(printed)


@pytest.mark.parametrize(
    ("word", "line"),
    [
        ("--attention.tile=small", 'Parser key "attention.tile": Expected a <class \'tuple\'>; '
         "Expected a typing.Literal['trained'] or null; Given value: small"),
        ("--attention.schedule.regimes=7",
         'Parser key "attention.schedule.regimes": Expected a <class \'tuple\'> or null; Given value: 7'),
        ("--attention.engin=eager", 'Parser key "attention": in AttentionChanges: Option \'engin\' is not accepted'),
        ("--attention=fps", 'Parser key "attention": expected its options or null: fps; Given value: fps'),
        ("--count=x", "Parser key \"count\": Expected a <class 'int'>. Got value: x"),
    ],
)  # fmt: skip
def test_the_parsers_errors_are_about_the_option(capsys, word, line):
    assert refused(capsys, generate, ["--checkpoint=x", "--prompt=a", "--out=o", word]) == f"error: {line}"


@pytest.mark.parametrize(
    ("kind", "word", "line"),
    [
        (float | None, "q", "Expected a <class 'float'> or null; Given value: q"),
        (float | None, "a", "Expected <class 'float'> or null; Given value: a"),  # the parser takes its own "a" too
        (bool | None, "q", "Expected a <class 'bool'> or null; Given value: q"),
        (int | float | None, "q", "Expected a <class 'int'>; Expected a <class 'float'> or null; Given value: q"),
        (Literal["a", "b"] | None, "q", "Expected a typing.Literal['a', 'b'] or null; Given value: q"),
        (tuple[int, int] | None, "[1]", "Expected a tuple with 2 elements or null; Given value: [1]"),
        (dict[str, int] | None, "4", "Expected a <class 'dict'> or null; Given value: 4"),
        (list[int] | None, "[q]", "Expected a <class 'int'>. Got value: q; or null; Given value: ['q']"),
        (list[int | None], "[q]", "Expected a <class 'int'> or null; Given value: q"),
        (Part | None, "7", "expected its options or null: 7; Given value: 7"),
        (Part | None, "{s: q}", ".s\": Expected a <class 'float'> or null; Given value: q; Given value: {'s': 'q'}"),
        (float, "q", "Expected a <class 'float'>. Got value: q"),
    ],
    ids=str,
)
def test_what_may_be_null_says_so(kind, word, line):
    def main(x) -> None: ...

    main.__annotations__["x"] = kind
    with pytest.raises(ArgumentError) as refusal:
        run_command(main, [f"--x={word}"], as_positional=False)
    assert one_line(refusal.value).removeprefix('Parser key "x": ').removeprefix('Parser key "x') == line


@pytest.mark.parametrize(
    ("run", "words", "part"),
    [
        (generate, ["--checkpoint=x", "--prompt=a", "--out=o", "--config={nope: {}}"], "Option 'nope' is not accepted"),
        (generate, ["--checkpoint=x", "--prompt=a", "--out=o", "--attention={nope: {}}"], "'nope' is not accepted"),
        (fidelity, ["models", "--checkpoint=x", "--prompt=a", "--out=o", "--config={nope: {a: {}}}"], "nope"),
        (prepare, ["--config=configs/prepare.yaml", "--source=s", "--out=o", "--limits={nope: {}}"], "nope"),
        (vbench, ["--videos=v", "--out=o", "--config={nope: {}}"], "'nope'"),
        (fit, ["--config=configs/tiny.yaml", "--config={nope: {}}"], "Option 'nope' is not accepted"),
        (fit, ["--config=configs/tiny.yaml", "--model={wan: {nope: {}}}"], "nope"),
        (fit, ["--config=configs/tiny.yaml", "--model.text", "{class_path: ByteText, init_args: {nope: {}}}"], "nope"),
    ],
)  # fmt: skip
def test_an_unknown_option_is_refused_though_it_is_empty(tmp_path, monkeypatch, capsys, run, words, part):
    assert part in refused(capsys, run, words)
    nope = next(word for word in words if "nope" in word)
    if nope.startswith("--config="):  # and from a file
        (tmp_path / "own.yaml").write_text(nope.removeprefix("--config="))
        words = [f"--config={tmp_path / 'own.yaml'}" if word == nope else word for word in words]
        assert part in refused(capsys, run, words)


def test_text_that_may_be_null_says_so():
    def main(text: str | None = None) -> None: ...

    with pytest.raises(ArgumentError) as refusal:  # on a command line all is text
        run_command(main, ["--config={text: [1]}"], as_positional=False)
    assert one_line(refusal.value) == "Parser key \"text\": Expected a <class 'str'> or null; Given value: [1]"


def test_a_known_option_may_be_empty():
    seen = []

    def main(part: Part = Part(), more: dict[str, dict] | None = None, rows: dict[str, Part] | None = None) -> None:
        seen.append((part, more, rows))

    run_command(main, ["--config={part: {}, more: {a: {}, b: {c: {}}}, rows: {d: {}}}"], as_positional=False)
    assert seen == [(Part(), {"a": {}, "b": {"c": {}}}, {"d": Part()})]


@pytest.mark.parametrize(
    ("run", "line"),
    [
        (generate, "the following arguments are required: out, checkpoint"),
        (fidelity, 'expected "subcommand" to be one of {models,folders}, but it was not provided.'),
        (bench, "expected \"subcommand\" to be one of"),
        (prepare, "the following arguments are required"),
    ],
)  # fmt: skip
def test_a_command_without_arguments_says_which_it_needs(capsys, run, line):
    assert line in refused(capsys, run, [])


TEXTS = ["# hello", "#", "null", "Null", "null ", "~", " ", "---", "a # b", "5", "{a: b}", ""]


@pytest.mark.parametrize(
    ("text", "as_one_word"),
    [
        *((text, True) for text in TEXTS),
        *((text, False) for text in TEXTS if text != "---"),
    ],  # which begins with a dash
)
def test_a_prompt_is_text_whatever_yaml_makes_of_it(text, as_one_word):
    parsed = []

    def main(prompt: str | None = None, negative_prompt: str | None = None, tile: int | None = 1) -> None:
        parsed.extend((prompt, negative_prompt, tile))

    words = [[f"--{name}={text}"] if as_one_word else [f"--{name}", text] for name in ("prompt", "negative_prompt")]
    run_command(main, [*words[0], *words[1], "--tile=null"], as_positional=False)
    assert parsed[0].strip() == parsed[1].strip() == text.strip() and parsed[2] is None


def test_such_a_prompt_can_be_printed_and_read_again(tmp_path, capsys):
    with pytest.raises(SystemExit):
        generate(["--checkpoint=x", "--out=o", "--prompt=null", "--negative_prompt=# x", "--print_config"])
    printed = yaml.safe_load(capsys.readouterr().out)
    assert (printed["prompt"], printed["negative_prompt"]) == ("null", "# x")


@pytest.mark.parametrize(
    ("run", "words", "part"),
    [
        (fit, ["--config", "FILE"], "a value in it contains itself"),
        (fit, ["--config=configs/tiny.yaml", "--trainer=&a {x: *a}"], "a value in it contains itself"),
        (generate, ["--config=FILE"], "a value in it contains itself"),
        (generate, ["--attention=&a {x: *a}"], 'Parser key "attention"'),
    ],
)
def test_yaml_that_contains_itself_is_refused(tmp_path, capsys, run, words, part):
    file = tmp_path / "endless.yaml"
    file.write_text("trainer: &a\n  max_steps: 3\n  options: {again: *a}\n")
    assert part in refused(capsys, run, [word.replace("FILE", str(file)) for word in words])


@pytest.mark.parametrize(
    "told",
    [
        "[gloo/transport/tcp/pair.cc:549] Connection closed by peer [127.0.0.1]:5391",
        "Gloo connectFullMesh failed with [pair.cc:152] timed out connecting: SO_ERROR: Connection refused",
        "NCCL error in: NCCLUtils.cpp:77, remote process exited or there was a network error, NCCL version 2.27.5",
        "Failed to recv, got 0 bytes. Connection was likely closed. Did the remote server shutdown or crash?",
    ],
)
def test_a_process_whose_peer_is_gone_says_so(capsys, told):
    """In place of words that no user can use."""

    def command(words):
        with cli_errors("stopped"):
            raise RuntimeError(*words)

    line = refused(capsys, command, [told], code=1)
    assert line == "error: another process of this run is gone: unless it was killed or stopped, its own line says why"
    invalid = "NCCL error in: NCCLUtils.cpp:77, invalid usage, NCCL version 2.27.5"
    for other in ("shapes don't match", invalid, "upload failed: Connection reset by peer"):
        with pytest.raises(RuntimeError, match=re.escape(other)):
            command([other])


@pytest.mark.parametrize(
    ("run", "words"),
    [
        (fit, ["--config=configs/tiny.yaml", "--trainer.max_step=3"]),
        (generate, ["--checkpoint=x", "--out=o", "--promp=a"]),
        (bench, ["train", "--siz=tiny"]),
        (vbench, ["generate", "--checkpoint=x", "--out=o", "--promp=a"]),
    ],
)
def test_an_option_is_written_out(capsys, run, words):
    """A mistyped one is no other that begins alike."""
    assert f"unrecognized arguments: {words[-1]}" in refused(capsys, run, words)
