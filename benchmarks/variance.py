"""Variance and price of gradient estimators on the chaotic recurrent network.

    python -m benchmarks.variance                        # a table on the terminal
    python -m benchmarks.variance --csv v.csv --png v.png
    python -m benchmarks.variance --peer DIR             # beside a checkout of the prototype

Each row is over independent repetitions of the gradient with respect to beta (horizon 100), with a
95 % interval for the variance (bootstrap: the estimates are heavy-tailed) and the median time of
one gradient, forward and backward. Estimators take turns, so that a busy machine is so for all.
Two rows are computed without this package: "LR, by hand", from 200,000 single particles, and
"finite differences", the gradient that all the others should have on average.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch.distributions import Normal
from tqdm import tqdm

from lightning_proppo import expand
from proppo_agents.figures.experiment import Row, write_table
from proppo_agents.figures.repetitions import measure
from proppo_agents.figures.style import save
from proppo_agents.figures.variance import ESTIMATORS, FIELDS, PAPERS, Settings, draw, our_gradient
from proppo_envs import ChaoticRNN


def peer_gradient(name: str, beta: float, particles: int) -> Callable[[], float]:
    """Return a function that computes one gradient with the prototype (which must be imported)."""
    from proppo.propagation_manager import PropagationManager as PeerManager
    from proppo.propagators import LRProp, RPProp, TotalProp

    system = ChaoticRNN()
    parameter = torch.tensor([beta], requires_grad=True)
    expanded = expand(parameter, particles)
    manager = PeerManager({"RP": RPProp, "LR": LRProp, "TP": TotalProp}[name]())

    def gradient() -> float:
        parameter.grad = None
        x = system.initial_state(particles)
        for _ in range(system.horizon):
            mean = system.mean(x, expanded)
            x = manager.forward(
                mean,
                dist_class=Normal,
                dist_params={"loc": torch.zeros_like(mean), "scale": system.noise_std},
                ivw_target=expanded,
            )
        manager.backward(system.cost(x).unsqueeze(1))
        assert parameter.grad is not None
        return parameter.grad.item()

    return gradient


def variance_by_hand(beta: float, particles: int, samples: int = 200_000) -> tuple[float, float]:
    """Return the mean and the variance of LR's gradient, from its definition (Eq. 4)."""
    system = ChaoticRNN()
    weight = torch.tensor(system.weight, dtype=torch.float64)
    x = system.initial_state(samples, torch.float64)
    score = torch.zeros(samples, dtype=torch.float64)
    for _ in range(system.horizon):
        activation = x @ weight
        mean = torch.sigmoid(beta * activation)
        noise = torch.randn_like(mean) * system.noise_std
        slope = mean * (1 - mean) * activation
        score += (noise / system.noise_std**2 * slope).sum(1)
        x = mean + noise
    losses = system.cost(x)
    gradients = (losses - losses.mean()) * score
    return gradients.mean().item(), gradients.var().item() / particles


def finite_differences(beta: float, particles: int = 2_000_000) -> tuple[float, float]:
    """Return the gradient and its standard error, by Richardson's extrapolation from two steps.

    Near a bifurcation (beta 1.5), where the cost bends within a step, the extrapolation is off by
    more than its standard error says.
    """
    system = ChaoticRNN()

    def mean_cost(b: float) -> tuple[float, float]:
        total, squares, chunk = 0.0, 0.0, 200_000
        for _ in range(particles // chunk):
            x = system.initial_state(chunk)
            for _ in range(system.horizon):
                x = system.transition(x, x.new_tensor(b)).sample()
            costs = system.cost(x).double()
            total, squares = total + costs.sum().item(), squares + costs.square().sum().item()
        mean = total / particles
        return mean, (squares / particles - mean**2) / particles

    differences = []
    for step in (0.01, 0.02):
        (high, high_variance), (low, low_variance) = mean_cost(beta + step), mean_cost(beta - step)
        error = (high_variance + low_variance) ** 0.5 / (2 * step)
        differences.append(((high - low) / (2 * step), error))
    (fine, fine_error), (coarse, coarse_error) = differences
    error = (16 * fine_error**2 + coarse_error**2) ** 0.5 / 3
    return (4 * fine - coarse) / 3, error


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--betas", type=float, nargs="+", default=[2.0, 2.5, 3.5])
    parser.add_argument(
        "--estimators",
        nargs="+",
        choices=list(ESTIMATORS),
        metavar="NAME",
        default=list(ESTIMATORS),
        help=", ".join(ESTIMATORS),
    )
    parser.add_argument("--repetitions", type=int, default=300)
    parser.add_argument("--particles", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--csv", type=Path)
    parser.add_argument("--png", type=Path)
    parser.add_argument("--peer", type=Path, help="a checkout of the prototype")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(arguments.seed)
    if arguments.peer is not None:
        sys.path.insert(0, str(arguments.peer))
    rows: list[Row] = []
    sys.stdout.write(
        f"{'beta':>5} {'estimator':<18} {'mean':>10} {'s.e.':>9} {'variance':>10}  "
        f"{'95 % interval':<19} {'ms':>7} {'var x s':>9}\n"
    )

    def report(row: Row) -> None:
        rows.append(row)
        sys.stdout.write(
            f"{row['beta']:5.2f} {row['estimator']:<18} {row['mean']:10.3g} "
            f"{row['standard_error']:9.2g} {row['variance']:10.3g}  {row['low']:8.2g} .."
            f"{row['high']:8.2g} {row['milliseconds']:7.1f} {row['variance_times_seconds']:9.2g}\n"
        )
        sys.stdout.flush()

    for beta in arguments.betas:
        nan = float("nan")
        mean, error = finite_differences(beta)
        true = [beta, "finite differences", mean, error, nan, nan, nan, nan, nan]
        report(dict(zip(FIELDS, true, strict=True)))
        mean, variance = variance_by_hand(beta, arguments.particles)
        by_hand = [beta, "LR, by hand", mean, nan, variance, variance, variance, nan, nan]
        report(dict(zip(FIELDS, by_hand, strict=True)))
        gradients = {
            name: our_gradient(name, beta, arguments.particles) for name in arguments.estimators
        }
        if arguments.peer is not None:
            for name in PAPERS:
                gradients[f"prototype {name}"] = peer_gradient(name, beta, arguments.particles)
        with tqdm(
            total=arguments.repetitions, desc=f"beta {beta}", leave=False, disable=None
        ) as bar:
            found = measure(gradients, arguments.repetitions, bar)
        for name, measured in found.items():
            report({"beta": beta, "estimator": name, **measured})
    if arguments.csv is not None:
        write_table(arguments.csv, FIELDS, rows)
    if arguments.png is not None:
        note = Settings(repetitions=arguments.repetitions, particles=arguments.particles)
        save(draw(rows, str(note)), arguments.png)


if __name__ == "__main__":
    main()
