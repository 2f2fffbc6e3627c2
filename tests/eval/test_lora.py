"""Videos with LoRAs: as the stock pipeline makes them, which weights get which, records, and what is refused."""

import json
import shutil
from dataclasses import asdict

import pytest
import torch
from diffusers import WanPipeline

from eval.fidelity.command import command as fidelity
from eval.generate.command import command, resolve_settings
from eval.generate.jobs import Options
from eval.generate.loras import parse_lora
from eval.generate.sampling import build_scheduler, sample_latents
from eval.vbench.__main__ import command as vbench
from fps_flex.wan import WanConfig
from fps_flex.wan.adapter_files import write_adapter
from fps_flex.wan.adapters import read_adapter
from fps_flex.wan.encoders import UMT5Text, WanVAE
from fps_flex.wan.merging import merge
from fps_flex.wan.weights import open_weights
from tests.helpers.commands import refused
from tests.helpers.loras import DIM, LAYERS, OTHERS, WHOLE, make_adapter, named, save, save_run
from tests.helpers.tiny_wan import SIZES, tiny_pipeline, tiny_transformer

CPU = torch.device("cpu")
TINY = ["--prompt=a red circle", "--frames=1", "--height=32", "--width=48", "--steps=1", "--guidance=1"]
Q = "blocks.0.self_attn.q"


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Two LoRAs; not to be changed."""
    folder = tmp_path_factory.mktemp("loras")
    write_adapter(make_adapter(LAYERS | OTHERS, alpha=6, seed=1), folder / "one.safetensors", "diffusers-lora")
    write_adapter(make_adapter(alpha=2, whole=WHOLE, seed=2), folder / "two.safetensors", "comfyui-lora")
    return folder


@pytest.fixture(scope="module")
def release(tmp_path_factory):
    """Of two experts; not to be changed."""
    pipe, second = tiny_pipeline(), tiny_transformer()
    pipe.register_modules(transformer_2=second)
    pipe.register_to_config(boundary_ratio=0.875)
    folder = tmp_path_factory.mktemp("a14b")
    pipe.save_pretrained(folder)
    return folder


def run_of(file, base, encoders):
    """A checkpoint of a LoRA, whose samples are of real encoders."""
    print_of_base = open_weights(base).fingerprint()
    live, average = make_adapter(alpha=8, seed=3), make_adapter(alpha=8, seed=4)
    codec, text = WanVAE(path=str(encoders)).spec(), UMT5Text(path=str(encoders)).spec()
    said = {"codec": codec, "text": text, "clip": {"frames": 5, "height": 32, "width": 48, "fps": 8.0}}
    return save_run(file, live, average, base, print_of_base, asdict(WanConfig(**SIZES)), **said)


def read(weights, name=f"{Q}.weight"):
    return weights.unrounded.read(name)


def expected_of(base, *loras, name=f"{Q}.weight"):
    weights = open_weights(base)
    for path, strength in loras:
        weights = merge(weights, read_adapter(path), strength)
    return weights.unrounded.read(name)


@pytest.mark.parametrize("strength", [1.0, 0.5, -0.25])
def test_the_same_latents_as_the_stock_pipeline_with_the_lora(wan_folder, files, tmp_path, strength):
    pipe = WanPipeline.from_pretrained(wan_folder)
    pipe.set_progress_bar_config(disable=True)
    arguments = {
        "height": 32, "width": 48, "num_frames": 9, "num_inference_steps": 5, "guidance_scale": 5.0,
        "negative_prompt": "a circle", "output_type": "latent",
    }  # fmt: skip
    without = pipe("a red circle", generator=torch.Generator().manual_seed(3), **arguments).frames
    pipe.load_lora_weights(str(files), weight_name="one.safetensors", adapter_name="one")
    pipe.set_adapters(["one"], [strength])
    expected = pipe("a red circle", generator=torch.Generator().manual_seed(3), **arguments).frames
    model = resolve_settings(Options(str(wan_folder), lora=[f"{files / 'one.safetensors'}:{strength}"], frames=9))[0]
    text = UMT5Text(str(wan_folder), dtype="float32")
    noise = torch.randn(expected.shape, generator=torch.Generator().manual_seed(3))
    states, no_states = text(["a red circle"], CPU), text(["a circle"], CPU)
    got = sample_latents(model.load(CPU), build_scheduler("unipc", 5, 3.0), noise, states, no_states, guidance=5.0)
    assert (without - expected).abs().max() > 0.1
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


def test_several_are_added_and_rounded_once(wan_folder, files):
    one, two = files / "one.safetensors", files / "two.safetensors"
    model = resolve_settings(Options(str(wan_folder), lora=[f"{one}:0.5", f"{two}:2"]))[0]
    for name in (f"{Q}.weight", "head.head.weight", "blocks.0.norm3.weight"):
        expected = expected_of(wan_folder, (one, 0.5), (two, 2.0), name=name)
        assert torch.equal(dict(model.load(CPU).state_dict())[name], expected)
    assert not torch.equal(read(model.weights), expected_of(wan_folder))


@pytest.mark.parametrize(
    ("given", "high", "low"),
    [
        ({"lora": ["one:0.5"]}, [("one", 0.5)], [("one", 0.5)]),
        ({"lora": ["one"], "low_noise_lora": ["two:2"]}, [("one", 1.0)], [("two", 2.0)]),
        ({"lora": ["one"], "low_noise_lora": []}, [("one", 1.0)], []),
        ({"low_noise_lora": ["two"]}, [], [("two", 1.0)]),
        ({}, [], []),
    ],
)
def test_each_of_two_experts_gets_its_own(release, files, monkeypatch, given, high, low):
    for name in ("one", "two"):
        if not (files / name).exists():
            shutil.copy(files / f"{name}.safetensors", files / f"{name}")
    monkeypatch.chdir(files)
    model = resolve_settings(Options(str(release), **given))[0]
    for weights, folder, loras in ((model.weights, "transformer", high), (model.low.weights, "transformer_2", low)):
        assert torch.equal(read(weights), expected_of(release / folder, *loras))


@pytest.mark.parametrize(
    ("text", "path", "strength"),
    [
        ("a.safetensors", "a.safetensors", 1.0),
        ("a.safetensors:0.8", "a.safetensors", 0.8),
        ("a:b.safetensors", "a:b.safetensors", 1.0),
        ("a:b.safetensors:-1", "a:b.safetensors", -1.0),
        ("runs/x:y/last.ckpt:1e-1", "runs/x:y/last.ckpt", 0.1),
        ("3:2", "3", 2.0),
        ("0.5", "0.5", 1.0),
    ],
)
def test_a_strength_is_what_follows_the_last_colon_where_it_is_a_number(text, path, strength):
    assert parse_lora(text) == (path, strength)


def record(out):
    return json.loads(next(out.glob("*.json")).read_text())


def test_a_video_says_its_loras_and_others_make_it_anew(wan_folder, files, tmp_path, capsys):
    out = tmp_path / "out"
    one, two = files / "one.safetensors", files / "two.safetensors"
    run = [f"--checkpoint={wan_folder}", f"--out={out}", *TINY, "--lossless=true"]
    command(run)
    assert "loras" not in record(out)["fingerprints"]
    made = {(): next(out.glob("*.mp4")).read_bytes()}
    for given in ([f"{one}:0.5"], [f"{one}:0.25"], [str(one)], [str(one), f"{two}:0.1"], [str(two)]):
        command([*run, *(f"--lora={lora}" for lora in given)])
        made[tuple(given)] = next(out.glob("*.mp4")).read_bytes()
        said = record(out)["fingerprints"]["loras"]
        expected = [parse_lora(lora) for lora in given]
        assert [(x["path"], x["strength"]) for x in said] == expected
        assert [x["fingerprint"] for x in said] == [read_adapter(path).fingerprint() for path, _ in expected]
    assert len(set(made.values())) == len(made)

    before = record(out)
    shutil.copy(two, tmp_path / "copy.safetensors")
    command([*run, "--lora", str(tmp_path / "copy.safetensors")])
    assert record(out) == before, "the same LoRA elsewhere makes no video anew"
    command(run)
    assert next(out.glob("*.mp4")).read_bytes() == made[()]


def test_options_of_a_file_and_of_the_command_line(wan_folder, files, tmp_path):
    one, two = files / "one.safetensors", files / "two.safetensors"
    config = tmp_path / "config.yaml"
    config.write_text(f"checkpoint: {wan_folder}\nlora: ['{one}:0.5']\n")
    command([f"--config={config}", f"--out={tmp_path / 'a'}", *TINY, "--lora", f"{two}:2"])
    said = record(tmp_path / "a")["fingerprints"]["loras"]
    assert [(x["path"], x["strength"]) for x in said] == [(str(one), 0.5), (str(two), 2.0)]
    command([f"--checkpoint={wan_folder}", f"--out={tmp_path / 'b'}", *TINY, f"--lora=[{one}, {two}]"])
    assert len(record(tmp_path / "b")["fingerprints"]["loras"]) == 2


def test_the_two_experts_of_a_command_line(release, files, tmp_path):
    one = files / "one.safetensors"
    run = [f"--checkpoint={release}", *TINY, "--steps=2", f"--lora={one}"]
    command([*run, f"--out={tmp_path / 'a'}", "--low_noise_lora", "[]"])
    assert record(tmp_path / "a")["fingerprints"].keys() & {"loras", "low_noise_loras"} == {"loras"}
    command([*run, f"--out={tmp_path / 'b'}"])
    assert record(tmp_path / "b")["fingerprints"]["low_noise_loras"][0]["path"] == str(one)


def test_a_checkpoint_of_a_lora_makes_videos_and_so_does_it_as_a_lora(wan_folder, tmp_path):
    checkpoint = run_of(tmp_path / "last.ckpt", wan_folder, wan_folder)
    command([f"--checkpoint={checkpoint}", f"--out={tmp_path / 'a'}", *TINY, "--frames=5"])
    said = record(tmp_path / "a")
    assert said["trained_steps"] == 7 and said["fingerprints"]["transformer"].startswith("run 0123456789abcdef, step 7")
    whole = resolve_settings(Options(str(checkpoint)))[0]
    added = resolve_settings(Options(str(wan_folder), lora=[str(checkpoint)]))[0]
    assert torch.equal(read(whole.weights), read(added.weights))
    live = resolve_settings(Options(str(checkpoint), weights="live"))[0]
    assert not torch.equal(read(whole.weights), read(live.weights))


def test_a_base_that_moved_is_named(wan_folder, release, tmp_path, capsys):
    shutil.copytree(wan_folder / "transformer", tmp_path / "base")
    checkpoint = run_of(tmp_path / "last.ckpt", tmp_path / "base", wan_folder)
    expected = read(resolve_settings(Options(str(checkpoint)))[0].weights)
    shutil.move(tmp_path / "base", tmp_path / "moved")
    run = [f"--checkpoint={checkpoint}", f"--out={tmp_path / 'out'}", *TINY, "--frames=5"]
    line = refused(capsys, command, run)
    assert f"{tmp_path / 'base'}, what the LoRA {checkpoint} was trained on, is not there: name where it is" in line
    got = resolve_settings(Options(str(checkpoint), base=str(tmp_path / "moved")))[0]
    assert torch.equal(read(got.weights), expected)
    assert "of a LoRA's .ckpt" in refused(capsys, command, [f"--checkpoint={wan_folder}", "--base=x", "--out=x", *TINY])
    assert "--base is empty" in refused(capsys, command, [*run, "--base="])


def test_what_is_said_where_only_the_loras_changed(wan_folder, release, files, tmp_path, capsys):
    one, two, own = files / "one.safetensors", files / "two.safetensors", tmp_path / "own.safetensors"
    moved = shutil.copytree(wan_folder, tmp_path / "moved")
    shutil.copy(one, own)

    def said(*given, source=wan_folder):
        capsys.readouterr()
        command([f"--checkpoint={source}", f"--out={tmp_path / source.name}", *TINY, *given])
        lines = capsys.readouterr().out.splitlines()
        return [line.partition(".mp4 was made with ")[2] for line in lines if "made again" in line]

    assert said() == []
    assert said(f"--lora={one}:0.5") == [f"another LoRA (none, now {one}:0.5): it is made again"]
    assert said(f"--lora={one}") == [f"another LoRA ({one}:0.5, now {one}:1.0): it is made again"]
    assert said(f"--lora={own}") == []
    assert said(f"--lora={own}", f"--lora={two}:2") == [
        f"another LoRA ({one}:1.0, now {own}:1.0 and {two}:2.0): it is made again"
    ]
    shutil.copy(two, own)
    assert said(f"--lora={own}", f"--lora={two}:2") == [f"other weights than are now in {own}: it is made again"]
    (tmp_path / "moved-out").symlink_to(tmp_path / wan_folder.name)
    command([f"--checkpoint={moved}", f"--out={tmp_path / 'moved-out'}", *TINY, f"--encoders={wan_folder}"])
    line = f"another LoRA ({own}:1.0 and {two}:2.0, now none): it is made again"
    assert line in capsys.readouterr().out, "where the weights moved as well"
    assert said(source=release) == []
    assert said(f"--low_noise_lora={one}", source=release) == [
        f"another LoRA for low noise (none, now {one}:1.0): it is made again"
    ]


def test_fidelity_compares_a_trained_lora_with_its_release(wan_folder, tmp_path, capsys):
    """Whose base has moved, and of which the live weights are asked for: neither is anything to the release."""
    shutil.copytree(wan_folder / "transformer", tmp_path / "base")
    checkpoint = run_of(tmp_path / "last.ckpt", tmp_path / "base", wan_folder)
    shutil.move(tmp_path / "base", tmp_path / "moved")
    run = ["models", f"--checkpoint={wan_folder}", f"--out={tmp_path / 'out'}", *TINY, "--frames=5",
           "--attention.schedule=fps", "--attention.tile=[1,2,2]", "--attention.block=16"]  # fmt: skip
    base, live = f"--base={tmp_path / 'moved'}", "--weights=live"
    assert "name where it is with --base" in refused(capsys, fidelity, [*run, f"--trained={checkpoint}"])
    assert "of a LoRA's .ckpt" in refused(capsys, fidelity, [*run, base])
    assert "weights is live, of a .ckpt" in refused(capsys, fidelity, [*run, live])
    fidelity([*run, f"--trained={checkpoint}", base, live])
    rows = {row["name"]: row for row in json.loads((tmp_path / "out/fidelity.json").read_text())["rows"]}
    assert "with FPS attention" in rows["joint-trained"]["weights"] and "released" in rows["joint"]["weights"]
    assert "loras" not in record(tmp_path / "out/joint")["fingerprints"]
    (said,) = record(tmp_path / "out/joint-trained")["fingerprints"]["loras"]
    assert said["fingerprint"] == read_adapter(checkpoint, "live").fingerprint()


def test_what_does_not_fit_is_one_line_before_anything_is_loaded(
    wan_folder, release, files, tmp_path, capsys, monkeypatch
):
    def load(*_, **__):
        raise AssertionError("loaded")

    monkeypatch.setattr("eval.generate.models.TextToVideo.load", load)
    one = files / "one.safetensors"
    wide = save(named(make_adapter({Q: (64, 64)}), "diffusion_model.{official}"), tmp_path / "wide.safetensors")
    deep = save(named(make_adapter({"blocks.7.ffn.0": (96, DIM)}), "{official}"), tmp_path / "deep.safetensors")
    image = save(
        {"diffusion_model.blocks.0.cross_attn.k_img.lora_A.weight": torch.ones(2, 2)}, tmp_path / "i2v.safetensors"
    )
    lokr = save({f"diffusion_model.{Q}.lokr_w1": torch.ones(2, 2)}, tmp_path / "lokr.safetensors")
    run = [f"--out={tmp_path / 'out'}", *TINY]
    for given, message in (
        ([f"--lora={one}:nan"], f"the strength in lora '{one}:nan' is nan, expected a finite number"),
        ([f"--lora={one}:inf"], "is inf, expected a finite number"),
        ([f"--lora={one}:-Infinity"], "is -inf, expected a finite number"),
        (["--lora=:0.5"], "lora is ':0.5', expected FILE or FILE:STRENGTH"),
        (["--lora="], "--lora"),
        ([f"--lora={tmp_path / 'missing.safetensors'}:0.5"], f"no {tmp_path / 'missing.safetensors'}"),
        ([f"--lora={one}:0.5x"], f"no {one}:0.5x"),
        ([f"--lora={wide}"], f"{wide} is a LoRA of another model: it changes {Q}.weight of (64, 64), the tr"),
        ([f"--lora={deep}"], "blocks.7.ffn.0.weight of (96, 48), the transformer has none"),
        ([f"--lora={one}", f"--lora={wide}"], f"{wide} is a LoRA of another model"),
        ([f"--lora={image}"], f"{image} is a LoRA of an image-to-video model"),
        ([f"--lora={lokr}"], f"{lokr} is a LoKr of LyCORIS"),
        ([f"--lora={wan_folder / 'transformer'}"], "is a whole model"),
        ([f"--low_noise_lora={one}"], "low_noise_lora is of the second of two experts"),
    ):  # fmt: skip
        assert message in refused(capsys, command, [f"--checkpoint={wan_folder}", *run, *given])
    assert "of (64, 64)" in refused(capsys, command, [f"--checkpoint={release}", *run, f"--low_noise_lora={wide}"])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("of", ["fidelity", "vbench"])
def test_other_commands_that_make_videos_take_loras_too(wan_folder, files, suite, tmp_path, capsys, of):
    run, more = {
        "fidelity": (fidelity, ["models", "--prompt=a", "--attention.schedule=fps", "--attention.tile=[1,2,2]"]),
        "vbench": (vbench, ["run", f"--suite={suite}", "--quick=1", "--dimensions=[temporal_flickering]"]),
    }[of]
    given = [*more, f"--checkpoint={wan_folder}", f"--out={tmp_path / 'out'}"]
    line = refused(capsys, run, [*given, "--lora", f"{files / 'one.safetensors'}:0.5", "--lora=nowhere"])
    assert "lora 'nowhere': no nowhere" in line


def test_help_says_how_a_lora_is_given(capsys):
    with pytest.raises(SystemExit):
        command(["--help"])
    said = " ".join(capsys.readouterr().out.split())
    assert "FILE or FILE:STRENGTH" in said and "again for each one more" in said and "--base BASE" in said
