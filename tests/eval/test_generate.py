"""Generating videos: as the stock pipeline does, in shards, after being killed, and from every kind of checkpoint."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import av
import pytest
import torch
from PIL import Image

from eval.bench.__main__ import command as bench
from eval.fidelity.command import command as fidelity
from eval.generate.command import command, resolve_settings
from eval.generate.jobs import Options
from eval.generate.models import open_model
from eval.generate.sampling import build_scheduler, list_regimes, sample_latents
from eval.vbench.__main__ import command as vbench
from fps_flex import FPSAttention, preset
from fps_flex.wan import WAN_TINY, Wan, WanConfig
from fps_flex.wan.codecs import ByteText
from fps_flex.wan.convert import main
from fps_flex.wan.encoders import UMT5Text
from fps_flex.wan.flow import euler_sample, sampling_levels
from fps_flex.wan.model import default_residual
from fps_flex.wan.weights import load_wan, open_weights
from tests.helpers.tiny_wan import SIZES
from train.fit import main as fit

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")
DENSE = FPSAttention("dense", tile=None, block=16)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A checkpoint of two steps on moving shapes."""
    run = tmp_path_factory.mktemp("trained") / "run"
    fit(["--config=configs/tiny.yaml", f"--run={run}", "--trainer.max_steps=2", "--trainer.val_check_interval=2",
         "--checkpoint.every_n_train_steps=2", "--data.val_clips=1", "--sample.steps=1", "--sample.count=1",
         "--model.val_levels=1", "--data.batch_size=1", "--model.lr=0.1"])  # fmt: skip
    return run / "checkpoints/last.ckpt"


@pytest.fixture(scope="module")
def prompts(tmp_path_factory):
    path = tmp_path_factory.mktemp("prompts") / "prompts with a space.txt"
    path.write_text('a red circle moving left\n\na blue square\nGrün & 日本, a "quoted" path/../name\na\n')
    return path


def options(checkpoint, prompts, out):
    return ["--config=configs/generate.yaml", f"--checkpoint={checkpoint}", f"--prompts={prompts}", f"--out={out}"]


OF_ONE = ("seconds", "peak_gb")  # of the making of a video, not of the video


def contents(folder):
    """Of each file; of a record all but how long it took."""
    return {path.name: settings_in(path) if path.suffix == ".json" else path.read_bytes() for path in folder.iterdir()}


def settings_in(record):
    return {name: value for name, value in json.loads(record.read_text()).items() if name not in OF_ONE}


@pytest.fixture(scope="module")
def uninterrupted(trained, prompts, tmp_path_factory):
    out = tmp_path_factory.mktemp("videos") / "whole"
    command(options(trained, prompts, out))
    return out


@pytest.mark.parametrize("prompt", ["a red circle moving left", "a blue square"])
def test_the_same_latents_as_the_stock_pipeline(pipeline, wan_folder, prompt):
    """Dense attention, fp32, 10 UniPC steps with guidance."""
    expected = pipeline(
        prompt, negative_prompt="a circle", height=32, width=48, num_frames=9, num_inference_steps=10,
        guidance_scale=5.0, generator=torch.Generator().manual_seed(3), output_type="latent",
    ).frames  # fmt: skip
    text = UMT5Text(str(wan_folder), dtype="float32")
    noise = torch.randn(expected.shape, generator=torch.Generator().manual_seed(3))
    states, no_states = text([prompt], CPU), text(["a circle"], CPU)
    got = sample_latents(
        load_wan(wan_folder, DENSE), build_scheduler("unipc", 10, 3.0), noise, states, no_states, guidance=5.0
    )
    assert expected.std() > 0.1
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shift", [1.0, 3.0, 5.0])
def test_euler_is_that_of_flow_py(shift):
    torch.manual_seed(0)
    wan = Wan(WanConfig(**SIZES), FPSAttention("fps", tile=(1, 2, 2), block=16))
    torch.nn.init.normal_(wan.head.head.weight, std=0.1)
    noise, text = torch.randn(1, 16, 3, 4, 6), torch.randn(1, 5, 32)
    scheduler = build_scheduler("euler", 7, shift)
    torch.testing.assert_close(scheduler.sigmas, sampling_levels(7, shift))
    *_, expected = euler_sample(lambda x, sigma: wan(x, 1000 * sigma, text), noise, 7, shift)
    got = sample_latents(wan, scheduler, noise, text, text, guidance=1)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


def test_a_video_plays_in_a_browser_and_says_every_setting(uninterrupted, trained):
    names = [
        "a-red-circle-moving-left-b4e63abe64d7-seed0.mp4", "a-blue-square-42f6a6ec59fb-seed0.mp4",
        "grün-日本-a-quoted-path-name-38a7565015f3-seed0.mp4", "a-ca978112ca1b-seed0.mp4",
    ]  # fmt: skip
    assert {path.name for path in uninterrupted.glob("*.mp4")} == set(names)
    data = (uninterrupted / names[0]).read_bytes()
    assert 0 < data.find(b"moov") < data.find(b"mdat")
    with av.open(str(uninterrupted / names[0])) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.pix_fmt, stream.average_rate) == ("h264", "yuv420p", 8)
        frames = list(container.decode(stream))
        assert len(frames) == 10 and frames[0].colorspace == 1 and (frames[0].height, frames[0].width) == (32, 32)
    said = json.loads((uninterrupted / names[1]).with_suffix(".json").read_text())
    assert said["prompt"] == "a blue square" and said["seed"] == 0 and said["checkpoint"] == str(trained)
    assert (said["sampler"], said["steps"], said["guidance"], said["shift"]) == ("unipc", 50, 5.0, 3.0)
    assert said["clip"] == {"frames": 10, "height": 32, "width": 32, "fps": 8.0}
    assert said["residual"] == default_residual(WAN_TINY)
    assert said["trained_steps"] == 2 and said["attention"]["schedule"]["bounds"] == [0.35, 0.65]
    assert sorted(set(said["regimes"])) == [0, 1, 2] and said["regimes"] == sorted(said["regimes"])
    Image.open(uninterrupted / "contact.png").verify()


def test_killed_in_the_middle_and_started_again_gives_the_same_files(uninterrupted, trained, prompts, tmp_path, capfd):
    out = tmp_path / "whole"
    arguments = [sys.executable, "-m", "eval.generate", *options(trained, prompts, out)]
    process = subprocess.Popen(arguments, cwd=ROOT)
    deadline = time.time() + 300
    while not list(out.glob("a-red-circle-*.json")) and time.time() < deadline and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = {path: path.stat().st_mtime_ns for path in out.glob("*-seed0.*")}
    assert 1 <= len(done) < 8
    finished = [path.with_suffix(".json") for path in done if path.suffix == ".mp4"]
    capfd.readouterr()
    command(options(trained, prompts, out))
    assert f"{len(finished)} of 4 videos are there already" in capfd.readouterr().out
    for path in finished:
        assert path.stat().st_mtime_ns == done[path]
        assert path.with_suffix(".mp4").stat().st_mtime_ns == done[path.with_suffix(".mp4")]
    assert contents(out) == contents(uninterrupted)


def test_two_processes_share_the_work_and_give_the_same_files(uninterrupted, trained, prompts, tmp_path):
    out = tmp_path / "whole"
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m"]
    done = subprocess.run(
        [*launch, "eval.generate", *options(trained, prompts, out)], cwd=ROOT, capture_output=True, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"}, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("wrote") + done.stderr.count("wrote") == 4
    assert contents(out) == contents(uninterrupted)


def test_released_weights_generate_with_and_without_fps_attention(wan_folder, tmp_path, capsys):
    shared = [f"--checkpoint={wan_folder}", "--prompt=a red circle", "--frames=9", "--height=32", "--width=48",
              "--steps=2"]  # fmt: skip
    command([*shared, f"--out={tmp_path / 'dense'}"])
    command([*shared, f"--out={tmp_path / 'fps'}", "--attention.schedule=fps", "--attention.tile=[1,2,2]",
             "--attention.block=16"])  # fmt: skip
    dense, fps = (json.loads(next((tmp_path / x).glob("*.json")).read_text()) for x in ("dense", "fps"))
    assert dense["shift"] == 3.0 and dense["clip"]["fps"] == 16 and dense["negative_prompt"].startswith("色调艳丽")
    for said, name in ((dense, "dense"), (fps, "fps")):
        assert said["attention"]["schedule"] == json.loads(json.dumps(asdict(preset(name))))
    videos = [next((tmp_path / x).glob("*.mp4")).read_bytes() for x in ("dense", "fps")]
    assert videos[0] != videos[1]

    main(["convert", str(wan_folder), str(tmp_path / "official"), "--format", "official"])
    official = [f"--checkpoint={tmp_path / 'official'}", *shared[1:]]
    (tmp_path / "official/Wan2.1_VAE.pth").touch()
    capsys.readouterr()
    line = refused(capsys, [*official, f"--out={tmp_path / 'none'}"])
    assert "found Wan2.1_VAE.pth, which are pickles" in line and "--encoders names another folder" in line
    command([*official, f"--out={tmp_path / 'official-videos'}", f"--encoders={wan_folder}"])
    assert next((tmp_path / "official-videos").glob("*.mp4")).read_bytes() == videos[0]


def test_the_shift_follows_the_size_of_released_weights(wan_folder, tmp_path):
    for size, shift in ((("32", "48"), 3.0), (("720", "720"), 5.0)):
        model = open_model(str(wan_folder))
        assert model.shift is None
        out = tmp_path / size[0]
        command([f"--checkpoint={wan_folder}", "--prompt=a", "--frames=1", f"--height={size[0]}", f"--width={size[1]}",
                 "--steps=1", "--guidance=1", f"--out={out}"])  # fmt: skip
        assert json.loads(next(out.glob("*.json")).read_text())["shift"] == shift


def test_a_checkpoint_runs_with_the_residual_stream_it_was_trained_with(trained, wan_folder, tmp_path):
    held = torch.load(trained, weights_only=True)
    for stream in ("compute", "fp32"):
        held["fps_flex"]["residual"] = stream
        torch.save(held, tmp_path / "kept.ckpt")
        model, settings = resolve_settings(Options(str(tmp_path / "kept.ckpt")))
        assert settings.residual == model.load(CPU).residual == stream
        model, settings = resolve_settings(Options(str(tmp_path / "kept.ckpt"), residual="compute"))
        assert settings.residual == model.load(CPU, residual=settings.residual).residual == "compute"
    assert resolve_settings(Options(str(wan_folder)))[1].residual == "fp32"
    del held["fps_flex"]["residual"]
    torch.save(held, tmp_path / "older.ckpt")
    with pytest.raises(ValueError, match="doesn't say its residual: start a run of this version from it"):
        open_model(str(tmp_path / "older.ckpt"))


def test_averaged_and_live_weights_are_told_apart_and_exported(trained, tmp_path):
    average, live = (dict(open_weights(trained, which).stream()) for which in ("average", "live"))
    assert not torch.equal(average["head.head.weight"], live["head.head.weight"])
    for which, expected in (("average", average), ("live", live)):
        out = tmp_path / which
        main(["convert", str(trained), str(out), "--format", "official", "--weights", which])
        got = dict(open_weights(out).stream())
        assert got.keys() == expected.keys() and all(torch.equal(got[name], x) for name, x in expected.items())


def test_an_exported_run_is_the_same_model_in_stock_diffusers(trained, tmp_path):
    from diffusers import WanTransformer3DModel

    main(["convert", str(trained), str(tmp_path / "out"), "--format", "diffusers"])
    stock = WanTransformer3DModel.from_pretrained(tmp_path / "out")
    ours = load_wan(trained, DENSE)
    x, timestep, text = torch.randn(1, 24, 2, 4, 4), torch.tensor([300.0]), torch.randn(1, 5, 32)
    with torch.no_grad():
        torch.testing.assert_close(ours(x, timestep, text), stock(x, timestep, text).sample, rtol=1e-4, atol=1e-4)


def refused(capsys, arguments):
    """The one line in which the command refuses to start."""
    with pytest.raises(SystemExit) as stopped:
        command(arguments)
    assert stopped.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    return line


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--frames=80"], "frames is 80, expected 4k + 1: 77 or 81"),
        (["--height=40"], "height is 40, expected a multiple of 16: 32 or 48"),
        (["--height=30", "--width=8"], "height is 30, expected a multiple of 16: 16 or 32; width is 8, expected a"),
        (["--attention.schedule=uniform"], "tile (6, 8, 8) is larger than the grid (3, 2, 3)"),
        (["--attention.schedule=paper"], "schedule is 'paper', expected one of fps, sta, uniform, dense"),
        (["--prompt=two", "--prompts=README.md"], "expected either --prompt TEXT or --prompts FILE"),
        (["--steps=0"], "steps is 0"),
        (["--steps=1000000000"], "steps is 1000000000, expected at least 1 and at most 1000"),
        (["--shift=0"], "shift is 0.0, expected at least 0.1 and at most 1000"),
        (["--shift=1e308"], "shift is 1e+308, expected at least 0.1 and at most 1000"),
        (["--shift=1e-300"], "shift is 1e-300, expected at least 0.1 and at most 1000"),
        (["--guidance=1e38"], "guidance is 1e+38, expected at least 0 and at most 1000"),
        (["--fps=0.0001"], "fps is 0.0001, expected at least 0.1 and at most 1000"),
        (["--prompt=a\udcff"], "prompt is 'a\\udcff', expected text in UTF-8"),
        (["--negative_prompt=a\udcff"], "negative_prompt is 'a\\udcff', expected text in UTF-8"),
        (["--shift=.nan"], "shift is nan, expected a finite number"),
        (["--guidance=.nan"], "guidance is nan, expected a finite number"),
        (["--frames=1000000001"], "they have 1,500,000,006 tokens, expected at most 1,048,576"),
        (["--height=3200000"], "tokens, expected at most 1,048,576"),
        (["--frames=-3"], "frames is -3, expected a whole number of at least 1"),
        (["--fps=0"], "fps is 0.0, expected more than 0 and at most 1000"),
        (["--fps=.inf"], "fps is inf, expected a finite number"),
        (["--count=1000000000"], "count is 1000000000"),
        (["--seed=99999999999999999999"], "seed is 99999999999999999999"),
        (["--boundary=0.5"], "a boundary of 0.5 is between two experts"),
        (["--low_noise_guidance=2"], "low_noise_guidance is of the second of two experts"),
        (["--count=0"], "count is 0, expected at least 1 video of each prompt"),
        (["--linears=fp8"], "linears fp8 need a GPU with float8 (compute capability 8.9 or later): use bf16"),
        (["--sampler=dpm"], "Got value: dpm"),
        (["--residual=bf16"], "Expected a typing.Literal['compute', 'fp32']"),
        (["--stepz=3"], "--stepz"),
        (["--checkpoint=nowhere"], "no nowhere: expected a safetensors file"),
        (["--checkpoint=README.md"], "README.md can't be read as safetensors"),
        (["--checkpoint=nowhere.ckpt"], "no checkpoint nowhere.ckpt"),
        (["--out=/proc/videos"], "/proc/videos can't be written"),
        (["--config=nowhere.yaml"], "nowhere.yaml"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_a_users_mistake_is_one_clear_line_and_exit_code_2(wan_folder, tmp_path, capsys, extra, message):
    shared = [f"--checkpoint={wan_folder}", "--prompt=a red circle", "--frames=9", "--height=32", "--width=48",
              "--steps=2", f"--out={tmp_path / 'out'}"]  # fmt: skip
    assert message in refused(capsys, [*shared, *extra])
    assert not (tmp_path / "out").exists()


def test_prompt_files_and_videos_of_other_settings_are_refused(uninterrupted, trained, prompts, tmp_path, capsys):
    (tmp_path / "empty.txt").write_text("\n \n")
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe\x00")
    for name, message in (("empty", "holds no prompt"), ("binary", "is UTF-16"), ("nowhere", "can't be read")):
        assert message in refused(capsys, options(trained, tmp_path / f"{name}.txt", tmp_path / "out"))
    before = contents(uninterrupted)
    line = refused(capsys, [*options(trained, prompts, uninterrupted), "--guidance=2"])
    assert "was made with guidance 5.0 (now 2.0): choose another --out" in line
    assert contents(uninterrupted) == before


def test_a_video_made_with_a_window_of_another_meaning_is_not_kept(wan_folder, tmp_path, capsys):
    """In a record from when the whole axis was 1.0, Python takes it for the 1 of one tile."""
    shared = [f"--checkpoint={wan_folder}", "--prompt=a", "--frames=1", "--height=32", "--width=48", "--steps=1",
              "--guidance=1", f"--out={tmp_path}", "--attention.tile=[1,1,1]", "--attention.block=16",
              "--attention.schedule={bounds: [], regimes: [{window: [1, 1, 1], granularity: 1}]}"]  # fmt: skip
    command(shared)
    command(shared)
    assert "1 of 1 videos are there already" in capsys.readouterr().out
    record = next(tmp_path.glob("*.json"))
    said = json.loads(record.read_text())
    assert said["attention"]["schedule"]["regimes"][0]["window"] == [1, 1, 1]
    said["attention"]["schedule"]["regimes"][0]["window"] = [1.0, 1.0, 1.0]
    record.write_text(json.dumps(said))
    assert ".mp4 was made with attention" in refused(capsys, shared)
    record.write_text("[1]")
    assert f"{record} is no record of a video, it holds [1]: move it away, or choose another" in refused(capsys, shared)


def test_parts_of_a_preset_do_not_make_another_one_in_silence(wan_folder, tmp_path, capsys):
    """The parser took `sta` and a shift for the `fps` preset with that shift."""
    shared = [f"--checkpoint={wan_folder}", "--prompt=a", f"--out={tmp_path / 'out'}"]
    line = refused(capsys, [*shared, "--attention.schedule=sta", "--attention.schedule.shift=3"])
    assert "which is the preset 'sta': write out its bounds, regimes and shift in its place" in line
    line = refused(capsys, [*shared, "--attention.schedule.shift", "3"])
    assert f"attention.schedule is given, and {wan_folder} was trained with dense attention" in line
    (tmp_path / "own.yaml").write_text("attention: {schedule: uniform}\n")
    line = refused(capsys, [f"--config={tmp_path / 'own.yaml'}", *shared, "--attention.schedule.shift=3"])
    assert "the preset 'uniform'" in line
    for run, words in (
        (fidelity, ["models", *shared]),
        (vbench, ["generate", *shared[::2]]),
        (bench, ["pipeline", "--size=tiny"]),
    ):
        with pytest.raises(SystemExit) as stopped:
            run([*words, "--attention.schedule=sta", "--attention.schedule.shift=3"])
        assert stopped.value.code == 2 and "the preset 'sta'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    (tmp_path / "own.yaml").write_text("attention: {tile: null, schedule: {bounds: [], regimes: [{}], shift: 2.0}}\n")
    small = ["--frames=1", "--height=32", "--width=48", "--steps=1", "--guidance=1"]
    command([f"--config={tmp_path / 'own.yaml'}", *shared, *small, "--attention.schedule.shift=3"])
    said = json.loads(next((tmp_path / "out").glob("*.json")).read_text())
    assert said["attention"]["schedule"]["shift"] == 3.0 and said["attention"]["schedule"]["bounds"] == []


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("codec", None, "its fps_flex.codec is None"),
        ("codec", "PixelCodec", "its fps_flex.codec is 'PixelCodec', expected a dict"),
        ("codec", {"kind": "os.system", "options": {"command": "true"}}, "trained with os.system, expected"),
        ("codec", {"kind": "bytes", "options": {}}, "expected one of pixels"),
        ("codec", {"kind": "pixels", "options": {"box": 2}}, "its Codec: "),
        ("codec", {"kind": "pixels", "options": {"stride": "much"}}, "its Codec: "),
        ("codec", {"kind": "pixels", "options": {}}, "its Codec: options lacks stride"),
        ("text", {"kind": "bytes", "options": {"dim": 32}}, "options lacks length"),
        ("text", {"kind": "umt5", "options": {"path": "x", "dtype": "bfloat16"}},
         "its TextEncoder: options lacks length: expected exactly path, length, dtype"),
        ("codec", {"kind": "wan-vae", "options": {}}, "its Codec: "),
        ("codec", {"kind": "wan-vae", "options": {"path": 7}}, "its Codec: path is 7"),
        ("codec", {"kind": "pixels"}, "its fps_flex.codec lacks options"),
        ("text", {"kind": ["x"], "options": {}}, "its fps_flex.text.kind is ['x']"),
        ("text", {"kind": "bytes", "options": {"dim": 32, "length": 10**12}}, "its Text"),
        ("text", {"kind": "bytes", "options": {"dim": 32, "length": 2.5}}, "its TextEncoder: "),
        ("clip", None, "its fps_flex.clip is None"),
        ("clip", {"frames": 10**9, "height": 32, "width": 32, "fps": 8.0}, "frames is 1000000000, expected at most"),
        ("clip", {"frames": 10**30, "height": 32, "width": 32, "fps": 8.0}, "expected at most 100000"),
        ("clip", {"frames": "ten", "height": 32, "width": 32, "fps": 8.0}, "its fps_flex.clip.frames is 'ten'"),
        ("clip", {"frames": 10, "height": 32, "width": 32, "fps": float("nan")}, "its fps_flex.clip.fps is nan"),
        ("clip", {"frames": 10, "rows": 32}, "its fps_flex.clip lacks height, width, fps and has an unknown 'rows'"),
        ("residual", 7, "residual is 7, expected one of"),
        ("residual", None, "residual is None, expected one of"),
        ("shift", "3", "shift is '3'"),
        ("shift", -1.0, "shift is -1.0, expected a number above 0"),
        ("step", -1, "step is -1"),
        ("step", None, "step is None"),
        ("noise_levels", [1, 0], "its fps_flex.noise_levels is [1, 0]"),
        ("noise_levels", 7, "its fps_flex.noise_levels is 7"),
    ],
)  # fmt: skip
def test_a_checkpoint_that_says_what_cannot_be_is_one_line(trained, tmp_path, capsys, name, value, reason):
    held = torch.load(trained, weights_only=True)
    held["fps_flex"][name] = value
    torch.save(held, tmp_path / "said.ckpt")
    line = refused(capsys, [f"--checkpoint={tmp_path / 'said.ckpt'}", "--prompt=a", f"--out={tmp_path / 'out'}"])
    assert reason in line
    assert f"{tmp_path / 'said.ckpt'} is no checkpoint of this project (" in line
    assert not (tmp_path / "out").exists()


def test_a_gpu_whose_memory_is_full_is_one_line(wan_folder, tmp_path, monkeypatch, capsys):
    def fail(*args, **options):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 28.00 GiB.")

    monkeypatch.setattr("eval.generate.models.fill", fail)
    with pytest.raises(SystemExit) as stopped:
        command([f"--checkpoint={wan_folder}", "--prompt=a", "--frames=1", "--height=32", "--width=48",
                 f"--out={tmp_path}"])  # fmt: skip
    assert stopped.value.code == 1
    assert capsys.readouterr().err.splitlines()[-1] == ("error: CUDA out of memory. Tried to allocate 28.00 GiB.")


SMALL = ["--frames=9", "--height=32", "--width=48", "--steps=2", "--guidance=1"]


def test_host_memory_that_is_full_is_one_line(wan_folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("fps_flex.wan.encoders.WanVAE.decode", lambda *args: torch.empty(2**60))
    with pytest.raises(SystemExit) as stopped:
        command([f"--checkpoint={wan_folder}", "--prompt=a", f"--out={tmp_path}", *SMALL])
    assert stopped.value.code == 1
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("error: ") and "allocate" in line and line.endswith(": make smaller or shorter videos")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("value", [float("nan"), 3e38])
def test_latents_that_are_not_finite_make_no_video(wan_folder, tmp_path, monkeypatch, capsys, value):
    forward, calls = Wan.forward, []

    def fail_at_the_second_step(*args):
        calls.append(1)
        return forward(*args) if len(calls) == 1 else torch.full_like(forward(*args), value) * 2

    monkeypatch.setattr(Wan, "forward", fail_at_the_second_step)
    with pytest.raises(SystemExit) as stopped:
        command([f"--checkpoint={wan_folder}", "--prompt=a", f"--out={tmp_path}", *SMALL])
    assert stopped.value.code == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("error: the latents aren't finite after step 2 of 2, with guidance 1: look at guidance")
    assert list(tmp_path.iterdir()) == []


def test_pixels_that_are_not_finite_make_no_video(wan_folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("fps_flex.wan.encoders.WanVAE.decode", lambda *args: torch.full((1, 3, 9, 32, 48), torch.nan))
    with pytest.raises(SystemExit):
        command([f"--checkpoint={wan_folder}", "--prompt=a", f"--out={tmp_path}", *SMALL])
    assert "error: the codec gives pixels that aren't finite" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("sampler", "shift"), [("unipc", 1000.0), ("unipc", 0.1), ("euler", 1000.0), ("euler", 0.1)])
def test_any_shift_within_bounds_samples_every_step(sampler, shift):
    scheduler, x = build_scheduler(sampler, 50, shift), torch.zeros(1, 1, 1)
    for timestep in scheduler.timesteps:
        x = scheduler.step(torch.ones(1, 1, 1), timestep, x, return_dict=False)[0]
    torch.testing.assert_close(x, -torch.ones(1, 1, 1), atol=0.01, rtol=0)
    assert len(list_regimes(FPSAttention("fps", tile=(1, 2, 2)), scheduler)) == 50


@pytest.mark.parametrize("left", [0, 100, 0.5, -1])
def test_a_video_that_is_cut_short_is_made_again(wan_folder, tmp_path, capsys, left):
    arguments = [f"--checkpoint={wan_folder}", "--prompt=a", f"--out={tmp_path}", *SMALL, "--fps=0.1"]
    command(arguments)
    (video,) = tmp_path.glob("*.mp4")
    whole = video.read_bytes()
    video.write_bytes(whole[: int(len(whole) * left) if left == 0.5 else left])
    capsys.readouterr()
    command(arguments)
    assert f"{video} has other bytes" in capsys.readouterr().out and video.read_bytes() == whole
    command(arguments)
    assert "1 of 1 videos are there already" in capsys.readouterr().out


@pytest.mark.parametrize("part", ["vae", "text_encoder", "tokenizer"])
def test_encoders_that_are_refused_leave_no_folder(wan_folder, tmp_path, capsys, part):
    shutil.copytree(wan_folder, tmp_path / "wan")
    for file in (tmp_path / "wan" / part).glob("*.safetensors" if part != "tokenizer" else "tokenizer.json"):
        file.write_bytes(b"broken")
    with pytest.raises(SystemExit) as stopped:
        command([f"--checkpoint={tmp_path / 'wan'}", "--prompt=a", f"--out={tmp_path / 'out/in'}", *SMALL])
    assert stopped.value.code == 2 and str(tmp_path / "wan" / part) in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "out").exists()


def test_home_is_where_the_user_is(wan_folder, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "wan").symlink_to(wan_folder)
    (tmp_path / "prompts.txt").write_text("a\n")
    command(["--checkpoint=~/wan", "--encoders=~/wan", "--prompts=~/prompts.txt", "--out=~/out", "--frames=1",
             "--height=32", "--width=48", "--steps=1", "--guidance=1"])  # fmt: skip
    assert len(list((tmp_path / "out").glob("*.mp4"))) == 1


@pytest.mark.skipif(torch.cuda.is_available(), reason="of a CPU")
@pytest.mark.parametrize(
    ("option", "line"),
    [
        ("--attention.engine=flash", "needs a Hopper GPU or later"),
        ("--attention.carrier=float8", "no float8 carrier"),
        ("--encoders=/nonexistent", "was trained with ones that need no files (pixels and bytes): leave it out"),
    ],
)
def test_what_cannot_be_had_is_refused_before_anything_is_made(trained, tmp_path, capsys, monkeypatch, option, line):
    monkeypatch.setattr(ByteText, "__call__", None)
    with pytest.raises(SystemExit) as stopped:
        command([f"--checkpoint={trained}", "--prompt=a", f"--out={tmp_path / 'out'}", "--steps=1", option])
    assert stopped.value.code == 2 and line in capsys.readouterr().err and not (tmp_path / "out").exists()


@pytest.mark.parametrize(("keep", "line"), [(0, "is empty: copy it again"), (5000, "is cut short: copy it again")])
def test_a_damaged_checkpoint_says_how(trained, tmp_path, keep, line):
    path = tmp_path / "last.ckpt"
    path.write_bytes(trained.read_bytes()[:keep])
    with pytest.raises(ValueError, match=f"{path} {line}"):
        open_model(str(path))


def test_the_folder_of_a_run_leads_to_its_checkpoint(trained):
    for folder in (trained.parent, trained.parent.parent):
        with pytest.raises(ValueError, match=f"name a checkpoint of training, such as {trained}"):
            open_model(str(folder))


@pytest.mark.parametrize("name", ["generate", "fidelity"])
@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_stopped_while_it_starts_it_says_so_in_one_line(name, sent):
    code = (
        "import os, sys; from train.common import start; "
        f"start.import_module = lambda _: os.kill(os.getpid(), {int(sent)}); sys.argv[1:] = []; "
        f"import runpy; runpy.run_module('eval.{name}', run_name='__main__')"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert (found.returncode, found.stderr) == (130, "error: stopped\n")
