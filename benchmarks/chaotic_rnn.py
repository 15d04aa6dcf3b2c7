"""Variance of gradient estimators on the chaotic recurrent network.

    python -m benchmarks.chaotic_rnn                    # table on the terminal
    python -m benchmarks.chaotic_rnn --csv variance.csv
    python -m benchmarks.chaotic_rnn --peer DIR         # beside a checkout of the prototype

Each row is over independent repetitions of the gradient with respect to beta (batch 1000, horizon
100), with a 95 % interval for the variance (bootstrap: the estimates are heavy-tailed). The row
"LR, by hand" is computed without this package, from 200,000 single particles.
"""

from __future__ import annotations

import argparse
import csv
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Normal
from tqdm import tqdm

from lightning_proppo import PropagationManager, expand
from proppo_envs import ChaoticRNN

FIELDS = ["beta", "estimator", "mean", "standard_error", "variance", "low", "high", "milliseconds"]


def our_gradient(name: str, beta: float, particles: int) -> Callable[[], float]:
    """Return a function that computes one gradient with our manager."""
    system = ChaoticRNN()
    parameter = torch.tensor([beta], requires_grad=True)
    estimator, _, target = name.partition(" ")
    options: dict[str, Any] = {"ivw_target": target} if target else {}

    def gradient() -> float:
        manager = PropagationManager(estimator)
        x = system.initial_state(particles)
        for _ in range(system.horizon):
            x = manager.sample(system.transition(x, parameter), **options)
        manager.append_loss(x, lossfunc=system.cost)
        return torch.autograd.grad(manager.loss(), parameter)[0].item()

    return gradient


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


def bootstrap_interval(values: Tensor, draws: int = 2000) -> tuple[float, float]:
    """Return a 95 % interval for the variance of ``values`` [N]."""
    generator = torch.Generator().manual_seed(0)
    index = torch.randint(len(values), (draws, len(values)), generator=generator)
    variances = values[index].var(dim=1)
    low, high = torch.quantile(variances, torch.tensor([0.025, 0.975], dtype=values.dtype))
    return low.item(), high.item()


def measure(gradient: Callable[[], float], repetitions: int, label: str) -> dict[str, float | str]:
    """Repeat a gradient and summarize it."""
    values, times = [], []
    for _ in tqdm(range(repetitions), desc=label, leave=False, disable=None):
        start = time.perf_counter()
        values.append(gradient())
        times.append(time.perf_counter() - start)
    gradients = torch.tensor(values, dtype=torch.float64)
    low, high = bootstrap_interval(gradients)
    return {
        "mean": gradients.mean().item(),
        "standard_error": gradients.std().item() / len(values) ** 0.5,
        "variance": gradients.var().item(),
        "low": low,
        "high": high,
        "milliseconds": 1e3 * statistics.median(times),
    }


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--betas", type=float, nargs="+", default=[2.0, 2.5, 3.5])
    parser.add_argument(
        "--estimators", nargs="+", default=["RP", "LR", "TP", "TP node", "GR", "GS", "TP+GS"]
    )
    parser.add_argument("--repetitions", type=int, default=300)
    parser.add_argument("--particles", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--csv", type=Path)
    parser.add_argument("--peer", type=Path, help="a checkout of the prototype")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(arguments.seed)
    if arguments.peer is not None:
        sys.path.insert(0, str(arguments.peer))
    rows: list[dict[str, Any]] = []
    header = f"{'beta':>5} {'estimator':<14} {'mean':>10} {'s.e.':>9} {'variance':>10}"
    sys.stdout.write(f"{header}  {'95 % interval':<19} {'ms':>6}\n")

    def report(row: dict[str, Any]) -> None:
        rows.append(row)
        sys.stdout.write(
            f"{row['beta']:5.2f} {row['estimator']:<14} {row['mean']:10.3g} "
            f"{row['standard_error']:9.2g} {row['variance']:10.3g}  "
            f"{row['low']:8.2g} ..{row['high']:8.2g} {row['milliseconds']:6.1f}\n"
        )
        sys.stdout.flush()

    for beta in arguments.betas:
        mean, variance = variance_by_hand(beta, arguments.particles)
        nan = float("nan")
        by_hand = [beta, "LR, by hand", mean, nan, variance, variance, variance, nan]
        report(dict(zip(FIELDS, by_hand, strict=True)))
        makers = [(name, name, our_gradient) for name in arguments.estimators]
        if arguments.peer is not None:
            makers += [(f"prototype {name}", name, peer_gradient) for name in ("RP", "LR", "TP")]
        for label, name, maker in makers:
            gradient = maker(name, beta, arguments.particles)
            summary = measure(gradient, arguments.repetitions, f"beta {beta} {label}")
            report({"beta": beta, "estimator": label, **summary})
    if arguments.csv is not None:
        with arguments.csv.open("w", newline="") as file:
            writer = csv.DictWriter(file, FIELDS)
            writer.writeheader()
            writer.writerows(rows)


if __name__ == "__main__":
    main()
