"""Every option of train.prepare, with values that can't be meant: one line that names it, exit code 2, no work."""

import pytest
import yaml

from tests.helpers.commands import refused
from tests.helpers.preparing import prepare_words, small_scene
from train.prepare.__main__ import command

INTEGER = ["0", "-1", "1.5"]
SWITCH = ["maybe", "2", "[]"]
ENCODER = ["nothing.Here", "7", "{class_path: fps_flex.wan.codecs.NoSuch}"]
CLIP_SCORE = "{class_path: train.prepare.scorers.ClipAesthetic, init_args: {clip: %s, head: %s}}"
LIMIT = ["-0.1", "nan", "much"]

BAD = {
    "config": ["nowhere.yaml", "README.md", ""],
    "source": ["nowhere", "", "README.md"],
    "out": ["", " ", "README.md", "/proc/out"],
    "codec": ENCODER,
    "codec.init_args.stride": ["[0,2,2]", "[-1,2,2]", "[2,2]", "[3,2,2]"],
    "text": ENCODER,
    "text.init_args.dim": ["0", "-32", "wide"],
    "text.init_args.length": INTEGER,
    "stages": ["[]", "[scann]", "7"],
    "redo": SWITCH,
    "frames": ["0", "9", "1.5", "-10", "100000000"],
    "fps": ["0", "-8", "inf", "nan"],
    "height": ["0", "33", "-32", "1.5"],
    "width": ["0", "33", "-32", "1.5", "1000000000"],
    "limits": ["7", "strict", "{min_sides: 3}"],
    "limits.min_side": ["-1", "1.5", "wide"],
    "limits.min_fps": LIMIT,
    "limits.min_spread": LIMIT,
    "limits.min_motion": [*LIMIT, "3"],
    "limits.max_motion": [*LIMIT, "0.01"],
    "limits.min_picture": [*LIMIT, "1.1"],
    "limits.min_distance": [*LIMIT, "1.1"],
    "scorers": ["7", "[{class_path: nothing.Here}]", f"[{CLIP_SCORE % ('nowhere', 'nowhere')}]"],
    "val_share": ["1", "-0.1", "nan", "half"],
    "batch_size": INTEGER,
}  # fmt: skip

# what a line may name in an option's place
PARTS = {
    "codec.init_args.stride": ("stride", "boxes"), "frames": ("clips of",), "height": ("boxes",), "width": ("boxes",),
    "limits.min_motion": ("max_motion",), "text.init_args.dim": ("byte text's dim",),
    "text.init_args.length": ("byte text's length",), "limits": ("min_sides",),
}  # fmt: skip


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    folder = tmp_path_factory.mktemp("raw")
    for i in range(2):
        small_scene(folder / f"{i}.mp4", i)
        (folder / f"{i}.txt").write_text(f"clip {i}")
    return folder


@pytest.fixture
def refuse(raw, small, tmp_path, capfd):
    """The one line in which a command line refuses to begin."""

    def run(*options):
        line = refused(capfd, command, prepare_words(raw, tmp_path / "out", small, *options))
        assert not (tmp_path / "out").exists() and "Traceback" not in line
        return line

    return run


@pytest.mark.parametrize("option", BAD)
def test_each_option_refuses_what_it_cannot_mean(refuse, option):
    for value in BAD[option]:
        line = refuse(f"--{option}={value}")
        named = (option, option.rpartition(".")[2], *PARTS.get(option, ()))
        assert any(name in line for name in named) or value in line, (value, line)


def test_the_table_holds_every_option(raw, tmp_path, capsys):
    with pytest.raises(SystemExit):
        command([f"--source={raw}", f"--out={tmp_path / 'out'}", "--codec=fps_flex.wan.codecs.PixelCodec",
                 "--text=fps_flex.wan.codecs.ByteText", "--print_config"])  # fmt: skip
    config = yaml.safe_load(capsys.readouterr().out)

    def options(value, name=""):
        if name:
            yield name
        for key, item in value.items() if isinstance(value, dict) else ():
            yield from options(item, f"{name}.{key}" if name else key)

    ours = {name for name in options(config) if not name.endswith(("class_path", "init_args"))}
    assert ours | {"config"} == set(BAD)
