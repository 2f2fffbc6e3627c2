"""What eval.generate refuses, or ends with, in one line: options, checkpoints, memory, and what is not finite."""

import json
import shutil
import signal

import pytest
import torch

from eval.bench.command import command as bench
from eval.fidelity.command import command as fidelity
from eval.generate.command import command
from eval.generate.jobs import Options
from eval.generate.models import open_model
from eval.vbench.__main__ import command as vbench
from fps_flex.wan import Wan
from fps_flex.wan.codecs import ByteText
from tests.helpers.commands import refused, run_apart
from tests.helpers.tiny_run import tiny_checkpoint


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A checkpoint of two steps on moving shapes."""
    return tiny_checkpoint(tmp_path_factory.mktemp("trained") / "run")


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--frames=80"], "frames is 80, expected 4k + 1: 77 or 81"),
        (["--height=40"], "height is 40, expected a multiple of 16: 32 or 48"),
        (["--height=30", "--width=8"], "height is 30, expected a multiple of 16: 16 or 32; width is 8, expected a"),
        (["--attention.schedule=uniform"], "fits the grid (3, 2, 3): widen volumes or aspect, or name a tile"),
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
    assert message in refused(capsys, command, [*shared, *extra])
    assert not (tmp_path / "out").exists()


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
    assert ".mp4 was made with attention" in refused(capsys, command, shared)
    record.write_text("[1]")
    assert f"{record} is no record of a video, it holds [1]: move it away, or choose another" in refused(
        capsys, command, shared
    )


def test_parts_of_a_preset_do_not_make_another_one_in_silence(wan_folder, tmp_path, capsys):
    """The parser took `sta` and a shift for the `fps` preset with that shift."""
    shared = [f"--checkpoint={wan_folder}", "--prompt=a", f"--out={tmp_path / 'out'}"]
    line = refused(capsys, command, [*shared, "--attention.schedule=sta", "--attention.schedule.shift=3"])
    assert "which is the preset 'sta': write out its bounds, regimes and shift in its place" in line
    line = refused(capsys, command, [*shared, "--attention.schedule.shift", "3"])
    assert f"attention.schedule is given, and {wan_folder} was trained with dense attention" in line
    (tmp_path / "own.yaml").write_text("attention: {schedule: uniform}\n")
    line = refused(capsys, command, [f"--config={tmp_path / 'own.yaml'}", *shared, "--attention.schedule.shift=3"])
    assert "the preset 'uniform'" in line
    for run, words in (
        (fidelity, ["models", *shared]),
        (vbench, ["generate", *shared[::2]]),
        (bench, ["pipeline", "--size=tiny"]),
    ):
        line = refused(capsys, run, [*words, "--attention.schedule=sta", "--attention.schedule.shift=3"])
        assert "the preset 'sta'" in line
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
    line = refused(
        capsys, command, [f"--checkpoint={tmp_path / 'said.ckpt'}", "--prompt=a", f"--out={tmp_path / 'out'}"]
    )
    assert reason in line
    assert f"{tmp_path / 'said.ckpt'} is no checkpoint of this project (" in line
    assert not (tmp_path / "out").exists()


def test_a_gpu_whose_memory_is_full_is_one_line(wan_folder, tmp_path, monkeypatch, capsys):
    def fail(*args, **options):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 28.00 GiB.")

    monkeypatch.setattr("eval.generate.models.fill", fail)
    words = [f"--checkpoint={wan_folder}", "--prompt=a", "--frames=1", "--height=32", "--width=48", f"--out={tmp_path}"]
    assert refused(capsys, command, words, code=1) == "error: CUDA out of memory. Tried to allocate 28.00 GiB."


SMALL = ["--frames=9", "--height=32", "--width=48", "--steps=2", "--guidance=1"]


def test_host_memory_that_is_full_is_one_line(wan_folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("fps_flex.wan.encoders.WanVAE.decode", lambda *args: torch.empty(2**60))
    line = refused(capsys, command, [f"--checkpoint={wan_folder}", "--prompt=a", f"--out={tmp_path}", *SMALL], code=1)
    assert "allocate" in line and line.endswith(": make smaller or shorter videos")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("value", [float("nan"), 3e38])
def test_latents_that_are_not_finite_make_no_video(wan_folder, tmp_path, monkeypatch, capsys, value):
    forward, calls = Wan.forward, []

    def fail_at_the_second_step(*args):
        calls.append(1)
        return forward(*args) if len(calls) == 1 else torch.full_like(forward(*args), value) * 2

    monkeypatch.setattr(Wan, "forward", fail_at_the_second_step)
    line = refused(capsys, command, [f"--checkpoint={wan_folder}", "--prompt=a", f"--out={tmp_path}", *SMALL])
    assert line.startswith("error: the latents aren't finite after step 2 of 2, with guidance 1: look at guidance")
    assert list(tmp_path.iterdir()) == []


def test_pixels_that_are_not_finite_make_no_video(wan_folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("fps_flex.wan.encoders.WanVAE.decode", lambda *args: torch.full((1, 3, 9, 32, 48), torch.nan))
    line = refused(capsys, command, [f"--checkpoint={wan_folder}", "--prompt=a", f"--out={tmp_path}", *SMALL])
    assert "error: the codec gives pixels that aren't finite" in line
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("part", ["vae", "text_encoder", "tokenizer"])
def test_encoders_that_are_refused_leave_no_folder(wan_folder, tmp_path, capsys, part):
    shutil.copytree(wan_folder, tmp_path / "wan")
    for file in (tmp_path / "wan" / part).glob("*.safetensors" if part != "tokenizer" else "tokenizer.json"):
        file.write_bytes(b"broken")
    words = [f"--checkpoint={tmp_path / 'wan'}", "--prompt=a", f"--out={tmp_path / 'out/in'}", *SMALL]
    assert str(tmp_path / "wan" / part) in refused(capsys, command, words)
    assert not (tmp_path / "out").exists()


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
    words = [f"--checkpoint={trained}", "--prompt=a", f"--out={tmp_path / 'out'}", "--steps=1", option]
    assert line in refused(capsys, command, words) and not (tmp_path / "out").exists()


@pytest.mark.parametrize(("keep", "line"), [(0, "is empty: copy it again"), (5000, "is cut short: copy it again")])
def test_a_damaged_checkpoint_says_how(trained, tmp_path, keep, line):
    path = tmp_path / "last.ckpt"
    path.write_bytes(trained.read_bytes()[:keep])
    with pytest.raises(ValueError, match=f"{path} {line}"):
        open_model(Options(str(path)))


def test_the_folder_of_a_run_leads_to_its_checkpoint(trained):
    for folder in (trained.parent, trained.parent.parent):
        with pytest.raises(ValueError, match=f"name a checkpoint of training, such as {trained}"):
            open_model(Options(str(folder)))


def test_of_several_processes_one_says_what_none_can_read():
    """The second waits for the first one's end, by which torchrun ends it."""
    code = (
        "import os, sys, time; time.sleep = lambda _: os.kill(os.getpid(), 15); sys.argv[1:] = ['video', '--bogus=1']; "
        "import runpy; runpy.run_module('eval.bench', run_name='__main__')"
    )
    first, second = (run_apart("-c", code, RANK=rank, WORLD_SIZE="2") for rank in "01")
    assert (first.returncode, first.stderr) == (2, "error: unrecognized arguments: --bogus=1\n")
    assert (second.returncode, second.stderr) == (-15, "")


@pytest.mark.parametrize("name", ["generate", "fidelity", "bench"])
@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_stopped_while_it_starts_it_says_so_in_one_line(name, sent):
    code = (
        "import os, sys; from train.common import start; "
        f"start.import_module = lambda _: os.kill(os.getpid(), {int(sent)}); sys.argv[1:] = []; "
        f"import runpy; runpy.run_module('eval.{name}', run_name='__main__')"
    )
    found = run_apart("-c", code)
    assert (found.returncode, found.stderr) == (128 + sent, "error: stopped\n")
