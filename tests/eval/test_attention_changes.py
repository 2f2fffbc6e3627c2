"""Options of the attention in place of the trained ones: each alone, from each command, on each kind of checkpoint."""

import json
from dataclasses import asdict, fields, replace

import pytest
import torch
import yaml

from eval.fidelity.command import command as fidelity
from eval.generate.attention import DENSE, AttentionChanges, ScheduleChanges, choose_attention
from eval.generate.command import command as generate
from eval.vbench.__main__ import command as vbench
from fps_flex import FPSAttention, Regime, StepSchedule, preset
from fps_flex.attention import EARLIER
from fps_flex.wan import WAN_TINY, Wan, WanConfig
from fps_flex.wan.codecs import ByteText, PixelCodec
from fps_flex.wan.convert import main as convert
from tests.helpers.commands import refused
from tests.helpers.tiny_wan import SIZES
from tests.helpers.vbench_suite import write_suite

OWN = FPSAttention(
    StepSchedule((0.5,), (Regime((None, 1, 0.5), 2), Regime((None, None, 0.5), "head")), shift=2.0),
    tile=(1, 2, 2), block=16, scale_format="pow2", engine="eager",
)  # fmt: skip
CHANGES = {  # option -> word of the command line, value
    "schedule": ("sta", preset("sta")),
    "tile": ("[1,4,4]", (1, 4, 4)),
    "block": ("32", 32),
    "quantize": ("false", False),
    "sparse": ("false", False),
    "scale_format": ("fp32", "fp32"),
    "carrier": ("float8", "float8"),
    "engine": ("auto", "auto"),
    "smooth_k": ("false", False),
    "codes": ("int8", "int8"),
    "rotate": ("hadamard", "hadamard"),
    "layers": ("{0-1: dense, 2: {window: [1, null, null]}}", {"0-1": "dense", 2: Regime((1, None, None))}),
}


def save(path, config, **said):
    """A checkpoint of random weights that says it was trained with OWN."""
    torch.manual_seed(0)
    said = {
        "wan": asdict(config), "attention": asdict(OWN), "noise_levels": [0.0, 1.0], "codec": PixelCodec().spec(),
        "text": ByteText().spec(), "clip": {"frames": 2, "height": 32, "width": 32, "fps": 8.0},
        "residual": "fp32", "shift": 3.0, "step": 7, "run_id": "0123456789abcdef", **said,
    }  # fmt: skip
    weights = {f"model.{name}": tensor for name, tensor in Wan(config, OWN).state_dict().items()}
    torch.save({"state_dict": weights, "fps_flex": said}, path)
    return path


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return save(tmp_path_factory.mktemp("trained") / "own.ckpt", WAN_TINY)


@pytest.fixture(scope="module")
def exported(tmp_path_factory, wan_folder):
    """A fine-tune of a Wan with the real kind of VAE, in diffusers' layout."""
    folder = tmp_path_factory.mktemp("exported")
    clip = {"frames": 9, "height": 32, "width": 48, "fps": 8.0}
    save(folder / "own.ckpt", WanConfig(**SIZES), clip=clip)
    convert(["convert", str(folder / "own.ckpt"), str(folder / "own"), "--format", "diffusers"])
    return folder / "own"


def made(checkpoint, out, *options, run=generate, words=("--prompt=a", "--steps=1", "--guidance=1")):
    """The attention in the record of a video made with these options."""
    run([f"--checkpoint={checkpoint}", f"--out={out}", *words, *options])
    return FPSAttention.from_dict(json.loads(next(out.rglob("*-seed0.json")).read_text())["attention"])


@pytest.mark.parametrize("option", CHANGES)
def test_one_option_changes_that_option_of_the_trained_attention(option):
    _, value = CHANGES[option]
    changes = AttentionChanges(**{option: "sta" if option == "schedule" else value})
    assert choose_attention({"own": OWN}, changes) == replace(OWN, **{option: value}) != OWN


def test_the_table_holds_every_option():
    assert list(CHANGES) == [field.name for field in fields(AttentionChanges)]
    assert [x.name for x in fields(AttentionChanges)] == [x.name for x in fields(FPSAttention)]
    assert [x.name for x in fields(ScheduleChanges)] == [x.name for x in fields(StepSchedule)]


@pytest.mark.parametrize("option", [x for x in CHANGES if x not in ("carrier", "engine")])
def test_from_the_command_line_and_from_yaml(trained, tmp_path, capsys, option):
    word, value = CHANGES[option]
    expected = replace(OWN, **{option: value})
    assert made(trained, tmp_path / "line", f"--attention.{option}={word}") == expected
    said = capsys.readouterr().out.splitlines()[0]
    assert said.startswith(f"{trained} gets another attention than it was trained with: {option}")
    (tmp_path / "own.yaml").write_text(f"attention: {{{option}: {word}}}\n")
    assert made(trained, tmp_path / "yaml", f"--config={tmp_path / 'own.yaml'}") == expected
    more = made(trained, tmp_path / "both", f"--config={tmp_path / 'own.yaml'}", "--attention.block=48")
    assert more == replace(expected, block=48)


def test_the_line_names_each_option_with_both_values(trained, tmp_path, capsys):
    def line(name, *options):
        made(trained, tmp_path / name, *options)
        return "".join(x for x in capsys.readouterr().out.splitlines() if x.startswith(str(trained)))

    before = f"{trained} gets another attention than it was trained with: "
    assert line("tile", "--frames=8", "--attention.tile=null", "--attention.block=32") == (
        before + "tile null in place of (1, 2, 2), block 32 in place of 16"
    )
    assert line("shift", "--attention.schedule.shift=3") == before + "schedule.shift 3.0 in place of 2.0"
    assert line("none") == line("null", "--attention=null") == ""
    assert line("same", "--attention.engine=eager", "--attention.tile=[1,2,2]") == ""


def test_parts_of_the_schedule_change_the_trained_one(trained, tmp_path):
    got = made(trained, tmp_path / "shift", "--attention.schedule.shift", "3.5")
    assert got == replace(OWN, schedule=replace(OWN.schedule, shift=3.5))
    (tmp_path / "own.yaml").write_text(yaml.safe_dump({"attention": {"schedule": {"bounds": [0.25]}, "tile": None}}))
    got = made(trained, tmp_path / "bounds", "--frames=8", f"--config={tmp_path / 'own.yaml'}")
    assert got == replace(OWN, tile=None, schedule=replace(OWN.schedule, bounds=(0.25,)))
    got = made(trained, tmp_path / "all", "--attention.schedule.bounds=[]", "--attention.schedule.shift=4",
               "--attention.schedule.regimes=[{window: [null, 1, null]}]")  # fmt: skip
    assert got.schedule == StepSchedule((), (Regime((None, 1, None)),), 4.0) and got.tile == OWN.tile


def test_an_exported_fine_tune_keeps_its_attention_too(exported, wan_folder, tmp_path):
    encoders = f"--encoders={wan_folder}"
    assert made(exported, tmp_path / "own", encoders) == OWN
    got = made(exported, tmp_path / "sta", encoders, "--attention.schedule=sta")
    assert got == replace(OWN, schedule=preset("sta"))


def test_checkpoints_and_records_from_before_an_option_are_of_attention_without_it(tmp_path, capsys):
    old = {name: value for name, value in asdict(OWN).items() if name not in EARLIER}
    checkpoint, out = save(tmp_path / "old.ckpt", WAN_TINY, attention=old), tmp_path / "out"
    assert made(checkpoint, out) == replace(OWN, smooth_k=False)
    (record,) = out.glob("*-seed0.json")
    said = json.loads(record.read_text())
    record.write_text(json.dumps({**said, "attention": old}))
    capsys.readouterr()
    generate([f"--checkpoint={checkpoint}", f"--out={out}", "--prompt=a", "--steps=1", "--guidance=1"])
    assert "1 of 1 videos are there already" in capsys.readouterr().out
    smooth = [f"--checkpoint={checkpoint}", f"--out={out}", "--prompt=a", "--steps=1", "--guidance=1",
              "--attention.smooth_k=true"]  # fmt: skip
    line = refused(capsys, generate, smooth)
    assert "was made with attention" in line and "choose another --out" in line


def test_layers_that_a_model_lacks_are_refused_before_anything_is_made(trained, tmp_path, capsys):
    words = [f"--checkpoint={trained}", f"--out={tmp_path / 'out'}", "--prompt=a", "--steps=1"]
    line = refused(capsys, generate, [*words, "--attention.layers={2-5: dense}"])
    assert "layers names 2-5, and the model has 3 layers: expected some of 0 to 2" in line
    assert not (tmp_path / "out").exists()


def test_layers_are_said_by_their_names_and_taken_out_again(trained, tmp_path, capsys):
    assert made(trained, tmp_path / "own", "--attention.layers={0: dense}").layers == (("0", preset("dense")),)
    assert "layers 0 dense in place of none" in capsys.readouterr().out
    own = save(tmp_path / "layers.ckpt", WAN_TINY, attention=asdict(replace(OWN, layers={"0-1": "sta"})))
    assert made(own, tmp_path / "kept").layers == (("0-1", preset("sta")),)
    assert made(own, tmp_path / "out", "--attention.layers={}") == OWN


def test_released_weights_stay_dense_without_a_schedule(wan_folder, tmp_path, capsys):
    small = ["--frames=1", "--height=32", "--width=48"]
    got = made(wan_folder, tmp_path / "engine", *small, "--attention.engine=eager", "--attention.block=16")
    assert got == replace(DENSE, engine="eager", block=16)
    assert "block 16 in place of 128, engine eager in place of auto" in capsys.readouterr().out
    got = made(wan_folder, tmp_path / "fps", *small, "--attention.schedule=sta", "--attention.tile=[1,2,2]")
    assert got == FPSAttention("sta", tile=(1, 2, 2), scale_format="pow2")
    said = capsys.readouterr().out
    assert "schedule sta in place of dense, tile (1, 2, 2) in place of null" in said
    assert "FPS attention on (1, 2, 3) tokens: schedule sta, tile (1, 2, 2), pow2 scales, engine eager\n" in said
    assert made(wan_folder, tmp_path / "dense", *small, "--attention.schedule=dense") == DENSE


@pytest.mark.parametrize("option", [x for x in CHANGES if x not in ("schedule", "block", "engine")])
def test_an_option_of_sparse_or_quantised_attention_alone_is_refused_on_released_weights(option):
    _, value = CHANGES[option]
    with pytest.raises(ValueError, match=f"attention.{option} is given, and wan was trained with dense attention: add"):
        choose_attention({"wan": None}, AttentionChanges(**{option: value}))
    for parts in (ScheduleChanges(shift=3.0), ScheduleChanges(bounds=()), ScheduleChanges()):
        with pytest.raises(ValueError, match="attention.schedule is given, and wan was trained with dense attention"):
            choose_attention({"wan": None}, AttentionChanges(parts))


def test_two_experts_get_one_attention():
    other = replace(OWN, tile=(1, 4, 4))
    assert choose_attention({"high": OWN, "low": OWN}, None) == OWN
    assert choose_attention({"high": OWN, "low": other}, AttentionChanges(tile=None)) == replace(OWN, tile=None)
    for trained, asked, said in (
        ({"high": OWN, "low": other}, None, "tile (1, 2, 2) and (1, 4, 4)"),
        ({"high": OWN, "low": other}, AttentionChanges("sta"), "tile (1, 2, 2) and (1, 4, 4)"),
        ({"high": OWN, "low": None}, AttentionChanges(engine="eager"), "scale_format pow2 and fp32"),
    ):
        with pytest.raises(ValueError, match="high and low were trained with different attention: name that") as caught:
            choose_attention(trained, asked)
        assert said in str(caught.value)
    for trained in ({"high": None, "low": OWN}, {"high": OWN, "low": None}):
        assert choose_attention(trained, AttentionChanges("fps")) == replace(OWN, schedule="fps")
        with pytest.raises(ValueError, match="attention.schedule is given, and (high|low) was trained with dense"):
            choose_attention(trained, AttentionChanges(ScheduleChanges(shift=3.0)))
    assert choose_attention({"high": None, "low": None}, None) == DENSE


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--attention.carrier=float8", "--attention.quantize=false"], "the float8 carrier needs every regime"),
        (["--attention.schedule=paper"], "schedule is 'paper', expected one of fps, sta, uniform, dense"),
        (["--attention.schedule="], "--attention.schedule is empty"),
        (["--attention.schedule.bounds=[0.5,0.2]"], "2 regimes and 2 bounds, expected one more regime"),
        (["--attention.schedule.shift=0"], "shift is 0.0, expected a number above 0"),
        (["--attention.schedule.regimes=[{window: [0, 1, 1]}, {}]"], "window is (0, 1, 1), expected three extents"),
        (["--attention.schedule=sta", "--attention.schedule.shift=3"], "which is the preset 'sta'"),
        (["--attention.tile=[0,1,1]"], "tile is (0, 1, 1), expected three sizes"),
        (["--attention.tile=small"], "attention"),
        (["--attention.block=0"], "block is 0, expected a whole number of at least 1"),
        (["--attention.block=1.5"], "attention"),
        (["--attention.quantize=maybe"], "attention"),
        (["--attention.engine=cudnn"], "attention"),
        (["--attention.engin=eager"], "Option 'engin' is not accepted"),
        (["--attention.schedule.shif=3"], "attention"),
        (["--attention=fps"], "attention"),
    ],
)
def test_what_cannot_be_is_one_line(trained, tmp_path, capsys, words, message):
    for run in (generate, lambda given: fidelity(["models", *given])):
        given = [f"--checkpoint={trained}", "--prompt=a", f"--out={tmp_path / 'out'}", *words]
        assert message in refused(capsys, run, given)
    assert not (tmp_path / "out").exists()


def test_fidelity_compares_the_changed_attention(trained, tmp_path, capsys):
    fidelity(["models", f"--checkpoint={trained}", "--prompt=a", "--steps=1", "--guidance=1", f"--out={tmp_path}",
              "--attention.schedule=sta"])  # fmt: skip
    assert capsys.readouterr().out.count("gets another attention") == 1
    said = {file.parent.name: json.loads(file.read_text())["attention"] for file in tmp_path.glob("*/*.json")}
    assert FPSAttention.from_dict(said["joint"]) == replace(OWN, schedule=preset("sta"))
    assert FPSAttention.from_dict(said["dense"]) == replace(OWN, schedule="dense", tile=None)


def test_vbench_makes_its_videos_with_the_changed_attention(trained, tmp_path):
    suite = write_suite(tmp_path / "suite.json")
    vbench(["plan", f"--suite={suite}", f"--out={tmp_path}", "--dimensions=color", "--quick=1"])
    vbench(["generate", f"--checkpoint={trained}", f"--out={tmp_path}", "--steps=1", "--guidance=1",
            "--attention.schedule=sta"])  # fmt: skip
    (record,) = (tmp_path / "records").glob("*.json")
    said = FPSAttention.from_dict(json.loads(record.read_text())["attention"])
    assert said == replace(OWN, schedule=preset("sta"))
