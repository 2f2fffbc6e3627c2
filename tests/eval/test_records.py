"""Videos and their records: whose weights made them, and what goes into making them."""

import json
import shutil
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file

from eval.generate.command import command, plan_jobs, resolve_settings
from eval.generate.jobs import Job, Options
from eval.generate.maker import TextStates, encode_prompts
from eval.generate.records import open_records
from eval.generate.sampling import mean_density
from eval.generate.videos import draw_contacts
from eval.timing import find_commit, name_device
from fps_flex import FPSAttention
from fps_flex.wan.codecs import ByteText
from fps_flex.wan.convert import main
from fps_flex.wan.fingerprint import digest_held, held_in_file, held_in_memory
from fps_flex.wan.weights import open_weights
from tests.helpers.commands import refused
from tests.helpers.records import TINY, change, contents, making, record, retrain, said_of
from tests.helpers.tiny_wan import tiny_pipeline, tiny_transformer
from train.common.atomic import digest_file
from train.common.videos import read_clip, write_video

CPU = torch.device("cpu")


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
    found = mean_density(attention, (6, 8, 8), scheduler, 2)
    sparse = FPSAttention("dense", tile=(1, 2, 2), block=16)
    assert mean_density(sparse, (6, 8, 8), scheduler, 2) == 1.0 > found > 0


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
    line = refused(capsys, command, [f"--checkpoint={moved}", f"--out={out}", *TINY])
    assert f"was made with checkpoint {trained} (now {moved}): choose another --out" in line
    videos_and_records = {path: x for path, x in contents(out).items() if path.name != "contact.png"}
    assert videos_and_records == {path: x for path, x in before.items() if path.name != "contact.png"}


def test_a_release_that_was_copied_is_the_same(made, wan, tmp_path, capsys):
    copied = shutil.copytree(wan, tmp_path / "copied")
    assert "1 of 1 videos are there already" in said_of(capsys, making(copied, made))
    change(copied / "vae")
    line = refused(capsys, command, making(copied, made))
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
    assert "was made with text {" in refused(capsys, command, making(wan, made))


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
    assert "was made with lossless False (now True)" in refused(capsys, command, making(wan, made, "--lossless=true"))
    command(making(wan, tmp_path / "exact", "--lossless=true"))
    assert record(tmp_path / "exact")["lossless"] is True
    model, settings = resolve_settings(
        Options(str(wan), frames=1, height=32, width=48, steps=1, guidance=1.0, lossless=True)
    )
    kept = open_records(model, settings, tmp_path / "exact")
    assert kept.count_missing(plan_jobs(["a"], 1, 0)) == 0


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
