"""Time of a gradient against batch size and dimension (Proppo paper, Appendix B.3, Figs. 5 and 6).

    python -m benchmarks.timing                          # a table on the terminal
    python -m benchmarks.timing --csv t.csv --png t.png
    python -m benchmarks.timing --peer DIR               # beside a checkout of the prototype
    python -m benchmarks.timing --device cuda

A recurrent network with as many neurons as dimensions, horizon 10, differentiated with respect to
its inverse temperature: forward and backward. Estimators take turns; shown are medians of the time
with quartiles, and the ratio to plain PyTorch (reparameterized, without this package), the median
of the turns' ratios. A batch of 100,000 takes 15 GB and, with the prototype, ten minutes
(``--batches`` and ``--dimensions`` choose the sizes). The smallest is 2: a leave-one-out baseline
needs another particle.
"""

from __future__ import annotations

import argparse
import csv
import math
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
from lightning_proppo.propagators import RPProp

HORIZON, NOISE, BETA = 10, 1e-3, 2.5
PLAIN = "plain PyTorch"
FIELDS = [
    "sweep",
    "batch",
    "dimension",
    "estimator",
    "milliseconds",
    "low",
    "high",
    "ratio",
]
OURS: dict[str, Callable[[], PropagationManager]] = {
    "RP": lambda: PropagationManager("RP"),
    "RP, detached": lambda: PropagationManager(RPProp()),
    "LR": lambda: PropagationManager("LR"),
    "TP": lambda: PropagationManager("TP"),
    "TPX": lambda: PropagationManager("TPX"),
}
Gradient = Callable[[], Tensor]


class Network:
    """Weights of the size at which the sigmoid neither dies nor saturates, and a start."""

    def __init__(self, batch: int, dimension: int, device: torch.device) -> None:
        generator = torch.Generator().manual_seed(0)
        weight = torch.randn(dimension, dimension, generator=generator) / math.sqrt(dimension)
        self.weight = weight.to(device)
        self.start = torch.full((batch, dimension), 0.5, device=device)
        self.beta = torch.tensor([BETA], device=device, requires_grad=True)
        self.std = torch.full((), NOISE, device=device)

    def mean(self, x: Tensor, beta: Tensor) -> Tensor:
        """The next state without its noise, [P, D]."""
        return torch.sigmoid(beta * (x @ self.weight))

    @staticmethod
    def cost(x: Tensor) -> Tensor:
        """One cost for each particle, [P]."""
        return 0.5 * (1 - x).square().mean(1)


def plain_gradient(network: Network) -> Gradient:
    """Return a function that computes one gradient with PyTorch alone."""

    def gradient() -> Tensor:
        x = network.start
        for _ in range(HORIZON):
            x = Normal(network.mean(x, network.beta), network.std).rsample()
        return torch.autograd.grad(network.cost(x).mean(), network.beta)[0]

    return gradient


def our_gradient(network: Network, manager: PropagationManager) -> Gradient:
    """Return a function that computes one gradient with our manager."""

    def gradient() -> Tensor:
        x = network.start
        for _ in range(HORIZON):
            x = manager.sample(Normal(network.mean(x, network.beta), network.std))
        return torch.autograd.grad(manager.loss(network.cost(x)), network.beta)[0]

    return gradient


def peer_gradient(network: Network, name: str) -> Gradient:
    """Return a function that computes one gradient with the prototype (which must be imported)."""
    from proppo.propagation_manager import PropagationManager as PeerManager
    from proppo.propagators import LRProp as PeerLR
    from proppo.propagators import RPProp as PeerRP
    from proppo.propagators import TotalProp as PeerTP

    manager = PeerManager({"RP": PeerRP, "LR": PeerLR, "TP": PeerTP}[name]())
    expanded = expand(network.beta, network.start.shape[0])

    def gradient() -> Tensor:
        network.beta.grad = None
        x = network.start
        for _ in range(HORIZON):
            mean = network.mean(x, expanded)
            x = manager.forward(
                mean,
                dist_class=Normal,
                dist_params={"loc": torch.zeros_like(mean), "scale": network.std},
                ivw_target=expanded,
            )
        manager.backward(network.cost(x).unsqueeze(1))
        assert network.beta.grad is not None
        return network.beta.grad

    return gradient


def times(
    gradients: dict[str, Gradient],
    repetitions: int,
    device: torch.device,
    label: str,
    limit: float = math.inf,
) -> Any:
    """Return each estimator's seconds, one for each turn; at least two, and none after a limit."""
    began = time.perf_counter()
    found: dict[str, list[float]] = {name: [] for name in gradients}
    for gradient in gradients.values():  # warm up
        gradient()
    for turn in tqdm(range(repetitions), desc=label, leave=False, disable=None):
        if turn >= 2 and time.perf_counter() - began > limit:
            break
        for name, gradient in gradients.items():
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            start = time.perf_counter()
            gradient()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            found[name].append(time.perf_counter() - start)
    return found


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Draw the ratios against batch size and against dimension."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(11, 4.5), sharey=True, layout="constrained")
    for ax, sweep in zip(axes, ("batch", "dimension"), strict=True):
        own = [row for row in rows if row["sweep"] == sweep]
        for name in dict.fromkeys(row["estimator"] for row in own):
            line = [row for row in own if row["estimator"] == name]
            style = "--s" if name.startswith("prototype") else "-o"
            values = [row["ratio"] for row in line]
            ax.plot([row[sweep] for row in line], values, style, label=name, markersize=4)
        ax.set_xscale("log")
        ax.set_yscale("log")
        ax.set_xlabel(sweep)
        ax.grid(alpha=0.3, which="both")
    axes[0].set_ylabel("time of a gradient / plain PyTorch's")
    axes[1].legend(fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    figure.savefig(path, dpi=130)
    plt.close(figure)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument(
        "--batches", type=int, nargs="*", default=[2, 10, 100, 1000, 10_000, 100_000]
    )
    parser.add_argument(
        "--dimensions", type=int, nargs="*", default=[2, 10, 50, 200, 500, 1000, 2000]
    )
    parser.add_argument("--repetitions", type=int, default=20)
    parser.add_argument(
        "--seconds", type=float, default=120.0, help="after which no turn at a size is begun"
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    parser.add_argument("--csv", type=Path)
    parser.add_argument("--png", type=Path)
    parser.add_argument("--peer", type=Path, help="a checkout of the prototype")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    if arguments.peer is not None:
        sys.path.insert(0, str(arguments.peer))
    rows: list[dict[str, Any]] = []
    sys.stdout.write(
        f"{'batch':>7} {'dimension':>9} {'estimator':<14} {'ms':>9} {'quartiles':>19} "
        f"{'ratio':>7}\n"
    )
    settings = [("batch", batch, 500) for batch in arguments.batches]
    settings += [("dimension", 1000, dimension) for dimension in arguments.dimensions]
    for sweep, batch, dimension in settings:
        network = Network(batch, dimension, arguments.device)
        gradients = {PLAIN: plain_gradient(network)}
        gradients.update({name: our_gradient(network, make()) for name, make in OURS.items()})
        if arguments.peer is not None:
            for name in ("RP", "LR", "TP"):
                gradients[f"prototype {name}"] = peer_gradient(network, name)
        label = f"batch {batch}, dimension {dimension}"
        found = times(gradients, arguments.repetitions, arguments.device, label, arguments.seconds)
        for name, seconds in found.items():
            low, middle, high = (1e3 * q for q in statistics.quantiles(seconds, n=4))
            ratio = statistics.median(a / b for a, b in zip(seconds, found[PLAIN], strict=True))
            row = [sweep, batch, dimension, name, middle, low, high, ratio]
            rows.append(dict(zip(FIELDS, row, strict=True)))
            sys.stdout.write(
                f"{batch:7d} {dimension:9d} {name:<14} {middle:9.2f} {low:8.2f} ..{high:8.2f} "
                f"{ratio:7.2f}\n"
            )
            sys.stdout.flush()
    if arguments.csv is not None:
        with arguments.csv.open("w", newline="") as file:
            writer = csv.DictWriter(file, FIELDS)
            writer.writeheader()
            writer.writerows(rows)
    if arguments.png is not None:
        draw(rows, arguments.png)


if __name__ == "__main__":
    main()
