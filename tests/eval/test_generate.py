"""Generating videos: as the stock pipeline does, in shards, after being killed, and from every kind of checkpoint."""

import json
import signal
import subprocess
import sys
import time
from dataclasses import asdict

import av
import pytest
import torch
from PIL import Image

from eval.generate.command import command, resolve_settings
from eval.generate.jobs import Options
from eval.generate.models import open_model
from eval.generate.sampling import build_scheduler, list_regimes, sample_latents
from fps_flex import FPSAttention, preset
from fps_flex.wan import WAN_TINY, Wan, WanConfig
from fps_flex.wan.config import default_residual
from fps_flex.wan.convert import main
from fps_flex.wan.encoders import UMT5Text
from fps_flex.wan.flow import euler_sample, sampling_levels
from fps_flex.wan.weights import load_wan, open_weights
from tests.helpers.commands import ROOT, refused, run_apart
from tests.helpers.tiny_run import tiny_checkpoint
from tests.helpers.tiny_wan import SIZES

CPU = torch.device("cpu")
DENSE = FPSAttention("dense", tile=None, block=16)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A checkpoint of two steps on moving shapes."""
    return tiny_checkpoint(tmp_path_factory.mktemp("trained") / "run")


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
    launch = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "eval.generate")
    done = run_apart(*launch, *options(trained, prompts, out), timeout=600, OMP_NUM_THREADS="1")
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
    line = refused(capsys, command, [*official, f"--out={tmp_path / 'none'}"])
    assert "found Wan2.1_VAE.pth, which are pickles" in line and "--encoders names another folder" in line
    command([*official, f"--out={tmp_path / 'official-videos'}", f"--encoders={wan_folder}"])
    assert next((tmp_path / "official-videos").glob("*.mp4")).read_bytes() == videos[0]


def test_the_shift_follows_the_size_of_released_weights(wan_folder, tmp_path):
    for size, shift in ((("32", "48"), 3.0), (("720", "720"), 5.0)):
        model = open_model(Options(str(wan_folder)))
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
        open_model(Options(str(tmp_path / "older.ckpt")))


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


def test_prompt_files_and_videos_of_other_settings_are_refused(uninterrupted, trained, prompts, tmp_path, capsys):
    (tmp_path / "empty.txt").write_text("\n \n")
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe\x00")
    for name, message in (("empty", "holds no prompt"), ("binary", "is UTF-16"), ("nowhere", "can't be read")):
        assert message in refused(capsys, command, options(trained, tmp_path / f"{name}.txt", tmp_path / "out"))
    before = contents(uninterrupted)
    line = refused(capsys, command, [*options(trained, prompts, uninterrupted), "--guidance=2"])
    assert "was made with guidance 5.0 (now 2.0): choose another --out" in line
    assert contents(uninterrupted) == before


SMALL = ["--frames=9", "--height=32", "--width=48", "--steps=2", "--guidance=1"]


@pytest.mark.parametrize(("sampler", "shift"), [("unipc", 1000.0), ("unipc", 0.1), ("euler", 1000.0), ("euler", 0.1)])
def test_any_shift_within_bounds_samples_every_step(sampler, shift):
    scheduler, x = build_scheduler(sampler, 50, shift), torch.zeros(1, 1, 1)
    for timestep in scheduler.timesteps:
        x = scheduler.step(torch.ones(1, 1, 1), timestep, x, return_dict=False)[0]
    torch.testing.assert_close(x, -torch.ones(1, 1, 1), atol=0.01, rtol=0)
    assert len(list_regimes(FPSAttention("fps", tile=(1, 2, 2)), scheduler)) == 50


@pytest.mark.parametrize(
    ("sampler", "schedule", "steps", "shift", "expected"),
    [
        ("unipc", "fps", 50, 5.0, [15, 21, 14]), ("euler", "fps", 50, 5.0, [15, 20, 15]),
        ("unipc", "sta", 50, 5.0, [15, 35]), ("euler", "sta", 50, 5.0, [15, 35]),
        ("unipc", "fps", 20, 5.0, [6, 9, 5]), ("euler", "fps", 20, 5.0, [6, 8, 6]),
        ("unipc", "fps", 50, 3.0, [11, 19, 20]), ("euler", "fps", 50, 3.0, [11, 19, 20]),
    ],
)  # fmt: skip
def test_steps_are_in_the_regime_of_the_level_that_the_model_is_told(sampler, schedule, steps, shift, expected):
    """Those of docs/porting.md among them; as recorded, and as the model itself meets them."""
    attention, scheduler = FPSAttention(schedule, tile=(1, 2, 2)), build_scheduler(sampler, steps, shift)
    regimes = list_regimes(attention, scheduler)
    assert [regimes.count(i) for i in range(len(expected))] == expected and regimes == sorted(regimes)
    met = []

    def wan(x, timestep, text):
        met.append(attention.step_schedule.regime_index(timestep / 1000).item())
        return torch.zeros_like(x)

    x, text = torch.randn(1, 2, 1, 2, 2), torch.zeros(1, 1, 1)
    sample_latents(wan, scheduler, x, text, text, guidance=1.0)
    assert met == regimes


def test_the_samples_of_training_are_eulers():
    met = []

    def velocity(x, sigma):
        met.append(preset("fps").regime_index(sigma).item())
        return torch.zeros_like(x)

    list(euler_sample(velocity, torch.randn(1, 2, 1, 2, 2), 50, 5.0))
    assert met == [0] * 15 + [1] * 20 + [2] * 15


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


def test_home_is_where_the_user_is(wan_folder, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "wan").symlink_to(wan_folder)
    (tmp_path / "prompts.txt").write_text("a\n")
    command(["--checkpoint=~/wan", "--encoders=~/wan", "--prompts=~/prompts.txt", "--out=~/out", "--frames=1",
             "--height=32", "--width=48", "--steps=1", "--guidance=1"])  # fmt: skip
    assert len(list((tmp_path / "out").glob("*.mp4"))) == 1
