"""What --help says: of every option what it is, and by name every codec and text encoder that a command takes."""

import re

import pytest

from train.fit import main
from train.prepare.__main__ import command

OPTION = re.compile(r"^  (?:-\w \w+, )?--([\w.]+)", re.MULTILINE)


def read_help(capsys, monkeypatch, run):
    """Each option's help text, without its type and default."""
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit) as stopped:
        run(["--help"])
    assert stopped.value.code == 0
    text = capsys.readouterr().out.partition("\noptions:\n")[2]
    starts = [*OPTION.finditer(text)]
    ends = [match.start() for match in starts[1:]] + [len(text)]
    return {match[1]: text[match.end() : end] for match, end in zip(starts, ends, strict=True)}


@pytest.mark.parametrize(("run", "prefix"), [(main, "model."), (command, "")])
def test_every_option_says_what_it_is_and_the_encoders_are_named(run, prefix, capsys, monkeypatch):
    texts = read_help(capsys, monkeypatch, run)
    plain = {name: re.sub(r"\{[\w,]*\}|\((required|type: ).*", "", x, flags=re.DOTALL) for name, x in texts.items()}
    silent = [name for name, text in plain.items() if not re.search("[a-z]{2}", text)]
    assert not silent and len(plain) > 20
    for option, classes in (("codec", ("PixelCodec", "LinearCodec", "WanVAE")), ("text", ("ByteText", "UMT5Text"))):
        assert all(re.search(rf"\b{name}\b", texts[prefix + option]) for name in classes)
