"""Every option of eval.generate, with values that can't be meant: one line that names it, exit code 2, no work."""

import pytest
import yaml

from eval.generate.command import command

WHOLE = ["0", "-1", "1.5", "many", "null"]
RATE = ["0", "-8", ".inf", ".nan", "fast"]
SIZE = ["0", "-16", "1.5", "wide", ".nan"]
SCALE = ["-1", ".nan", ".inf", "1e38", "much"]

BAD = {
    "config": ["nowhere.yaml", "tests", "tests/train/test_console.py", ""],
    "out": ["", " ", "README.md", "/proc/out", "README.md/out"],
    "prompt": ["a\udcff"],
    "prompts": ["nowhere.txt", "tests", "", "EMPTY", "BINARY", "UTF16", "CARRIAGE"],
    "count": [*WHOLE, "1000000000"],
    "seed": ["-1", "1.5", "99999999999999999999", ".nan", "null"],
    "checkpoint": ["nowhere", "README.md", "", "tests", "nowhere.ckpt", "hf:nowhere"],
    "negative_prompt": ["a\udcff"],
    "sampler": ["dpm", "7", "null"],
    "steps": [*WHOLE, "1001"],
    "guidance": [*SCALE, "null"],
    "shift": [*SCALE, "0", "1e-300"],
    "frames": [*SIZE, "2", "8", "1000000001"],
    "height": [*SIZE, "8", "40", "3200000"],
    "width": [*SIZE, "8", "40", "3200000"],
    "fps": [*RATE, "0.0001", "1001"],
    "weights": ["best", "null"],
    "attention": ["fps", "7", "[]", "{engin: eager}", "{tile: null}"],
    "attention.schedule": ["paper", "7", "{shift: 2}", "{bounds: [2], regimes: [{}, {}]}", "{bound: []}", ""],
    "attention.schedule.bounds": ["[0.5]", "half"],
    "attention.schedule.regimes": ["[{}]", "7", "[{window: [0, 1, 1]}]"],
    "attention.schedule.shift": ["3", "steep"],
    "attention.tile": ["[1,1]", "[0,1,1]", "[1,2,2]", "null", "small"],
    "attention.block": ["0", "-128", "1.5", "big"],
    "attention.quantize": ["false", "maybe"],
    "attention.sparse": ["false", "maybe"],
    "attention.scale_format": ["pow2", "fp64"],
    "attention.carrier": ["float8", "int8"],
    "attention.engine": ["cudnn", "7"],
    "attention.smooth_k": ["true", "maybe"],
    "attention.codes": ["int8", "int4"],
    "attention.rotate": ["hadamard", "fourier"],
    "attention.layers": ["{0: dense}", "[0]", "7"],
    "linears": ["fp8", "fp8-ffn", "int8", "null"],
    "residual": ["bf16", "7"],
    "lossless": ["maybe", "7", "null"],
    "encoders": ["nowhere", "", "README.md"],
    "low_noise": ["nowhere", "", "README.md"],
    "boundary": ["0", "1", "-0.5", ".nan", "0.5", "half"],
    "low_noise_guidance": [*SCALE, "2"],
    "lora": ["nowhere", "nowhere:0.5", "", ":1", "README.md", "tests", "a:.nan", "a:nan", "a:inf", "[nowhere, x]",
             "['']", "[' ']", "[null]", "[{a: 1}]", "[[a]]", "{a: 1}", "nowhere.ckpt", "\udcff", "x\0", "hf:a/b"],
    "low_noise_lora": ["nowhere", "[]", "", "README.md"],
    "base": ["nowhere", "", "README.md"],
    "compile_cache": ["", "README.md", "/proc/out", "README.md/out"],
    "parallel": ["7", "[]", "{sequenc: 2}"],
    "parallel.sequence": [*WHOLE, "2"],
    "parallel.guidance": [*WHOLE, "2", "3"],
    "parallel.exchange": ["ring", "7", "null", "halo"],
}  # fmt: skip

# what a line may name in an option's place
PARTS = {
    "attention.schedule": ("bounds are",), "attention.schedule.bounds": ("attention.schedule",),
    "attention.schedule.regimes": ("attention.schedule", "window is"),
    "attention.schedule.shift": ("attention.schedule",), "low_noise": ("configs", "expert"),
    "frames": ("videos of (1000000001",), "height": ("videos of",), "width": ("videos of",),
}  # fmt: skip


@pytest.fixture
def refuse(wan_folder, tmp_path, capsys):
    """The one line in which a command line refuses to begin."""
    files = {"EMPTY": b"\n \n", "BINARY": b"\x89PNG\xff\xd8", "UTF16": "a\n".encode("utf-16"), "CARRIAGE": b"a\rb\n"}
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)

    def run(option, value):
        value = str(tmp_path / value) if value in files else value
        given = {
            "checkpoint": wan_folder, "prompt": "a", "frames": 9, "height": 32, "width": 48, "steps": 2,
            "out": tmp_path / "out",
        }  # fmt: skip
        given.pop("prompt" if option == "prompts" else option, None)
        with pytest.raises(SystemExit) as stopped:
            command([*(f"--{name}={said}" for name, said in given.items()), f"--{option}={value}"])
        out, said = capsys.readouterr()
        assert stopped.value.code == 2, said
        (line,) = said.splitlines()
        assert line.startswith("error: ") and "Traceback" not in line
        assert not (tmp_path / "out").exists() and "wrote" not in out
        return line

    return run


@pytest.mark.parametrize("option", BAD)
def test_each_option_refuses_what_it_cannot_mean(refuse, monkeypatch, option):
    monkeypatch.setattr(
        "eval.generate.videos.encode_prompts", None
    )  # nothing is encoded, and no transformer loaded, before
    monkeypatch.setattr("eval.generate.models.fill", None)
    for value in BAD[option]:
        line = refuse(option, value)
        named = (option, option.rpartition(".")[2], *PARTS.get(option, ()))
        assert any(name in line for name in named) or value in line, (value, line)


def test_the_table_holds_every_option(tmp_path, capsys):
    whole = "{schedule: {bounds: [], regimes: [{}], shift: 3}}"
    with pytest.raises(SystemExit):
        command(["--checkpoint=x", f"--out={tmp_path}", f"--attention={whole}", "--print_config"])

    def options(value, name=""):
        if name:
            yield name
        for key, item in value.items() if isinstance(value, dict) else ():
            yield from options(item, f"{name}.{key}" if name else key)

    assert {*options(yaml.safe_load(capsys.readouterr().out)), "config"} == set(BAD)


@pytest.mark.parametrize("word", ["--stepz=3", "--Steps=3", "steps=3", "--attention.engin=eager", "--steps"])
def test_an_option_that_is_none_is_one_line(refuse, word):
    option, _, value = word.removeprefix("--").partition("=")
    if word.startswith("--") and value:
        assert option.rpartition(".")[2] in refuse(option, value)
        return
    with pytest.raises(SystemExit) as stopped:
        command(["--checkpoint=x", "--out=y", "--prompt=a", word])
    assert stopped.value.code == 2


@pytest.mark.parametrize(
    "text", ["steps: [", "stepz: 3", "steps: many", "7", "attention: {engin: eager}", "steps: 3\nsteps: 4\n\t-"]
)
def test_a_configuration_that_cannot_be_read_is_one_line(refuse, tmp_path, text):
    (tmp_path / "own.yaml").write_text(text)
    refuse("config", str(tmp_path / "own.yaml"))


def test_a_configuration_may_begin_with_a_byte_order_mark(wan_folder, tmp_path, capsys):
    (tmp_path / "own.yaml").write_text("\ufeffsteps: 0\nprompt: a\n", encoding="utf-8")
    with pytest.raises(SystemExit):
        command([f"--config={tmp_path / 'own.yaml'}", f"--checkpoint={wan_folder}", f"--out={tmp_path / 'out'}"])
    assert capsys.readouterr().err.startswith("error: steps is 0, expected at least 1 and at most 1000")
