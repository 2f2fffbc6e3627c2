"""How far an attention moves the velocity along dense trajectories: the model run with it, and nothing else."""

import torch

from eval.generate.sampling import build_scheduler
from fps_flex.wan.flow import velocity_error


@torch.inference_mode()
def measure_velocities(wan, attentions, dense, noises, text, steps, shift):
    """Root mean square over all steps and noises of each attention's error, as a share of the dense velocity's norm.

    wan: a model, whose attention is left dense. noises: where trajectories begin, of one sample each.
    """
    squares = {name: [] for name in attentions}
    for noise in noises:
        scheduler, x = build_scheduler("euler", steps, shift), noise
        for timestep in scheduler.timesteps:

            def run(attention):
                wan.attention = attention
                return wan(x, timestep.expand(1).float(), text)  # noqa: B023

            exact = run(dense)
            for name, attention in attentions.items():
                squares[name].append(velocity_error(run(attention), exact).square())
            x = scheduler.step(exact, timestep, x, return_dict=False)[0]
    wan.attention = dense
    return {name: torch.cat(values).mean().sqrt().item() for name, values in squares.items()}
