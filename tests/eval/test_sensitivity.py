"""What eval.sensitivity measures: a planted weak spot is found, and the numbers are those of the model run so."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from eval.generate.command import resolve_settings
from eval.generate.jobs import Options
from eval.sensitivity.command import command
from eval.sensitivity.errors import compare, compare_heads
from eval.sensitivity.result import read, read_part
from fps_flex import FPSAttention, Regime, StepSchedule, TileLayout
from fps_flex.wan.flow import velocity_error
from tests.helpers.commands import refused
from tests.helpers.planted import Spot, plant
from tests.helpers.tiny_run import tiny_checkpoint

SPOT = Spot(layer=1, head=1, below=0.6)
SAME = "--windows=[[0.4,null,null],[0.6,null,null]]"
SHORT = ["--steps=8", "--every=2", "--guidance=1", "--granularities=[1]"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("sensitivity")


@pytest.fixture(scope="module")
def checkpoint(folder):
    """A small model of the sizes of configs/tiny.yaml, with a weak spot, which smoothing would take away."""
    run = tiny_checkpoint(folder / "run", "--model.attention.smooth_k=false")
    return plant(run, SPOT, folder / "planted.ckpt")


@pytest.fixture(scope="module")
def prompts(folder):
    path = folder / "prompts.txt"
    path.write_text("a red circle moving left\na blue square\n")
    return path


def words(checkpoint, prompts, out, *options):
    return [f"--checkpoint={checkpoint}", f"--prompts={prompts}", f"--out={out}", *SHORT, *options]


@pytest.fixture(scope="module")
def measured(checkpoint, prompts, folder):
    """The folder of a measurement; not to be changed."""
    command(
        words(checkpoint, prompts, folder / "measured", "--windows=[[0.4,null,null],[0.6,null,null]]", "--layers=true")
    )
    return folder / "measured"


def test_the_planted_step_layer_and_head_are_found(measured):
    found = read(measured)
    quantised = [one.kind == "quantised" for one in found.list_candidates()]
    errors = found.attention_mse[:, quantised].mean(1)
    step, layer, head = np.unravel_index(errors.argmax(), errors.shape)
    levels = np.array(found.levels)[found.steps]
    assert (layer, head) == (SPOT.layer, SPOT.head) and levels[step] < SPOT.below
    spot = errors[:, SPOT.layer, SPOT.head]
    others = np.delete(errors.reshape(len(levels), -1), SPOT.layer * errors.shape[2] + SPOT.head, axis=1).max(1)
    assert (spot[levels < SPOT.below] > 2 * others[levels < SPOT.below]).all()
    assert (spot[levels >= SPOT.below] < 2 * others[levels >= SPOT.below]).all()


def test_the_numbers_are_those_of_the_model_run_with_each_candidate(checkpoint, measured):
    """Each candidate as the model's own attention, on the latents of a step."""
    model, _ = resolve_settings(Options(checkpoint=str(checkpoint)))
    wan, part = model.load(torch.device("cpu")), next(measured.glob("parts/a-blue*step3.json"))
    latents, timestep = torch.load(part.with_name(part.name.replace("-step3.json", ".pt")), weights_only=True)[3]
    text = model.text(["a blue square"], torch.device("cpu"))

    def velocity(schedule):
        wan.attention = replace(model.attention, schedule=schedule)
        with torch.no_grad():
            return wan(latents, torch.tensor([timestep]), text)

    exact, found = velocity("dense"), read_part(part)
    for i, one in enumerate(read(measured).list_candidates()):
        expected = velocity_error(velocity(StepSchedule((), (one.regime,))), exact).item() ** 2
        assert found.velocity_mse[i] == pytest.approx(expected, rel=1e-3), one


def test_candidates_are_alone_and_together(measured):
    names = {str(one): (one.kind, one.density) for one in read(measured).list_candidates()}
    assert names["whole, scales 1"] == ("quantised", 1.0)
    assert names["2x2x2, unquantised"] == ("sparse", 0.4) and names["2x2x2, scales 1"] == ("joint", 0.4)
    assert names["5x2x1, scales 4"] == ("joint", 0.5)  # of a preset
    assert "whole, unquantised" not in names


def test_codes_are_tried_beside_each_other():
    from eval.sensitivity.candidates import list_candidates

    layout, base = TileLayout((4, 8, 8), (2, 4, 4), 16), FPSAttention(tile=(2, 4, 4), block=16)
    found = list_candidates(layout, [], [1], ["e4m3", "int8"])
    names = [str(one) for one in found]
    assert "whole, scales 1" in names and "whole, scales 1 int8" in names
    assert names.count("2x2x1, unquantised") == 1 and len({*names}) == len(names)
    assert {one.attention(base).codes for one in found if "int8" in str(one)} == {"int8"}


def test_sums_leave_out_pads():
    layout = TileLayout((2, 3, 3), (1, 2, 2), 8)
    exact, got = torch.randn(2, 1, 3, layout.slots, 4)
    got = torch.where(layout.valid[:, None], got, 1e4)
    errors = compare_heads(got, exact, layout)
    for head in range(3):
        x, y = (z[0, head][layout.valid] for z in (got, exact))
        assert errors[head, 0].item() == pytest.approx(((x - y).norm() / y.norm()).item() ** 2, rel=1e-5)
        assert errors[head, 1].item() == pytest.approx(
            torch.cosine_similarity(x.flatten(), y.flatten(), 0).item(), abs=1e-5
        )


def test_zeros_are_no_error():
    zeros = torch.zeros(1, 4)
    assert compare(zeros, zeros).tolist() == [[0, 1]]


def test_a_run_goes_on_with_what_is_missing_or_broken(checkpoint, prompts, measured, tmp_path, capsys):
    out = tmp_path / "out"
    given = words(checkpoint, prompts, out, "--windows=[]", "--steps=4")
    command(given)
    before = json.loads((out / "sensitivity.json").read_text())
    parts = sorted(out.glob("parts/*.json"))
    parts[0].unlink()
    parts[1].write_text(parts[1].read_text()[:100])
    kept = [path.stat().st_mtime_ns for path in parts[2:]]
    capsys.readouterr()
    command(given)
    assert [path.stat().st_mtime_ns for path in parts[2:]] == kept
    after = json.loads((out / "sensitivity.json").read_text())
    assert {**after, "machine": 0} == {**before, "machine": 0}
    for name in ("steps.png", "layers.png"):
        assert (out / name).read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    "options, expected",
    [
        (["--windows=[[1,1,3]]"], "windows has (1, 1, 3), and the grid (5, 8, 8) has (5, 2, 2) tiles"),
        (["--windows=[[1,1,1.0]]"], "window is (1, 1, 1.0)"),
        (["--granularities=[0]"], "granularity"),
        (["--attention.schedule=fps"], "attention.schedule is given"),
        (["--attention.tile=[1,9,9]"], "tile (1, 9, 9) is larger than the grid (5, 8, 8)"),
        (["--every=0"], "every is 0"),
        (["--prompts=nowhere.txt"], "nowhere.txt"),
        (["--checkpoint=nowhere.ckpt"], "no checkpoint nowhere.ckpt"),
    ],
)
def test_bad_input_is_one_line(checkpoint, prompts, tmp_path, capfd, options, expected):
    assert expected in refused(capfd, command, words(checkpoint, prompts, tmp_path / "out", *options))
    assert not (tmp_path / "out").exists()


def test_a_folder_of_another_model_or_grid_is_refused(checkpoint, prompts, measured, folder, capfd):
    line = refused(capfd, command, words(checkpoint, prompts, measured, SAME, "--layers=true", "--frames=6"))
    assert "a measurement of another grid ([5, 8, 8], now [3, 8, 8])" in line
    other = plant(folder / "run/checkpoints/last.ckpt", replace(SPOT, head=0), folder / "other.ckpt")
    assert "another fingerprints" in refused(capfd, command, words(other, prompts, measured, SAME, "--layers=true"))
    assert "another candidates" in refused(capfd, command, words(checkpoint, prompts, measured, "--layers=true"))


def test_float8_is_for_quantised_candidates_alone():
    from eval.sensitivity.candidates import on_grid

    layout, base = TileLayout((4, 8, 8), (2, 4, 4), 16), FPSAttention(tile=(2, 4, 4), block=16, carrier="float8")
    sparse, joint = (on_grid(Regime((1, None, None), x), layout).attention(base) for x in (None, 1))
    assert (sparse.carrier, joint.carrier) == ("input", "float8")
