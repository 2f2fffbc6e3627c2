"""What eval.study measures, against values that are known: closed forms, a loss by hand, planted differences."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from eval.intervals import Estimate
from eval.sensitivity.replay import plan_attention
from eval.study import tables
from eval.study.actions import action_of, learn, see
from eval.study.config import Row
from eval.study.frechet import Features, fit_basis, frechet, frechet_of, shrink, spread
from eval.study.losses import by_regime, losses_of_clip, mean_over, noise_of
from eval.study.measure import measure_losses
from eval.study.measured import Distance, Mean, Measured, Real
from eval.study.results import Results, over
from eval.study.values import Rounded
from eval.study.verdicts import ABSENT, FAILS, HOLDS, UNKNOWN, decide, judge, log_errors
from fps_flex import FPSAttention
from tests.helpers.tiny_run import same_tensors
from train.shapes import MovingShapes

ROTATION = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))[0]


# the Fréchet distance


@pytest.mark.parametrize("turn", [np.eye(3), ROTATION])
def test_the_distance_of_gaussians_with_common_axes(turn):
    """|m - m'|² + sum (s - s')² of standard deviations s, s' along them."""
    mean, other, s, t = np.array([1.0, 0, 2]), np.array([0.0, 3, 2]), np.array([1.0, 2, 3]), np.array([2.0, 0.5, 3])
    covariances = [turn @ np.diag(x**2) @ turn.T for x in (s, t)]
    expected = 1 + 9 + (1 + 2.25 + 0)
    assert frechet_of(mean, other, *covariances) == pytest.approx(expected, rel=1e-9)


def test_the_distance_of_gaussians_without_common_axes():
    """In two dimensions tr (C C')½ is sqrt(tr C C' + 2 sqrt(det C C'))."""
    a, b = np.array([[2.0, 0.5], [0.5, 1.0]]), np.array([[1.0, -0.3], [-0.3, 3.0]])
    cross = np.sqrt(np.trace(a @ b) + 2 * np.sqrt(np.linalg.det(a @ b)))
    expected = np.trace(a) + np.trace(b) - 2 * cross
    assert frechet_of(np.zeros(2), np.zeros(2), a, b) == pytest.approx(expected, rel=1e-9) and expected > 0.1


def test_a_singular_covariance_is_one_too():
    assert frechet_of(np.zeros(2), np.ones(2), np.zeros((2, 2)), np.diag([4.0, 0])) == pytest.approx(2 + 4)


def test_the_distance_of_samples_is_that_of_their_moments():
    chance = np.random.default_rng(1)
    one, other = chance.normal(size=(4000, 3)), 2 * chance.normal(size=(4000, 3)) + [1, 0, 0]
    assert frechet(one, one) == pytest.approx(0, abs=1e-9)
    assert frechet(one, other) == pytest.approx(1 + 3, rel=0.1) == frechet(other, one)
    assert frechet(one[:, :1], other[:, :1]) == pytest.approx(1 + 1, rel=0.1)


def test_its_spread_shrinks_with_the_clips():
    chance = np.random.default_rng(2)
    few, many, real = chance.normal(size=(20, 2)), chance.normal(size=(500, 2)), chance.normal(size=(500, 2))
    assert spread(few, real) == spread(few, real) > 3 * spread(many, real) > 0


def test_a_basis_has_fewer_components_than_there_are_clips_to_compare():
    features = np.random.default_rng(3).normal(size=(100, 30)) * np.geomspace(1, 100, 30)
    basis = fit_basis(features, compared=24)
    seen = basis(features)
    assert seen.shape == (100, 6)
    assert np.cov(seen, rowvar=False) == pytest.approx(np.eye(6), abs=1e-9) and seen.mean(0) == pytest.approx(
        0, abs=1e-9
    )
    assert fit_basis(features, compared=3).directions.shape == (30, 1)


@pytest.fixture(scope="module")
def videos():
    """Two sets of moving shapes."""
    return [[MovingShapes(12, 8, 32, 64, seed=seed)[i]["video"] for i in range(12)] for seed in (1, 2)]


def test_what_is_wrong_with_clips_is_farther_than_other_real_clips(videos):
    """Real against real < real against blurred, shuffled in time, and noise; and no chance of others is touched."""
    before = torch.get_rng_state()
    net = Features(torch.device("cpu"))
    assert torch.equal(torch.get_rng_state(), before) and not torch.are_deterministic_algorithms_enabled()
    generator = torch.Generator().manual_seed(0)
    broken = {
        "blurred": [torch.nn.functional.avg_pool3d(x, (1, 9, 9), 1, (0, 4, 4)) for x in videos[1]],
        "shuffled": [x[:, torch.randperm(8, generator=generator)] for x in videos[1]],
        "noise": [torch.randn(x.shape, generator=generator).clamp(-1, 1) for x in videos[1]],
    }
    real = net.of_all(videos[0])
    basis = fit_basis(real, 12)
    floor = frechet(basis(net.of_all(videos[1])), basis(real))
    distances = {name: frechet(basis(net.of_all(those)), basis(real)) for name, those in broken.items()}
    assert floor < min(distances.values()), (floor, distances)


def test_clips_are_averaged_down_to_bytes():
    video = torch.cat([torch.full((3, 2, 54, 48), -1.0), torch.full((3, 2, 54, 48), 1.0)], dim=-1)
    small = shrink(video)
    assert small.shape == (2, 3, 27, 48) and small.dtype == torch.uint8
    assert small[..., :20].max() == 0 and small[..., 28:].min() == 255


# the grid of losses


def test_the_loss_of_a_model_that_is_known():
    """One that says nothing moves has the mean square of noise - video; one that knows both has none."""
    latents = torch.randn(1, 4, 2, 6, 6, generator=torch.Generator().manual_seed(5))
    noise = noise_of(3, latents)
    assert torch.equal(noise, noise_of(3, latents)) and not torch.equal(noise, noise_of(4, latents))
    seen = []

    def still(noisy, timestep, text):
        seen.append((noisy, timestep.item()))
        return torch.zeros_like(noisy)

    losses = losses_of_clip(still, latents, torch.zeros(1, 2, 3), 3, [0.25, 0.75])
    assert losses == pytest.approx([(noise - latents).square().mean().item()] * 2)
    assert [timestep for _, timestep in seen] == [250, 750]
    assert torch.allclose(seen[0][0], 0.75 * latents + 0.25 * noise)
    assert losses_of_clip(lambda *_: noise - latents, latents, torch.zeros(1, 2, 3), 3, [0.5]) == [0]


def test_means_of_a_grid():
    grid, sigmas = [[1.0, 2.0, 6.0], [3.0, 4.0, 8.0]], [0.1, 0.7, 0.9]
    assert mean_over(grid, sigmas) == [3, 5] and mean_over(grid, sigmas, 0.7) == [4, 6]
    assert by_regime(grid, [2, 0, 0]) == {0: 5.0, 2: 2.0}


# actions


def test_directions_are_learnt_from_shapes_and_told_of_others():
    shapes = map(MovingShapes(140, 8, 32, 32, seed=3).__getitem__, range(140))
    clips = [(x["video"], x["prompt"]) for x in shapes if action_of(x["prompt"]) in ("left", "right")]
    net = learn(clips[:50], 60, torch.device("cpu"))
    assert net.classes == ["left", "right"]
    right = [net.tell(see(video)) == action_of(prompt) for video, prompt in clips[50:]]
    assert len(right) > 10 and np.mean(right) > 0.9
    one, other = (learn(clips[:8], 2, torch.device("cpu")).state_dict() for _ in range(2))
    assert same_tensors(one, other)


def test_actions_of_captions():
    assert action_of("freedoom2 map18: the player turns left and shoots") == "turns left and shoots"
    assert action_of("a red circle moving up") == "up" and action_of("") == ""


# V, and verdicts


def test_a_scale_a_channel_keeps_what_one_a_tile_rounds():
    """Where each channel of V has one magnitude, its own scale makes codes of ±448, which are exact."""
    attention = FPSAttention("dense", tile=(1, 2, 2), block=4, engine="eager")
    generator = torch.Generator().manual_seed(0)
    q, k, v = torch.randn(3, 1, 2, 16, 8, generator=generator)
    magnitude = torch.linspace(1.0, 1.9, 8)
    rounded = Rounded(plan_attention(attention, (1, 4, 4), torch.device("cpu")), [])
    out = rounded.attend(q, k, v.sign() * magnitude)
    assert torch.equal(out, rounded.dense(q, k, v.sign() * magnitude))
    ((channel, tile),) = rounded.errors
    codes = (448 * magnitude / magnitude.max()).to(torch.float8_e4m3fn).float() * magnitude.max() / 448
    expected = (codes / magnitude - 1).square()
    assert channel < 1e-12 and expected.min() <= tile <= expected.max() and tile > 1e-5


@pytest.mark.parametrize(
    "low, high, threshold, below, answer",
    [
        (0.12, 0.2, 0.1, False, HOLDS),
        (0.05, 0.2, 0.1, False, UNKNOWN),
        (0.01, 0.09, 0.1, False, FAILS),
        (0.1, 0.2, 0.1, False, HOLDS),
        (0.0, 0.02, 0.02, True, HOLDS),
        (0.01, 0.03, 0.02, True, UNKNOWN),
        (0.03, 0.04, 0.02, True, FAILS),
        (None, None, 0.1, False, UNKNOWN),
    ],
)
def test_verdicts_go_by_the_whole_interval(low, high, threshold, below, answer):
    assert decide(Estimate(0.1, low, high, None, 3, 3), threshold, below) == answer


def test_three_seeds_have_students_interval():
    """Of 1, 2, 3: t of two degrees of freedom is 4.3027, the standard error 1 / sqrt(3)."""
    found = over({0: 1.0, 1: 2.0, 2: 3.0})
    assert (found.low, found.high) == pytest.approx((2 - 4.3027 / 3**0.5, 2 + 4.3027 / 3**0.5), rel=1e-4)
    assert over({0: 1.0}).low is None


def test_errors_of_steps_are_those_of_their_part_of_denoising():
    kinds = [SimpleNamespace(kind="joint"), SimpleNamespace(kind="sparse")]
    searched = SimpleNamespace(
        list_candidates=lambda: kinds, progress=lambda: np.array([0.0, 0.2, 0.4, 0.6, 0.8]), steps=[0, 1, 2, 4],
        by_video=[[[1.0, 9.0], [np.e**2, 9.0], [np.e**4, 9.0], [np.e**6, 9.0]]],
    )  # fmt: skip
    assert log_errors(searched, "joint") == pytest.approx(np.array([[1.0, 4.0, 6.0]]))


def planted(high, frechet, **seeds):
    """Rows with these losses at sigma 0.9 and distances, and a loss of 1 at sigma 0.3; three seeds, or a row's own."""
    chance = np.random.default_rng(0)
    of = {
        row: {
            seed: SimpleNamespace(
                grid=[[1.0, loss + 0.001 * chance.normal()]], frechet=SimpleNamespace(distance=frechet[row])
            )
            for seed in seeds.get(row, range(3))
        }
        for row, loss in high.items()
    }
    rows = {row: Row(weights="dense" if row == "joint-free" else None) for row in high}
    plan = SimpleNamespace(rows=rows, study=SimpleNamespace(measures=SimpleNamespace(sigmas=(0.3, 0.9))))
    return {verdict.claim: verdict for verdict in judge(Results(plan, of), None)}


def test_a_report_is_of_all_seeds():
    """Curves beside the dense row's of the same seed, and what is told of videos in the mean."""
    curves = {"dense": {1: [2.0, 1.0], 2: [4.0, 2.0]}, "joint": {0: [9.0, 9.0], 1: [3.0, 1.01], 2: [4.0, 2.04]}}
    of = {
        row: {
            seed: Measured(
                row, seed, "weights", {}, 0.1, ["p"], [[1.0]], Distance(2.0, 0.5, 1), [1], [1.0], "dense",
                {"psnr": Mean(10.0 * seed, None, False, 1, 1)}, {}, {"0": begun, "50": ended},
            )
            for seed, (begun, ended) in seeds.items()
        }
        for row, seeds in curves.items()
    }  # fmt: skip
    plan = SimpleNamespace(
        rows={row: Row() for row in curves}, study=SimpleNamespace(measures=SimpleNamespace(sigmas=(0.9,)))
    )
    results = Results(plan, of, {"joint": {0: ([1.0], [1.0, 3.0], []), 1: ([2.0], [4.0, 4.0], [])}})
    lines = tables.tell_curves(results).splitlines()
    assert lines[-1] == "| joint | +25.00% | +1.50% | 50 |"
    head, *_, line = tables.tell_rows(results, Real(1, 1, [], {}, ["p"], {})).splitlines()
    assert line.endswith("| 1.50 / 3.00 / - | 10.000 to dense |  |") and line.count("|") == head.count("|")


BROKEN = "Without training, joint breaks: validation loss at sigma >= 0.7"
BACK = "Training gives it back: validation loss at sigma >= 0.7"
AS_GOOD = "Trained as long, joint is as good as dense"


def test_verdicts_of_planted_rows():
    distances = {"dense": 1.0, "joint-free": 1.0, "joint": 1.0}
    verdicts = planted({"dense": 1.0, "joint-free": 1.3, "joint": 1.03}, distances)
    assert [verdicts[x].answer for x in (BROKEN, BACK, AS_GOOD)] == [HOLDS, HOLDS, HOLDS]
    assert verdicts[BACK].numbers.startswith(("+89.", "+90.")) and "seeds [0, 1, 2]" in verdicts[BACK].numbers
    assert verdicts["Training gives it back: Fréchet distance"].answer == UNKNOWN  # no gap, of which no share is told
    assert verdicts["Strength by step beats uniform"].answer == ABSENT
    worse = planted({"dense": 1.0, "joint-free": 1.3, "joint": 1.15}, distances)
    assert [worse[x].answer for x in (BROKEN, BACK, AS_GOOD)] == [HOLDS, FAILS, FAILS]
    alike = planted({"dense": 1.0, "joint-free": 1.03, "joint": 1.0}, distances)
    assert alike[BROKEN].answer == FAILS and alike[BACK].answer == HOLDS
    apart = planted({"dense": 1.0, "joint-free": 1.3, "joint": 1.0}, distances, joint=[7])
    assert (apart[BACK].answer, apart[BACK].numbers) == (UNKNOWN, "no seed has all of these rows")
    one = dict.fromkeys(distances, [0])
    alone = planted({"dense": 1.0, "joint-free": 1.3, "joint": 1.0}, distances, **one)
    assert {alone[x].answer for x in (BROKEN, BACK, AS_GOOD)} == {UNKNOWN}


@pytest.mark.parametrize("content", ["{}", "[]", "{", "7"])
def test_damaged_losses_are_named_with_what_to_do(tmp_path, content):
    (tmp_path / "losses.json").write_text(content)
    with pytest.raises(ValueError, match="losses.json.*delete it, and the same command makes it again") as refused:
        measure_losses(None, None, tmp_path / "losses.json")
    assert "\n" not in str(refused.value)
