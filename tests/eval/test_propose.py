"""Proposed schedules: nothing beats them by prediction, and presets don't by measurement on other prompts and seeds."""

import json
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch
import yaml

from eval.generate.command import resolve_settings
from eval.generate.jobs import Options
from eval.sensitivity.command import command
from eval.sensitivity.fronts import find_front, pick_density
from eval.sensitivity.layerwise import find_layer_front, first_within, mean_density, name_ranges, sum_errors
from eval.sensitivity.predict import as_schedule, over_steps, predict, share_out
from eval.sensitivity.result import read
from fps_flex import StepSchedule, preset
from fps_flex.wan.weights import read_settings
from tests.helpers.commands import refused
from tests.helpers.tiny_run import tiny_checkpoint, train_tiny
from tests.helpers.velocities import measure_velocities

STEPS = 6


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return tiny_checkpoint(tmp_path_factory.mktemp("trained") / "run")


@pytest.fixture(scope="module")
def folder(checkpoint, tmp_path_factory):
    """Of a measurement."""
    out = tmp_path_factory.mktemp("propose") / "measured"
    windows = "--windows=[[0.3,null,null],[0.4,null,null],[0.6,null,null],[0.75,0.75,0.75]]"
    command([
        f"--checkpoint={checkpoint}", "--prompt=a red circle moving left", f"--out={out}", f"--steps={STEPS}",
        "--every=2", "--guidance=1", "--sampler=euler", windows, "--granularities=[1]", "--layers=true",
    ])  # fmt: skip
    return out


def propose(folder, *options):
    command(["propose", *options, str(folder)])


@pytest.mark.parametrize("seed", range(3))
def test_no_schedule_of_three_regimes_is_better(seed):
    random, steps, count = np.random.default_rng(seed), 5, 4
    errors, densities = random.random((steps, count)), random.choice([0.1, 0.3, 0.5, 1.0], count)
    front = find_front(errors, densities, range(count))
    every = []
    for (one, other), picks in product(product(range(steps + 1), repeat=2), product(range(count), repeat=3)):
        if one <= other:
            of_step = np.repeat(picks, [one, other - one, steps - other])
            every.append((densities[of_step].mean(), errors[range(steps), of_step].mean()))
    for budget in np.linspace(densities.min(), 1, 12):
        least = min(error for density, error in every if density <= budget + 1e-9)
        assert pick_density(front, budget).error == pytest.approx(least)
        sparsest = min(density for density, error in every if error <= least * (1 + 1e-9))
        assert mean_density(first_within([(one,) for one in front], least)) == pytest.approx(sparsest)


def test_lower_measured_error_than_presets_of_its_density(checkpoint, folder):
    """With the model run with each schedule as its own attention, on a prompt and seeds that it wasn't made from."""
    propose(folder, "--budget", "0.5")
    model, settings = resolve_settings(Options(checkpoint=str(checkpoint)))
    dense = replace(model.attention, schedule="dense")
    schedules = {
        "fps": preset("fps"),
        "uniform": preset("uniform"),
        "proposed": StepSchedule.read(folder / "schedule.yaml"),
    }
    attentions = {name: replace(dense, schedule=schedule) for name, schedule in schedules.items()}
    shape = (1, model.codec.channels, *model.codec.latent_size(settings.clip.size))
    noises = [torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in (11, 12)]
    cpu = torch.device("cpu")
    text = model.text(["two green squares moving up"], cpu)
    errors = measure_velocities(model.load(cpu), attentions, dense, noises, text, STEPS, settings.shift)
    assert errors["proposed"] < 0.9 * min(errors["fps"], errors["uniform"])
    measured = read(folder)
    mse = over_steps(measured, measured.velocity_mse)
    for name, schedule in schedules.items():
        expected = predict(measured, mse, schedule)
        assert expected.density <= 0.5 + 1e-9
        assert errors[name] == pytest.approx(expected.error**0.5, rel=0.4)


def test_a_proposal_survives_its_file(folder):
    """Bounds between two steps, and windows as they were asked for."""
    measured = read(folder)
    errors, candidates = over_steps(measured, measured.velocity_mse), measured.list_candidates()
    quantised = [i for i, one in enumerate(candidates) if one.regime.granularity]
    for choice in find_front(errors, np.array([one.density for one in candidates]), quantised):
        schedule = as_schedule(measured, choice)
        assert predict(measured, errors, schedule).of_step == choice.of_step


def test_layers_share_the_error_that_was_measured(folder):
    measured = read(folder)
    parts = share_out(measured)
    np.testing.assert_allclose(parts.sum(-1), measured.velocity_mse, rtol=1e-9)
    errors, candidates = over_steps(measured, parts), measured.list_candidates()
    densities = np.array([one.density for one in candidates])
    front = [*find_layer_front(errors, densities, range(len(candidates)))]
    assert all(mean_density(a) < mean_density(b) for a, b in zip(front[:-1], front[1:], strict=True))
    assert all(sum_errors(a) > sum_errors(b) for a, b in zip(front[:-1], front[1:], strict=True))
    same = find_front(errors.sum(-1), densities, range(len(candidates)))
    for choices in front:  # layers that may differ do no worse than those that may not
        at_most = pick_density(same, mean_density(choices))
        assert at_most is None or sum_errors(choices) <= at_most.error * (1 + 1e-6)


def test_layers_are_named_by_ranges(folder):
    measured = read(folder)
    densities = np.array([one.density for one in measured.list_candidates()])
    one, other = find_front(over_steps(measured, measured.velocity_mse), densities, [1, 3])[:2]
    common, ranges = name_ranges((other, other, one, one, one, other))
    assert common in (one, other) and list(ranges) == (["2-4"] if common == other else ["0-1", "5"])


def test_training_takes_the_file_and_keeps_its_numbers(folder, tmp_path):
    propose(folder, "--error", "0.05", "--out", str(tmp_path / "ours.yaml"))
    run = train_tiny(tmp_path / "run", f"--config={tmp_path / 'ours.yaml'}")
    _, attention = read_settings(run / "checkpoints/last.ckpt")
    assert attention.schedule == StepSchedule.read(tmp_path / "ours.yaml")
    assert attention.tile == (1, 4, 4) and attention.engine == "eager"  # which is of the other config
    assert "ours.yaml" not in json.dumps(torch.load(run / "checkpoints/last.ckpt", weights_only=True)["fps_flex"])


def test_a_schedule_by_layer_goes_into_training_and_does_better(checkpoint, folder, tmp_path):
    """Measured on another prompt and seed, beside the best that is the same in all layers."""
    propose(folder, "--budget", "0.6", "--out", str(tmp_path / "same.yaml"))
    propose(folder, "--budget", "0.6", "--layers", "true", "--out", str(tmp_path / "layers.yaml"))
    run = train_tiny(tmp_path / "run", f"--config={tmp_path / 'layers.yaml'}")
    _, by_layer = read_settings(run / "checkpoints/last.ckpt")
    assert len(by_layer.schedules) > 1
    model, settings = resolve_settings(Options(checkpoint=str(checkpoint)))
    dense = replace(model.attention, schedule="dense")
    same = replace(dense, schedule=StepSchedule.read(tmp_path / "same.yaml"))
    attentions = {"same": same, "by layer": replace(same, schedule=by_layer.schedule, layers=dict(by_layer.layers))}
    shape = (1, model.codec.channels, *model.codec.latent_size(settings.clip.size))
    noise, cpu = torch.randn(shape, generator=torch.Generator().manual_seed(21)), torch.device("cpu")
    wan, text = model.load(cpu), model.text(["two green squares moving up"], cpu)
    errors = measure_velocities(wan, attentions, dense, [noise], text, STEPS, settings.shift)
    assert errors["by layer"] < errors["same"]


def test_generation_takes_the_file(checkpoint, folder, tmp_path, capsys):
    from eval.generate.command import command as generate

    propose(folder, "--budget", "0.45", "--out", str(tmp_path / "ours.yaml"))
    generate([f"--config={tmp_path / 'ours.yaml'}", f"--checkpoint={checkpoint}", "--prompt=a", "--steps=1",
              f"--out={tmp_path / 'videos'}"])  # fmt: skip
    record = json.loads(next((tmp_path / "videos").glob("a-*.json")).read_text())
    told = yaml.safe_load((tmp_path / "ours.yaml").read_text())["attention"]["schedule"]
    assert record["attention"]["schedule"] == told


@pytest.mark.parametrize(
    "options, expected",
    [
        (["--budget", "0.01"], "budget is 0.01, expected at least 0.4000"),
        (["--budget", "1.5"], "budget is 1.5"),
        (["--error", "0.000001"], "error is 1e-06, expected at least 0.0"),
        (["--budget", "0.5", "--error", "0.1"], "both of --budget and --error"),
        ([], "neither of --budget and --error"),
        (["--budget", "0.01", "--layers", "true"], "budget is 0.01, expected at least 0.4000"),
    ],
)
def test_what_cannot_be_is_one_line(folder, capfd, options, expected):
    assert expected in refused(capfd, command, ["propose", *options, folder])


def test_another_file_is_one_line(folder, tmp_path, capfd):
    def refuse(change, *options):
        data = json.loads((folder / "sensitivity.json").read_text())
        change(data)
        (tmp_path / "sensitivity.json").write_text(json.dumps(data))
        return refused(capfd, command, ["propose", "--budget", "0.5", *options, tmp_path])

    assert "no sensitivity.json in nowhere" in refused(capfd, command, ["propose", "--budget", "0.5", "nowhere"])
    assert "lacks grid" in refuse(lambda data: data.pop("grid"))
    assert "another grid than [5, 8, 12]" in refuse(lambda data: data.update(grid=[5, 8, 12]))
    assert "aren't those of 3 steps" in refuse(lambda data: data["velocity"]["relative_mse"].pop() or data)
    assert "expected fps-flex eval.sensitivity" in refuse(lambda data: data.update(producer="another"))
    assert "--layers true" in refuse(lambda data: data.update(one_layer=None, probe=None), "--layers", "true")
    assert not (tmp_path / "schedule.yaml").exists()


def test_a_file_that_is_not_ours_stays(folder, tmp_path, capfd):
    (tmp_path / "mine.yaml").write_text("mine: 1\n")
    line = refused(capfd, command, ["propose", "--budget", "0.5", "--out", tmp_path / "mine.yaml", folder])
    assert "was not written by this command" in line and (tmp_path / "mine.yaml").read_text() == "mine: 1\n"


@pytest.mark.parametrize(
    "text, expected",
    [
        ("attention: {schedule: {bounds: []}}", "schedule lacks regimes, shift"),
        ("attention: {schedule: nothing}", "schedule is 'nothing'"),
        ("attention: {layers: {'0': dense}, schedule: fps}", "a schedule for each of some layers"),
        ("[", "is no YAML"),
        ("", "schedule is None"),
    ],
)
def test_a_file_that_is_no_schedule_is_refused(tmp_path, text, expected):
    (tmp_path / "x.yaml").write_text(text)
    with pytest.raises(ValueError, match="x.yaml: .*") as error:
        StepSchedule.read(tmp_path / "x.yaml")
    assert expected in str(error.value) and "\n" not in str(error.value)


def test_schedules_are_read_from_training_configs_too():
    assert StepSchedule.read("configs/tiny.yaml").bounds == (0.35, 0.65)


def test_what_a_proposal_leaves_apart_is_told(folder, capsys):
    least = min(one.density for one in read(folder).list_candidates())
    propose(folder, "--budget", str(least))
    told = capsys.readouterr().out.splitlines()[-1]
    assert told == "no window on T, of 5 tiles, is wider than 2: what is later never reaches what is earlier"
    propose(folder, "--budget", "1")
    assert "is wider than" not in capsys.readouterr().out
