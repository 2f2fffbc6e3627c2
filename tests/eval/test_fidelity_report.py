"""The report of two folders: its numbers, going on after a stop, records, and what is in its way."""

import json
from hashlib import sha256

import numpy as np
import pytest
import torch
from PIL import Image

from eval.fidelity import scores as fidelity_scores
from eval.fidelity import sheet as fidelity_sheet
from eval.fidelity.command import command
from eval.fidelity.similarity import compare, find_metrics
from eval.fidelity.summary import to_db
from tests.helpers.commands import refused
from tests.helpers.fidelity_folders import clip, measured, on, write_small, write_two

CPU = torch.device("cpu")


@pytest.fixture
def two(tmp_path):
    return write_two(tmp_path)


@pytest.fixture
def small(tmp_path):
    return write_small(tmp_path)


def test_a_report_of_two_folders(two, capsys):
    reference, candidate, out = two
    command(on(*two))
    said = json.loads((out / "fidelity.json").read_text())
    first, second = said["rows"]
    assert first["folder"] == str(reference) and "total" not in first
    by_hand = [compare(candidate / f"clip {i}.mp4", reference / f"clip {i}.mp4", find_metrics(176, 192)[0], CPU)
               for i in range(3)]  # fmt: skip
    means = [np.mean([to_db(x) for x in found["mse"]]) for found in by_hand]
    errors = [np.mean(found["mse"]) for found in by_hand]
    assert [video["psnr_of_frames"] for video in second["videos"]] == pytest.approx(means)
    assert [video["psnr"] for video in second["videos"]] == pytest.approx([to_db(x) for x in errors])
    assert means[0] > means[1] > means[2]
    worst = [to_db(max(found["mse"])) for found in by_hand]
    assert [video["worst_psnr"] for video in second["videos"]] == pytest.approx(worst)
    assert second["total"]["psnr"]["mean"] == pytest.approx(to_db(np.mean(errors)))
    assert second["total"]["psnr_of_frames"]["mean"] == pytest.approx(np.mean(means))
    low, high = second["total"]["psnr"]["interval"]
    assert 0 < low < to_db(np.mean(errors)) < high < 100
    text = (out / "fidelity.md").read_text()
    assert f"{to_db(np.mean(errors)):.2f} [{low:.2f}, {high:.2f}]" in text and "| clip 1 | candidate | 0 of 5 |" in text
    assert (
        "Videos a row: 3, of 3 prompts; one whose prompt no record says counts as of a prompt of its own." in text
        and "4 are shown at once" in text
    )
    assert "make the videos with --lossless" in text and "How the videos were made" not in text and "*" not in text
    assert text in capsys.readouterr().out
    assert Image.open(out / "side-by-side.png").size[1] > 1000


def test_stopped_in_the_middle_goes_on_with_what_is_missing(two, monkeypatch, capsys):
    *_, out = two
    measured = []

    def stopping(candidate, *rest):
        measured.append(candidate.stem)
        if len(measured) == 2:
            raise KeyboardInterrupt
        return compare(candidate, *rest)

    monkeypatch.setattr(fidelity_scores, "compare", stopping)
    with pytest.raises(SystemExit) as stopped:
        command(on(*two))
    assert stopped.value.code == 130 and "goes on with what is missing" in capsys.readouterr().err
    assert not (out / "fidelity.md").exists()
    command(on(*two))
    assert measured == ["clip 0", "clip 1", "clip 1", "clip 2"]
    first = (out / "fidelity.json").read_bytes()
    command(on(*two))
    assert len(measured) == 4 and (out / "fidelity.json").read_bytes() == first

    (out / "scores/candidate/clip 2.json").write_text('{"candidate"')
    clip(two[1] / "clip 0.mp4", seed=9)
    command(on(*two))
    assert measured[4:] == ["clip 0", "clip 2"] and (out / "fidelity.json").read_bytes() != first


def spoiled(**changes):
    return lambda said: {**said, "frames": {**said["frames"], **changes}}


@pytest.mark.parametrize(
    "spoil",
    [
        lambda said: None,
        lambda said: [],
        lambda said: "scores",
        lambda said: {**said, "frames": None},
        lambda said: {**said, "frames": {}},
        lambda said: {**said, "metrics": ["psnr", "ssim"]},
        spoiled(mse=[0.1]),
        spoiled(mse=[]),
        spoiled(mse=["0.1"] * 5),
        spoiled(mse=[True] * 5),
        spoiled(mse=[-1.0] * 5),
        spoiled(ssim=[float("nan")] * 5),
        spoiled(ssim=0.5),
        spoiled(more=[0.5] * 5),
        lambda said: {**said, "frames": {name: numbers[:3] for name, numbers in said["frames"].items()}},
        lambda said: {**said, "frames": {name: [x[0] * 0.5] * 5 for name, x in said["frames"].items()}},
        lambda said: {name: value for name, value in said.items() if name != "sha256"},
    ],
)
def test_other_scores_than_ours_are_measured_again(small, spoil):
    first, file = measured(*small), small[2] / "scores/candidate/clip 1.json"
    kept = file.read_bytes()
    file.write_text(json.dumps(spoil(json.loads(kept))))
    assert measured(*small) == first and file.read_bytes() == kept


@pytest.mark.parametrize("text", ["", '{"candidate"', "[" * 100_000, "\xff"])
def test_scores_that_are_no_json_are_measured_again(small, text):
    first, file = measured(*small), small[2] / "scores/candidate/clip 1.json"
    kept = file.read_bytes()
    file.write_bytes(text.encode("latin-1"))
    assert measured(*small) == first and file.read_bytes() == kept


def test_equal_frames_are_counted_and_marked(small):
    reference, candidate, out = small
    (candidate / "clip 1.mp4").write_bytes((reference / "clip 1.mp4").read_bytes())
    command(on(*small))
    row = json.loads((out / "fidelity.json").read_text())["rows"][1]
    assert (row["equal_frames"], row["frames"]) == (5, 15)
    assert [video["equal_frames"] for video in row["videos"]] == [0, 5, 0]
    errors = [video["mse"] for video in row["videos"]]
    assert errors[1] == 0 and row["total"]["psnr"]["mean"] == pytest.approx(to_db(sum(errors) / 3))
    text = (out / "fidelity.md").read_text()
    assert f"| {row['total']['psnr_of_frames']['mean']:.2f}* [" in text and "| 5 of 15 |" in text
    assert "| clip 1 | candidate | 5 of 5 | 100.00 | 100.00* |" in text
    assert "*: among the frames are equal ones, which count as 100 dB." in text


def test_records_beside_the_videos_say_how_they_were_made(small):
    for folder, weights in ((small[0], "0123456789abcdef"), (small[1], "run 7, step 9, weights fedcba9876543210")):
        for i in range(3):
            record = {
                "prompt": "a cat" if i < 2 else "a dog",
                "fingerprints": {"transformer": weights},
                "machine": {"device": "NVIDIA H100", "commit": f"c0ffee{i // 2}"},
                "seconds": 10.0 + i,
                "peak_gb": 20.0 + i,
                "density": 0.25,
                "lossless": True,
            }
            (folder / f"clip {i}.json").write_text(json.dumps(record))
    (small[1] / "clip 0.json").write_text("[]")
    (small[0] / "clip 1.json").write_text(
        json.dumps({"prompt": "a cat", "machine": 3, "seconds": "long", "lossless": True})
    )
    command(on(*small))
    first, second = json.loads((small[2] / "fidelity.json").read_text())["rows"]
    assert first["made"]["seconds"] == 11.0 and second["made"]["commits"] == {"c0ffee0": 1, "c0ffee1": 1}
    assert second["total"]["mse"]["prompts"] == 2 and second["total"]["mse"]["videos"] == 3
    assert first["lossless"] is True and second["lossless"] is None
    text = (small[2] / "fidelity.md").read_text()
    head = "seconds per video (median) | peak memory | device | commit | fingerprint of the transformer"
    assert f"| row | {head} |" in text
    commits, weights = "c0ffee0 (1 video), c0ffee1 (1 video)", "run 7, step 9, weights fedcba987654"
    assert f"| candidate | 11.5 | 22.0 GB | NVIDIA H100 | {commits} | {weights} |" in text
    assert "Videos a row: 3, of 2 prompts; one" in text and "| candidate | 0.250 |" in text
    assert "Whether all files are lossless no record says: where they aren't, H.264 at crf 18 adds" in text
    (small[1] / "clip 0.json").write_text('{"lossless": true}')
    command(on(*small))
    assert "The files are lossless." in (small[2] / "fidelity.md").read_text()
    (small[1] / "clip 0.json").write_text('{"lossless": false}')
    command(on(*small))
    assert "where their windows fit. H.264 at crf 18 adds" in (small[2] / "fidelity.md").read_text()


def test_a_record_of_other_bytes_says_nothing_of_a_video(small):
    """Not even its prompt; it is named, and the right one counts."""
    reference, candidate, out = small
    digests = [sha256((candidate / f"clip {i}.mp4").read_bytes()).hexdigest() for i in range(3)]
    for i, said in enumerate((digests[0], "0" * 64, digests[1])):
        record = {"prompt": "p", "lossless": True, "sha256": said, "fingerprints": {"transformer": f"weights {i}"}}
        for folder in small[:2]:
            (folder / f"clip {i}.json").write_text(json.dumps(record))
    command(on(*small))
    row, text = json.loads((out / "fidelity.json").read_text())["rows"][1], (out / "fidelity.md").read_text()
    assert row["made"]["fingerprints"] == {"transformer": {"weights 0": 1}}
    assert row["of_other_files"] == ["clip 1", "clip 2"]
    assert "not counted: clip 0 of reference, clip 1 of reference, clip 2 of reference, clip 1 of candidate" in text
    assert row["lossless"] is None and "The files are lossless." not in text and "of 3 prompts" in text


REPORT = ("fidelity.md", "fidelity.json", "side-by-side.png", "scores/candidate/clip 1.json")


@pytest.mark.parametrize("name", REPORT)
@pytest.mark.parametrize("kind", ["a folder", "the user's"])
def test_what_is_in_the_way_of_a_report_is_refused_before_work_and_kept(small, capsys, monkeypatch, name, kind):
    path = small[2] / name
    path.parent.mkdir(parents=True)
    path.mkdir() if kind == "a folder" else path.write_text("mine")
    monkeypatch.setattr(fidelity_scores, "compare", None)
    assert f"{path} " in refused(capsys, command, on(*small))
    assert path.is_dir() if kind == "a folder" else path.read_text() == "mine"


def test_a_file_where_the_scores_go_is_refused(small, capsys):
    small[2].mkdir()
    (small[2] / "scores").write_text("mine")
    assert "scores/candidate can't be written (Not a directory)" in refused(capsys, command, on(*small))
    assert (small[2] / "scores").read_text() == "mine"


def test_a_report_takes_its_own_place(small):
    command(on(*small))
    first = {path: path.read_bytes() for path in small[2].rglob("*") if path.is_file()}
    command(on(*small))
    assert {path: path.read_bytes() for path in small[2].rglob("*") if path.is_file()} == first


def test_where_all_videos_are_equal_the_interval_is_explained(small):
    command(on(small[0], small[0], small[2]))
    text = (small[2] / "fidelity.md").read_text()
    assert "| 100.00 [1.502, 100.00]† | 100.00* [29.24, 100.00]† |" in text
    assert "†: all videos have this number" in text and "up to 71% of all prompts have another number" in text
    command(on(*small))
    assert "†" not in (small[2] / "fidelity.md").read_text()


def test_beneath_each_strip_is_its_difference(small, monkeypatch):
    drawn = []
    monkeypatch.setattr(fidelity_sheet, "draw_contact_sheet", lambda path, *rest, **_: drawn.extend(rest))
    command(on(*small))
    strips, captions = drawn
    assert len(strips) == 9 and captions[2] == "|candidate - reference| x 8"
    first, second, difference = (strips[:3].double() + 1) / 2
    assert torch.allclose(difference, (8 * (second - first).abs()).clamp(max=1), atol=1e-5) and difference.max() > 0.2
