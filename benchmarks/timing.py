"""Time of a gradient against batch size and dimension (Proppo paper, Appendix B.3, Figs. 5 and 6).

    python -m benchmarks.timing                          # a table on the terminal
    python -m benchmarks.timing --csv t.csv --png t.png
    python -m benchmarks.timing --peer DIR               # beside a checkout of the prototype
    python -m benchmarks.timing --device cuda

What is measured, :mod:`proppo_agents.figures.timing` says. A batch of 100,000 takes 15 GB and, with
the prototype, ten minutes (``--batches`` and ``--dimensions`` choose the sizes). The smallest is 2:
a leave-one-out baseline needs another particle.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor
from torch.distributions import Normal
from tqdm import tqdm

from lightning_proppo import expand
from proppo_agents.figures.experiment import Row, write_table
from proppo_agents.figures.style import new_figure, save
from proppo_agents.figures.timing import (
    FIELDS,
    HORIZON,
    Network,
    all_gradients,
    draw_ratios,
    summary,
)
from proppo_agents.figures.turns import Gradient, times


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


def draw(rows: list[Row]) -> Figure:
    """Draw the ratios against batch size and against dimension."""
    figure = new_figure(11.0, 4.5, "Time of a gradient, relative to plain PyTorch's", "")
    left, right = figure.subplots(1, 2, sharey=True)
    draw_ratios(left, rows, "batch")
    draw_ratios(right, rows, "dimension")
    right.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


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
    rows: list[Row] = []
    sys.stdout.write(
        f"{'batch':>7} {'dimension':>9} {'estimator':<14} {'ms':>9} {'quartiles':>19} "
        f"{'ratio':>7}\n"
    )
    settings = [("batch", batch, 500) for batch in arguments.batches]
    settings += [("dimension", 1000, dimension) for dimension in arguments.dimensions]
    for sweep, batch, dimension in settings:
        network = Network(batch, dimension, arguments.device)
        gradients = all_gradients(network)
        if arguments.peer is not None:
            for name in ("RP", "LR", "TP"):
                gradients[f"prototype {name}"] = peer_gradient(network, name)
        label = f"batch {batch}, dimension {dimension}"
        with tqdm(total=arguments.repetitions, desc=label, leave=False, disable=None) as bar:
            found = times(
                gradients, arguments.repetitions, arguments.device, bar, arguments.seconds
            )
        for row in summary(sweep, batch, dimension, found):
            rows.append(row)
            sys.stdout.write(
                f"{batch:7d} {dimension:9d} {row['estimator']:<14} {row['milliseconds']:9.2f} "
                f"{row['low']:8.2f} ..{row['high']:8.2f} {row['ratio']:7.2f}\n"
            )
            sys.stdout.flush()
    if arguments.csv is not None:
        write_table(arguments.csv, FIELDS, rows)
    if arguments.png is not None:
        save(draw(rows), arguments.png)


if __name__ == "__main__":
    main()
