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
from lightning_proppo.propagators import BIWProp, LRProp, Propagator, RPProp, TotalProp, TPXProp
from proppo_envs import ChaoticRNN

ESTIMATORS: dict[str, Callable[[], str | Propagator]] = {
    "RP": lambda: "RP",
    "LR": lambda: "LR",
    "TP": lambda: "TP",
    "TPX": lambda: "TPX",
    "TP, covariance": lambda: TotalProp(weighting="covariance"),
    "TP, cross-fitted": lambda: TotalProp(weighting="cross-fitted"),
    "BIW": lambda: "BIW",
    "BIW, groups": lambda: BIWProp(group_size=20),
    "LR+mesh": lambda: BIWProp(share="mesh", group_size=20),
    "TP+BIW, groups": lambda: TotalProp(share="likelihoods", group_size=20),
    "TP+mesh": lambda: "TP+MESH",
    "TPX+mesh": lambda: TPXProp(share="mesh", group_size=20),
    "RP, quasi": lambda: RPProp(detach=False, noise="quasi-random"),
    "LR, quasi": lambda: LRProp(noise="quasi-random"),
    "TP, quasi": lambda: TotalProp(noise="quasi-random"),
    "TP+mesh, quasi": lambda: TotalProp(share="mesh", group_size=20, noise="quasi-random"),
    "GR": lambda: "GR",
    "GS": lambda: "GS",
    "TP+GS": lambda: "TP+GS",
}
PEERS = ("RP", "LR", "TP")
FIELDS = [
    "beta",
    "estimator",
    "mean",
    "standard_error",
    "variance",
    "low",
    "high",
    "milliseconds",
    "variance_times_seconds",
]


def our_gradient(name: str, beta: float, particles: int) -> Callable[[], float]:
    """Return a function that computes one gradient with our manager."""
    system = ChaoticRNN()
    parameter = torch.tensor([beta], requires_grad=True)
    manager = PropagationManager(ESTIMATORS[name]())

    def gradient() -> float:
        x = system.initial_state(particles)
        for _ in range(system.horizon):
            x = manager.sample(system.transition(x, parameter))
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


def bootstrap_interval(values: Tensor, draws: int = 2000) -> tuple[float, float]:
    """Return a 95 % interval for the variance of ``values`` [N]."""
    generator = torch.Generator().manual_seed(0)
    index = torch.randint(len(values), (draws, len(values)), generator=generator)
    variances = values[index].var(dim=1)
    low, high = torch.quantile(variances, torch.tensor([0.025, 0.975], dtype=values.dtype))
    return low.item(), high.item()


def summary(values: list[float], times: list[float]) -> dict[str, float]:
    """Summarize gradients and the seconds that they took."""
    gradients = torch.tensor(values, dtype=torch.float64)
    low, high = bootstrap_interval(gradients)
    variance, seconds = gradients.var().item(), statistics.median(times)
    return {
        "mean": gradients.mean().item(),
        "standard_error": gradients.std().item() / len(values) ** 0.5,
        "variance": variance,
        "low": low,
        "high": high,
        "milliseconds": 1e3 * seconds,
        "variance_times_seconds": variance * seconds,
    }


def measure(
    gradients: dict[str, Callable[[], float]], repetitions: int, label: str
) -> dict[str, dict[str, float]]:
    """Repeat several estimators' gradients in turn and summarize each."""
    values: dict[str, list[float]] = {name: [] for name in gradients}
    times: dict[str, list[float]] = {name: [] for name in gradients}
    for gradient in gradients.values():  # warm up
        gradient()
    for _ in tqdm(range(repetitions), desc=label, leave=False, disable=None):
        for name, gradient in gradients.items():
            start = time.perf_counter()
            values[name].append(gradient())
            times[name].append(time.perf_counter() - start)
    return {name: summary(values[name], times[name]) for name in gradients}


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Draw variance, and variance times time, against beta, on a log scale."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(11, 5), sharex=True, layout="constrained")
    rows = [row for row in rows if row["milliseconds"] == row["milliseconds"]]
    names = list(dict.fromkeys(row["estimator"] for row in rows))
    colors = plt.get_cmap("tab20")
    for number, name in enumerate(names):
        own = [row for row in rows if row["estimator"] == name]
        peer = name.startswith("prototype")
        style = {
            "color": colors(number % 20),
            "label": name,
            "marker": "s" if peer else "o",
            "linestyle": "--" if peer else "-",
            "markersize": 4,
        }
        betas = [row["beta"] for row in own]
        axes[0].plot(betas, [row["variance"] for row in own], **style)
        axes[1].plot(betas, [row["variance_times_seconds"] for row in own], **style)
    shown = [row["variance"] for row in rows if row["variance"] < 1e3]
    for ax, title in zip(axes, ("variance", "variance x seconds a gradient"), strict=True):
        ax.set_yscale("log")
        ax.set_xlabel("beta")
        ax.set_title(title)
        ax.grid(alpha=0.3)
    axes[0].set_ylim(min(shown) / 3, 1e3)
    axes[1].set_ylim(top=1e2)
    axes[1].legend(fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5))
    figure.suptitle("Gradient of the chaotic recurrent network, in beta (what is above is cut off)")
    figure.savefig(path, dpi=130)
    plt.close(figure)


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
    rows: list[dict[str, Any]] = []
    sys.stdout.write(
        f"{'beta':>5} {'estimator':<18} {'mean':>10} {'s.e.':>9} {'variance':>10}  "
        f"{'95 % interval':<19} {'ms':>7} {'var x s':>9}\n"
    )

    def report(row: dict[str, Any]) -> None:
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
            for name in PEERS:
                gradients[f"prototype {name}"] = peer_gradient(name, beta, arguments.particles)
        found = measure(gradients, arguments.repetitions, f"beta {beta}")
        for name, measured in found.items():
            report({"beta": beta, "estimator": name, **measured})
    if arguments.csv is not None:
        with arguments.csv.open("w", newline="") as file:
            writer = csv.DictWriter(file, FIELDS)
            writer.writeheader()
            writer.writerows(rows)
    if arguments.png is not None:
        draw(rows, arguments.png)


if __name__ == "__main__":
    main()
