"""Gain of ``torch.compile`` on the model inside a rollout.

    python -m benchmarks.compiled                        # a table on the terminal
    python -m benchmarks.compiled --csv c.csv --png c.png
    python -m benchmarks.compiled --device cuda

A cart with a pole (the equations of ``proppo_envs.cartpole_physics``, in torch, integrated by one
Runge-Kutta step of fourth order: about 150 small operations on vectors) is driven by a linear
policy, with normal noise at each of 20 steps; its gradient with respect to the policy's weights is
taken with the step as it is and with the step compiled, in turns. Medians with quartiles; the gain
is the median of the turns' ratios.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torch.distributions import Normal
from tqdm import tqdm

from lightning_proppo import PropagationManager, expand
from proppo_agents.figures.experiment import Row, write_table
from proppo_agents.figures.style import line_style, new_figure, save
from proppo_agents.figures.turns import Gradient, quartiles, ratio, times

HORIZON, NOISE, STEP = 20, 1e-2, 0.1
GRAVITY, FRICTION, MASS, LENGTH = 9.82, 0.1, 0.5, 0.5
ESTIMATORS = ("RP", "LR", "TPX", "TP")
EAGER, COMPILED = "as it is", "compiled"
FIELDS = ["particles", "estimator", "step", "milliseconds", "low", "high", "gain"]
Step = Callable[[Tensor, Tensor], Tensor]


def derivative(x: Tensor, force: Tensor) -> Tensor:
    """Return the time derivative [P, 4] of position, velocity, angle and angular velocity."""
    _, velocity, angle, turning = x.unbind(1)
    sin, cos = angle.sin(), angle.cos()
    acceleration = (
        force
        - FRICTION * velocity
        + 0.75 * MASS * GRAVITY * sin * cos
        - 0.5 * MASS * LENGTH * turning.square() * sin
    ) / (2 * MASS - 0.75 * MASS * cos.square())
    return torch.stack(
        [velocity, acceleration, turning, 1.5 / LENGTH * (acceleration * cos + GRAVITY * sin)], 1
    )


def step(x: Tensor, weights: Tensor) -> Tensor:
    """Return the mean [P, 4] of the next state under a linear policy with weights [P, 4]."""
    force = 10 * torch.tanh((weights * x).sum(1))
    k1 = derivative(x, force)
    k2 = derivative(x + 0.5 * STEP * k1, force)
    k3 = derivative(x + 0.5 * STEP * k2, force)
    k4 = derivative(x + STEP * k3, force)
    return x + STEP / 6 * (k1 + 2 * k2 + 2 * k3 + k4)


def gradient(step: Step, estimator: str, particles: int, device: torch.device) -> Tensor:
    """Return the gradient [4] of the mean cost."""
    torch.manual_seed(0)
    parameter = torch.full((4,), 0.1, device=device, requires_grad=True)
    weights = expand(parameter, particles)
    manager = PropagationManager(estimator)
    # Weights at an expanded tensor need nothing of what happens inside a compiled function.
    options = {"ivw_target": weights} if estimator == "TP" else {}
    x = torch.zeros(particles, 4, device=device)
    for _ in range(HORIZON):
        x = manager.sample(Normal(step(x, weights), NOISE), **options)
        manager.append_loss(x.square().mean(1) / HORIZON)
    return torch.autograd.grad(manager.loss(), [parameter])[0]


def table(arguments: argparse.Namespace) -> list[Row]:
    """Return a row for each size, estimator and kind of step."""
    # A function whose backward pass was first compiled for a graph that is not kept (plain RP here)
    # gives buffers away, and cannot be pulled from twice.
    torch._functorch.config.donated_buffer = False  # type: ignore[attr-defined]
    device = torch.device(arguments.device)
    steps: dict[str, Step] = {EAGER: step, COMPILED: torch.compile(step)}
    rows: list[Row] = []
    for particles in arguments.particles:
        for estimator in ESTIMATORS:
            gradients: dict[str, Gradient] = {
                name: partial(gradient, own, estimator, particles, device)
                for name, own in steps.items()
            }
            # Compiles.
            torch.testing.assert_close(gradients[COMPILED](), gradients[EAGER](), rtol=1e-3, atol=0)
            label = f"{particles}, {estimator}"
            with tqdm(total=arguments.repetitions, desc=label, leave=False, disable=None) as bar:
                found = times(gradients, arguments.repetitions, device, bar)
            for name, seconds in found.items():
                row: Row = {"particles": particles, "estimator": estimator, "step": name}
                row |= quartiles(seconds) | {"gain": ratio(found[EAGER], seconds)}
                rows.append(row)
                sys.stdout.write(
                    f"{particles:>9} {estimator:<9} {name:<9} {row['milliseconds']:8.1f} "
                    f"{row['low']:8.1f} ..{row['high']:8.1f} {row['gain']:6.2f}\n"
                )
                sys.stdout.flush()
    return rows


def draw(rows: list[Row], path: Path) -> None:
    """Draw the gain against particles."""
    figure = new_figure(5.0, 3.2, "Gain of torch.compile on the model", "")
    ax = figure.add_subplot()
    for estimator in ESTIMATORS:
        own = [row for row in rows if row["estimator"] == estimator and row["step"] == COMPILED]
        particles = [row["particles"] for row in own]
        ax.plot(particles, [row["gain"] for row in own], **line_style(estimator))
    ax.axhline(1, color="0.6", linewidth=1)
    ax.set_xscale("log")
    ax.set_ylim(bottom=0)
    ax.set_xlabel("particles")
    ax.set_ylabel("time as it is / time compiled")
    ax.legend(fontsize=8)
    save(figure, path)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--particles", type=int, nargs="+", default=[100, 1000, 10000])
    parser.add_argument("--repetitions", type=int, default=20)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--csv", type=Path)
    parser.add_argument("--png", type=Path)
    arguments = parser.parse_args()
    if arguments.repetitions < 2:
        parser.error("--repetitions must be at least 2, for quartiles.")
    torch.set_num_threads(arguments.threads)
    sys.stdout.write(
        f"{'particles':>9} {'estimator':<9} {'step':<9} {'ms':>8} {'quartiles':>19} {'gain':>6}\n"
    )
    rows = table(arguments)
    if arguments.csv is not None:
        write_table(arguments.csv, FIELDS, rows)
    if arguments.png is not None:
        draw(rows, arguments.png)


if __name__ == "__main__":
    main()
