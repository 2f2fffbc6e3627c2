"""Videos and their records: whose weights made them; what is made again, what is kept, what is never written over."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

import eval.generate.videos as videos
from eval.fidelity.command import command as fidelity
from eval.generate.command import command, plan_jobs, resolve_settings
from eval.generate.jobs import Job, Options
from eval.generate.maker import TextStates, encode_prompts
from eval.generate.records import open_records
from eval.generate.sampling import mean_density
from eval.generate.videos import draw_contacts
from eval.timing import find_commit, name_device
from eval.vbench.__main__ import command as vbench
from fps_flex import FPSAttention
from fps_flex.wan.codecs import ByteText
from fps_flex.wan.convert import main
from fps_flex.wan.fingerprint import digest_held, held_in_file, held_in_memory
from fps_flex.wan.weights import open_weights
from tests.eval.test_fidelity import train
from tests.helpers.tiny_wan import tiny_pipeline, tiny_transformer
from train.common.atomic import digest_file
from train.common.videos import read_clip, write_video

QUICK = ["--prompt=a", "--frames=1", "--height=32", "--width=48", "--steps=1", "--guidance=1"]
CPU = torch.device("cpu")


def making(checkpoint, out, *more):
    return [f"--checkpoint={checkpoint}", f"--out={out}", *QUICK, *more]


def refused(capsys, arguments, run=command):
    """The one line in which a command refuses to start."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stopped:
        run([str(argument) for argument in arguments])
    assert stopped.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    return line


def said_of(capsys, arguments):
    capsys.readouterr()
    command(arguments)
    return capsys.readouterr().out


def contents(folder):
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def record(out):
    return json.loads(next(out.glob("*.json")).read_text())


@pytest.fixture
def wan(wan_folder, tmp_path):
    """A release to be changed."""
    return shutil.copytree(wan_folder, tmp_path / "wan")


@pytest.fixture
def made(wan, tmp_path):
    """One video of it."""
    command(making(wan, tmp_path / "out"))
    return tmp_path / "out"


def change(folder, by=0.1):
    """Other values in the first safetensors of a folder."""
    file = next(iter(sorted(Path(folder).glob("*.safetensors"))))
    save_file({name: x + by for name, x in load_file(file).items()}, file, {"format": "pt"})


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """A checkpoint of two steps; not to be changed."""
    return train(tmp_path_factory.mktemp("run") / "run")


@pytest.fixture
def trained(kept, tmp_path):
    return Path(shutil.copy(kept, tmp_path / "last.ckpt"))


def retrain(path, **said):
    """As if a run had gone on, or another had begun."""
    held = torch.load(path, weights_only=True)
    held["fps_flex"] |= said
    for part in ("state_dict", "current_model_state"):
        held[part] = {name: x + 0.01 for name, x in held[part].items()}
    torch.save(held, path)


TINY = ["--prompt=a", "--steps=1", "--guidance=1"]


# fingerprints


def test_a_copy_has_the_same_fingerprint_and_other_weights_have_another(wan_folder, wan, tmp_path):
    one = open_weights(wan_folder).fingerprint()
    assert open_weights(wan).fingerprint() == open_weights(wan / "transformer").fingerprint() == one
    change(wan / "transformer", 1e-3)
    assert open_weights(wan).fingerprint() != one
    main(["convert", str(wan_folder), str(tmp_path / "half"), "--format", "diffusers", "--dtype", "bf16"])
    assert open_weights(tmp_path / "half").fingerprint() != one


def test_a_fingerprint_reads_a_part_of_every_tensor(wan_folder, monkeypatch):
    monkeypatch.setattr("fps_flex.wan.fingerprint.DIGESTED", 20_000)
    torch.manual_seed(0)
    tensors = {name: torch.randn(7, 400).to(dtype) for name, dtype in (("a", torch.bfloat16), ("b", torch.float32))}
    before = digest_held({name: held_in_memory(x) for name, x in tensors.items()})
    for name in tensors:
        for place in ((0, 0), (-1, -1)):
            other = {key: x.clone() for key, x in tensors.items()}
            other[name][place] += 1
            assert digest_held({key: held_in_memory(x) for key, x in other.items()}) != before
    turned = {name: x.T.contiguous().T for name, x in tensors.items()}  # the same values, laid out otherwise
    assert digest_held({name: held_in_memory(x) for name, x in turned.items()}) == before


def test_a_checkpoint_says_its_run_and_its_step(trained):
    said = torch.load(trained, weights_only=True)["fps_flex"]
    one, live = (open_weights(trained, which).fingerprint() for which in ("average", "live"))
    assert one.startswith(f"run {said['run_id']}, step 2, weights ") and one != live
    retrain(trained)
    forked = open_weights(trained).fingerprint()
    assert forked.rpartition(", ")[0] == one.rpartition(", ")[0] and forked != one


# records


def test_a_record_says_what_made_its_video(made, wan, trained, tmp_path):
    said, video = record(made), next(made.glob("*.mp4"))
    assert said["fingerprints"].keys() == {"transformer", "codec", "text"}
    assert said["fingerprints"]["transformer"] == open_weights(wan).fingerprint()
    model, settings = resolve_settings(Options(str(wan), frames=1, height=32, width=48, steps=1, guidance=1))
    assert said["fingerprints"]["codec"] == model.codec.fingerprint()
    assert said["density"] == 1.0 and said["lossless"] is False and said["sha256"] == digest_file(video)
    assert said["machine"]["device"] == name_device() and said["machine"]["commit"] == find_commit()
    assert said["machine"]["versions"].keys() == {"torch", "diffusers"}
    assert 0 < said["seconds"] < 60 and 0.05 < said["peak_gb"] < 20
    command([f"--checkpoint={trained}", f"--out={tmp_path / 'sparse'}", *TINY])
    assert 0.1 < record(tmp_path / "sparse")["density"] < 0.9


def test_the_density_is_the_mean_over_the_steps():
    from eval.generate.sampling import build_scheduler, list_regimes

    attention, scheduler = FPSAttention("fps", tile=(1, 2, 2), block=16), build_scheduler("unipc", 10, 3.0)
    regimes = list_regimes(attention, scheduler)
    assert {0, 1, 2} == set(regimes)
    found = mean_density(attention, (6, 8, 8), scheduler)
    sparse = FPSAttention("dense", tile=(1, 2, 2), block=16)
    assert mean_density(sparse, (6, 8, 8), scheduler) == 1.0 > found > 0


def test_weights_that_were_trained_on_make_the_videos_again(trained, tmp_path, capsys):
    """A last.ckpt under the same path passed for the one that its videos were made with."""
    run, out = [f"--checkpoint={trained}", f"--out={tmp_path / 'out'}", *TINY], tmp_path / "out"
    command(run)
    before, was = next(out.glob("*.mp4")).read_bytes(), record(out)
    assert "1 of 1 videos are there already" in said_of(capsys, run)
    position = {"step": 9, "taken": [9], "validated": False}
    retrain(trained, step=9, position=position)
    said = said_of(capsys, run)
    (video,) = out.glob("*.mp4")
    assert f"{video} was made with other weights than are now in {trained}: it is made again" in said
    assert video.read_bytes() != before and (was["trained_steps"], record(out)["trained_steps"]) == (2, 9)
    retrain(trained, run_id="0" * 16)  # another run of as many steps
    assert "other weights" in said_of(capsys, run)
    assert "1 of 1 videos are there already" in said_of(capsys, run)


def test_weights_that_moved_are_the_same(trained, tmp_path, capsys):
    out = tmp_path / "out"
    command([f"--checkpoint={trained}", f"--out={out}", *TINY])
    before = contents(out)
    moved = trained.rename(tmp_path / "moved.ckpt")
    assert "1 of 1 videos are there already" in said_of(capsys, [f"--checkpoint={moved}", f"--out={out}", *TINY])
    retrain(moved)
    line = refused(capsys, [f"--checkpoint={moved}", f"--out={out}", *TINY])
    assert f"was made with checkpoint {trained} (now {moved}): choose another --out" in line
    videos_and_records = {path: x for path, x in contents(out).items() if path.name != "contact.png"}
    assert videos_and_records == {path: x for path, x in before.items() if path.name != "contact.png"}


def test_a_release_that_was_copied_is_the_same(made, wan, tmp_path, capsys):
    copied = shutil.copytree(wan, tmp_path / "copied")
    assert "1 of 1 videos are there already" in said_of(capsys, making(copied, made))
    change(copied / "vae")
    line = refused(capsys, making(copied, made))
    assert "was made with codec {" in line and line.endswith("choose another --out")


@pytest.mark.parametrize("part", ["transformer", "vae", "text_encoder"])
def test_a_release_with_other_weights_in_any_part_makes_its_videos_again(made, wan, capsys, part):
    before = next(made.glob("*.mp4")).read_bytes()
    change(wan / part)
    assert f"was made with other weights than are now in {wan}: it is made again" in said_of(capsys, making(wan, made))
    assert next(made.glob("*.mp4")).read_bytes() != before
    assert "1 of 1 videos are there already" in said_of(capsys, making(wan, made))


def test_an_encoder_in_another_precision_is_another_setting(trained, kept, wan, made, capsys):
    file = next(made.glob("*.json"))
    said = json.loads(file.read_text())
    said["text"]["options"]["dtype"] = "float32"
    file.write_text(json.dumps(said))
    assert "was made with text {" in refused(capsys, making(wan, made))


def test_each_of_two_experts_counts(tmp_path, capsys):
    pipe, second = tiny_pipeline(), tiny_transformer()
    torch.nn.init.normal_(second.proj_out.weight, std=0.3)
    pipe.register_modules(transformer_2=second)
    pipe.register_to_config(boundary_ratio=0.5)
    pipe.save_pretrained(tmp_path / "two")
    run = making(tmp_path / "two", tmp_path / "out", "--steps=4")
    command(run)
    prints = record(tmp_path / "out")["fingerprints"]
    assert prints.keys() == {"transformer", "low_noise", "codec", "text"}
    assert prints["low_noise"] != prints["transformer"]
    change(tmp_path / "two/transformer_2")
    assert f"other weights than are now in {tmp_path / 'two/transformer_2'}:" in said_of(capsys, run)
    assert record(tmp_path / "out")["fingerprints"]["transformer"] == prints["transformer"]


# what is broken


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def put_folder(path):
    path.unlink()
    path.mkdir()


BROKEN_VIDEO = {"cut": cut, "empty": lambda path: path.write_bytes(b""), "folder": put_folder, "a bit": flip,
                "another": lambda path: write_video(path, torch.zeros(3, 1, 32, 48), 16)}  # fmt: skip
BROKEN_RECORD = {"cut": cut, "empty": lambda path: path.write_bytes(b""), "folder": put_folder,
                 **{text: lambda path, text=text: path.write_text(text) for text in ("null", "[]", "{}", "\0" * 100)},
                 "bytes": lambda path: path.write_bytes(b'{"name": "\xff\xfe')}  # fmt: skip


@pytest.mark.parametrize("kind", BROKEN_VIDEO)
def test_a_broken_video_is_made_again(made, wan, capsys, kind):
    (video,) = made.glob("*.mp4")
    before = video.read_bytes()
    BROKEN_VIDEO[kind](video)
    assert f"{video} has other bytes than its record says: it is made again" in said_of(capsys, making(wan, made))
    assert video.read_bytes() == before
    assert "1 of 1 videos are there already" in said_of(capsys, making(wan, made))


@pytest.mark.parametrize("kind", BROKEN_RECORD)
def test_a_broken_record_has_its_video_made_again(made, wan, capsys, kind):
    (file,) = made.glob("*.json")
    before = json.loads(file.read_text())
    BROKEN_RECORD[kind](file)
    assert f"{file} is broken: its video is made again" in said_of(capsys, making(wan, made))
    assert json.loads(file.read_text()).keys() == before.keys() and record(made)["sha256"] == before["sha256"]


def test_of_many_broken_videos_some_are_named_and_all_are_counted(wan, tmp_path, capsys):
    run = making(wan, tmp_path / "out", "--count=13")
    command(run)
    for video in (tmp_path / "out").glob("*.mp4"):
        video.write_bytes(b"")
    lines = said_of(capsys, run).splitlines()
    assert sum("has other bytes than its record says: it is made again" in line for line in lines) == 10
    assert "and 3 more videos are made again for such reasons" in lines
    assert "13 of 13 videos are there already" in said_of(capsys, run)


def test_stopped_between_a_record_and_its_video(wan, tmp_path, monkeypatch, capsys):
    """There is never a video without its record, which would be somebody else's."""
    out, replace = tmp_path / "out", Path.replace

    def stop(path, target):
        if Path(target).suffix == ".mp4":
            raise KeyboardInterrupt
        return replace(path, target)

    monkeypatch.setattr(Path, "replace", stop)
    with pytest.raises(SystemExit):
        command(making(wan, out))
    assert [path.suffix for path in out.iterdir()] == [".json"]
    monkeypatch.undo()
    said = said_of(capsys, making(wan, out))
    assert "again" not in said and "1 of 1 videos are there already" in said_of(capsys, making(wan, out))


def test_a_video_that_was_removed_is_made_with_the_settings_of_today(made, wan, capsys):
    (video,) = made.glob("*.mp4")
    assert "was made with guidance 1.0 (now 2.0)" in refused(capsys, making(wan, made, "--guidance=2"))
    video.unlink()
    assert "again" not in said_of(capsys, making(wan, made, "--guidance=2")) and record(made)["guidance"] == 2.0


# what isn't ours


def own_video(out, name):
    write_video(out / f"{name}.mp4", torch.zeros(3, 1, 32, 48), 16)


def own_record(text):
    return lambda out, name: (out / f"{name}.json").write_text(text)


def own_folder(ending):
    def put(out, name):
        (out / f"{name}{ending}").mkdir()
        (out / f"{name}{ending}/notes").touch()

    return put


NOT_OURS = {
    "a video": (own_video, "has no record that says what made it"),
    "notes": (own_record("my notes\n"), "is no record of a video, it holds 'my notes'"),
    "a list": (own_record("[1, 2]"), "is no record of a video, it holds [1, 2]"),
    "a number": (own_record("7"), "is no record of a video, it holds 7"),
    "other JSON": (own_record('{"name": "x"}'), "is no record of a video that this version made, it lacks prompt"),
    "a folder of that name": (own_folder(".mp4"), ".mp4 is no file"),
    "a record's folder": (own_folder(".json"), ".json is no file"),
}


@pytest.mark.parametrize("kind", NOT_OURS)
def test_what_is_not_ours_is_never_written_over(wan, tmp_path, capsys, monkeypatch, kind):
    """Said before the first step, also where it is in the way of the last video, or of another process's."""
    put, message = NOT_OURS[kind]
    out = tmp_path / "out"
    out.mkdir()
    put(out, plan_jobs(["a"], 2, 0)[1].name)
    before = contents(out)
    monkeypatch.setattr(videos, "_make_all", None)
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        monkeypatch.setenv("WORLD_SIZE", "2")
        line = refused(capsys, making(wan, out, "--count=2"))
        assert message in line and "move it away, or choose another --out" in line
    assert contents(out) == before


def test_a_process_touches_its_own_videos_alone(wan, tmp_path, capsys, monkeypatch):
    run = making(wan, tmp_path / "out", "--count=2")
    command(run)
    for video in (tmp_path / "out").glob("*.mp4"):
        cut(video)
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank, other in (("0", "seed1"), ("1", "seed0")):
        monkeypatch.setenv("RANK", rank)
        (theirs,) = (tmp_path / "out").glob(f"*{other}.mp4")
        before = theirs.stat().st_mtime_ns
        said = said_of(capsys, run)
        assert said.count("has other bytes") == 1 and other not in said and theirs.stat().st_mtime_ns == before
    assert "1 of 1 videos are there already" in said_of(capsys, run)


# fidelity and VBench


def test_fidelity_makes_rows_of_other_weights_again(trained, tmp_path, capsys, monkeypatch):
    run = ["models", f"--checkpoint={trained}", f"--out={tmp_path / 'out'}", *TINY]
    fidelity(run)
    first = json.loads((tmp_path / "out/fidelity.json").read_text())["rows"][1]["total"]["psnr"]
    retrain(trained)
    capsys.readouterr()
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank, written in (("1", False), ("0", True)):  # of one video, which is the first process's
        monkeypatch.setenv("RANK", rank)
        fidelity(run)
        said = capsys.readouterr().out
        assert (said.count("other weights") == 4) == written and ("the last process to finish" in said) != written
    assert json.loads((tmp_path / "out/fidelity.json").read_text())["rows"][1]["total"]["psnr"] != first


def test_what_is_in_the_way_of_fidelitys_last_row_is_said_before_the_first(trained, tmp_path, capsys):
    last = tmp_path / "out/joint"
    last.mkdir(parents=True)
    own_video(last, plan_jobs(["a"], 1, 0)[0].name)
    before = contents(tmp_path / "out")
    run = ["models", f"--checkpoint={trained}", f"--out={tmp_path / 'out'}", *TINY]
    assert "has no record that says what made it" in refused(capsys, run, fidelity)
    assert contents(tmp_path / "out") == before


def test_vbench_counts_what_is_whole(suite, trained, tmp_path, capsys):
    out, small = tmp_path / "run", ["--steps=1", "--frames=2", "--height=16", "--width=16", "--guidance=1"]
    vbench(["plan", f"--suite={suite}", f"--out={out}", "--quick=1", "--dimensions=[scene]"])
    run = ["generate", f"--checkpoint={trained}", f"--out={out}", *small]
    vbench(run)
    (video,) = (out / "videos").glob("*.mp4")
    cut(video)
    capsys.readouterr()
    vbench([*run, "--shard=2/2"])
    assert "1 videos of the other shares are missing" in capsys.readouterr().out
    vbench(run)
    assert f"{video} has other bytes than its record says: it is made again" in capsys.readouterr().out
    retrain(trained)
    vbench([*run, "--shard=2/2"])
    assert "1 videos of the other shares are missing" in capsys.readouterr().out


# contact sheets


def test_a_contact_sheet_leaves_out_what_cannot_be_read(made, tmp_path, caplog, monkeypatch):
    clip = resolve_settings(Options(str(tmp_path / "wan"), frames=1, height=32, width=48))[1].clip
    jobs = [Job(next(made.glob("*.mp4")).stem, "a", 0), Job("none", "b", 1)]
    (made / "none.mp4").write_bytes(b"broken")
    (made / "contact.png").unlink()
    draw_contacts(made / "contact.png", made, jobs, clip)
    assert (made / "contact.png").is_file() and f"{made / 'none.mp4'}" in caplog.text
    (made / "contact.png").unlink()
    draw_contacts(made / "contact.png", made, jobs[1:], clip)
    draw_contacts(made / "nowhere/contact.png", made, jobs[:1], clip)
    assert caplog.text.count("was not drawn") == 2 and not (made / "contact.png").exists()


# text states


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_text_states_come_back_bit_by_bit(tmp_path, dtype):
    text, states = ByteText(8, 16), TextStates(tmp_path)
    prompts = ["a red circle", "", "a prompt that is longer than what is kept of it"]
    expected = {prompt: text([prompt], CPU).to(dtype) for prompt in prompts}
    for prompt in prompts:
        states.add(prompt, expected[prompt])
    for prompt in reversed(prompts):
        assert states[prompt].dtype == dtype and torch.equal(states[prompt], expected[prompt])
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_one_line(wan, tmp_path, capsys, monkeypatch):
    full = OSError(28, "No space left on device")
    monkeypatch.setattr(videos, "encode_video", lambda *_: (_ for _ in ()).throw(full))
    with pytest.raises(SystemExit) as stopped:
        command(making(wan, tmp_path / "out"))
    line = capsys.readouterr().err.splitlines()[-1]
    assert stopped.value.code == 2 and line.startswith("error: ")
    assert "can't be written (No space left on device)" in line and not (tmp_path / "out").exists()


# lossless


def test_a_lossless_video_has_every_pixel(tmp_path):
    video = torch.rand(3, 3, 32, 48, generator=torch.Generator().manual_seed(0)) * 2 - 1
    expected = ((video + 1) * 127.5).round().byte()
    for name, lossless in (("plain", False), ("lossless", True), ("again", True)):
        write_video(tmp_path / f"{name}.mp4", video, 8, lossless)
    plain, exact = (read_clip(tmp_path / f"{name}.mp4", 3, 8, 32, 48) for name in ("plain", "lossless"))
    assert torch.equal(exact, expected) and (plain.float() - expected.float()).abs().max() > 20
    assert (tmp_path / "lossless.mp4").read_bytes() == (tmp_path / "again.mp4").read_bytes()


def test_lossless_is_a_setting_of_its_own(wan, made, tmp_path, capsys):
    assert "was made with lossless False (now True)" in refused(capsys, making(wan, made, "--lossless=true"))
    command(making(wan, tmp_path / "exact", "--lossless=true"))
    assert record(tmp_path / "exact")["lossless"] is True
    model, settings = resolve_settings(
        Options(str(wan), frames=1, height=32, width=48, steps=1, guidance=1.0, lossless=True)
    )
    kept = open_records(model, settings, tmp_path / "exact")
    assert kept.count_missing(plan_jobs(["a"], 1, 0)) == 0


def test_a_users_files_are_never_written_over(wan, tmp_path, capsys):
    """A picture in the sheet's place; notes in a record's."""
    out = tmp_path / "out"
    out.mkdir()
    (out / "contact.png").write_text("mine")
    assert f"{out / 'contact.png'} was not written by this command" in refused(capsys, making(wan, out))
    (out / "contact.png").unlink()
    notes = out / f"{plan_jobs(['a'], 1, 0)[0].name}.json"
    notes.write_text('{"my": notes, not json')
    assert f"{notes} is no record of a video" in refused(capsys, making(wan, out))
    assert notes.read_text() == '{"my": notes, not json' and list(out.iterdir()) == [notes]


def test_a_row_of_a_vocabulary_counts_however_large_it_is(tmp_path):
    tensors = {"embedding": torch.zeros(20_000, 1024), "other": torch.zeros(10)}
    digests = []
    for row in (None, 700, 701, 19_999):
        changed = {**tensors, "embedding": tensors["embedding"].clone()}
        if row is not None:
            changed["embedding"][row] = 1
        save_file(changed, tmp_path / "x.safetensors")
        digests.append(digest_held({name: held_in_memory(tensor) for name, tensor in changed.items()}))
        digests.append(digest_held(held_in_file(tmp_path / "x.safetensors")))
    assert len(set(digests)) == 8


def test_prompts_that_are_cut_are_counted(tmp_path, caplog):
    text = ByteText(8, 16)
    model = SimpleNamespace(text=text)
    encode_prompts(model, ["short", "just as many b.", "x" * 16, "y" * 17, "é" * 9], CPU, tmp_path)
    (line,) = caplog.messages
    assert line.startswith(
        "2 of 5 prompts are cut to the 16 that the text encoder keeps (bytes), the first of them: 'yyy"
    )
