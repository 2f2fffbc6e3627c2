import pytest
import torch

from fps_flex import preset
from fps_flex.wan.flow import (
    add_noise,
    euler_sample,
    flow_loss,
    guided_velocity,
    noise_level,
    sampling_levels,
    shift_noise,
    spread_noise_levels,
    unshift_noise,
)


def test_shift_is_the_papers_and_unshift_its_inverse():
    u = torch.linspace(0, 1, 11, dtype=torch.float64)
    torch.testing.assert_close(shift_noise(u, 5.0), 5 * u / (1 + 4 * u))
    torch.testing.assert_close(unshift_noise(shift_noise(u, 5.0), 5.0), u)


def test_training_levels_are_logit_normal():
    sigma = noise_level(torch.randn(200_000, generator=torch.Generator().manual_seed(0)), 5.0)
    logits = unshift_noise(sigma.double(), 5.0).logit()
    assert abs(logits.mean()) < 0.01 and abs(logits.std() - 1) < 0.01


@pytest.mark.parametrize("count", [4, 8])
def test_validation_levels_meet_every_regime(count):
    for name in ("fps", "sta"):
        schedule = preset(name)
        regimes = schedule.regime_index(spread_noise_levels(count, schedule.shift))
        assert set(regimes.tolist()) == set(range(len(schedule.regimes)))


def test_the_path_and_its_velocity():
    x, noise = torch.randn(2, 2, 3, 1, 4, 4)
    sigma = torch.tensor([0.25, 1.0])
    noisy = add_noise(x, noise, sigma)
    torch.testing.assert_close(noisy[0], 0.75 * x[0] + 0.25 * noise[0])
    assert torch.equal(noisy[1], noise[1])
    assert torch.equal(flow_loss(noise - x, x, noise), torch.zeros(2))
    torch.testing.assert_close(flow_loss(noise - x + 2, x, noise), torch.full((2,), 4.0))


def test_euler_follows_the_true_velocity_to_the_video():
    x, noise = torch.randn(2, 2, 3, 1, 4, 4)
    seen = []

    def velocity(y, sigma):
        seen.append(sigma[0].item())
        torch.testing.assert_close(y, add_noise(x, noise, sigma))
        return noise - x

    *_, last = euler_sample(velocity, noise, steps=7, shift=5.0)
    torch.testing.assert_close(last, x)
    assert seen == sampling_levels(7, 5.0)[:-1].tolist() and seen[0] == 1.0


def test_guidance_leads_away_from_no_text_and_1_takes_one_pass():
    text, no_text = torch.randn(2, 1, 3, 4)
    passes = []

    def velocity(states):
        passes.append(states)
        return states.mean() * torch.ones(1, 2, 1, 2, 2, dtype=torch.bfloat16)

    assert torch.equal(guided_velocity(velocity, text, no_text, 1), velocity(text)) and len(passes) == 2
    with_text, without = velocity(text), velocity(no_text)
    got = guided_velocity(velocity, text, no_text, 5.0)
    assert torch.equal(got, without + 5.0 * (with_text - without)) and got.dtype == torch.bfloat16
    assert passes[-2] is text and passes[-1] is no_text
    torch.testing.assert_close(guided_velocity(velocity, text, no_text, 0.0), without)


def test_no_steps_is_an_error():
    with pytest.raises(ValueError, match="steps is 0"):
        list(euler_sample(lambda x, sigma: x, torch.zeros(1, 1, 1, 1, 1), 0, 5.0))


def test_a_sampler_knows_its_levels_without_waiting_for_a_device():
    seen = []
    x = torch.zeros(2, 1, 1, 1, 1, device="meta")
    *_, last = euler_sample(lambda x, sigma: seen.append((sigma.device.type, len(sigma))) or x, x, 3, 5.0)
    assert seen == 3 * [("cpu", 2)] and last.device.type == "meta"
