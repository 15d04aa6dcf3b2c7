"""Cost of total propagation's weights at the parameters of a large policy, in time and memory.

    python -m benchmarks.policy_weights                        # a table on the terminal
    python -m benchmarks.policy_weights --csv p.csv --png p.png
    python -m benchmarks.policy_weights --hidden 64 64 --particles 1000

A policy (a multilayer perceptron with tanh, by default 5-350-350-350-1: 248,151 parameters) acts on
the last of five coordinates, each of which drives the one before it, with normal noise at every
step. One gradient of the mean cost over the horizon is taken, forward and backward, by RP and by TP
with its variances compared at a scalar (a factor of the action, expanded over the particles: the
paper's form), at all parameters (the default), and at the samples (``"node"``).

Times are medians with quartiles of turns; their ratios, to RP and to TP at the scalar, are medians
of the turns' ratios. Memory is measured in a process for each estimator: the most that tensors took
at once during one gradient, above what they took before it (``torch.profiler``), and the growth of
the process's resident memory at its peak, in a first gradient of full size (Linux only).
"""

from __future__ import annotations

import argparse
import itertools
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Normal
from tqdm import tqdm

from benchmarks.process import resident
from lightning_proppo import PropagationManager, expand
from proppo_agents.figures.experiment import Row, write_table
from proppo_agents.figures.style import ORANGE, new_figure, save
from proppo_agents.figures.turns import Gradient, quartiles, ratio, times

SCALAR, PARAMETERS, NODE = "TP, scalar", "TP, parameters", "TP, node"
ESTIMATORS = ("RP", SCALAR, PARAMETERS, NODE)
FIELDS = [
    "estimator",
    "milliseconds",
    "low",
    "high",
    "time_to_rp",
    "time_to_scalar",
    "tensor_mib",
    "memory_to_rp",
    "resident_mib",
    "resident_to_rp",
]
STATE, NOISE, STEP = 5, 0.05, 0.1
MIB = 2**20


class Rollout:
    """A policy, and a differentiable system that costs next to nothing beside it."""

    def __init__(self, hidden: Sequence[int], particles: int, horizon: int) -> None:
        torch.manual_seed(0)
        self.particles, self.horizon = particles, horizon
        sizes = [STATE, *hidden]
        layers: list[nn.Module] = []
        for size, following in itertools.pairwise(sizes):
            layers += [nn.Linear(size, following), nn.Tanh()]
        self.policy = nn.Sequential(*layers, nn.Linear(sizes[-1], 1))
        self.factor = nn.Parameter(torch.ones(()))

    @property
    def parameters(self) -> list[nn.Parameter]:
        """The policy's, and the factor of its action."""
        return [*self.policy.parameters(), self.factor]

    def loss(self, estimator: str) -> Tensor:
        """Return the manager's loss [], the mean of the costs over the horizon."""
        manager = PropagationManager(estimator[:2])
        factor: Tensor = self.factor
        options: dict[str, Any] = {}
        if estimator == SCALAR:
            factor = expand(self.factor, self.particles).unsqueeze(1)
            options["ivw_target"] = factor
        elif estimator == NODE:
            options["ivw_target"] = "node"
        x = torch.ones(self.particles, STATE)
        for _ in range(self.horizon):
            action = factor * self.policy(x)
            force = torch.cat([x[:, 1:], action], 1)
            x = manager.sample(Normal(x + STEP * (force - torch.sin(x)), NOISE), **options)
            manager.append_loss(x.square().mean(1) / self.horizon)
        return manager.loss()

    def gradient(self, estimator: str) -> Gradient:
        """Return a function that computes one gradient."""

        def gradient() -> Tensor:
            return torch.autograd.grad(self.loss(estimator), self.parameters)[0]

        return gradient


def tensor_peak(gradient: Gradient) -> int:
    """Return the most bytes that tensors took at once in a call, above those before it."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profile:
        gradient()
    events = profile.profiler.kineto_results.events()  # type: ignore[union-attr]
    changes = [(event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]"]
    now = peak = 0
    for _, change in sorted(changes):
        now += change
        peak = max(peak, now)
    return peak


def measure_memory(arguments: argparse.Namespace, estimator: str) -> tuple[int, int]:
    """Return what one gradient takes in this process: tensors' and resident bytes."""
    # Libraries are loaded, and plans made, before counting begins.
    Rollout([8], 4, 2).gradient(estimator)()
    gradient = Rollout(arguments.hidden, arguments.particles, arguments.horizon).gradient(estimator)
    before = resident("VmRSS")
    gradient()
    grown = resident("VmHWM") - before
    return tensor_peak(gradient), grown


def memory(arguments: argparse.Namespace, estimator: str) -> tuple[float, float]:
    """Return the same in MiB, from a process of its own."""
    command = [sys.executable, "-m", "benchmarks.policy_weights", "--memory-of", estimator]
    command += ["--hidden", *map(str, arguments.hidden)]
    for name in ("particles", "horizon", "threads"):
        command += [f"--{name}", str(getattr(arguments, name))]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    tensors, grown = (int(part) / MIB for part in done.stdout.split())
    return tensors, grown


def table(arguments: argparse.Namespace) -> list[Row]:
    """Return a row for each estimator."""
    rollout = Rollout(arguments.hidden, arguments.particles, arguments.horizon)
    gradients = {name: rollout.gradient(name) for name in ESTIMATORS}
    with tqdm(total=arguments.repetitions, desc="gradients", leave=False, disable=None) as bar:
        found = times(gradients, arguments.repetitions, torch.device("cpu"), bar)
    rows: list[Row] = []
    for name, seconds in found.items():
        row: Row = {"estimator": name} | quartiles(seconds)
        for key, other in (("time_to_rp", "RP"), ("time_to_scalar", SCALAR)):
            row[key] = ratio(seconds, found[other])
        row["tensor_mib"], row["resident_mib"] = memory(arguments, name)
        row["memory_to_rp"] = row["tensor_mib"] / (rows or [row])[0]["tensor_mib"]
        if row["resident_mib"] > 0:
            row["resident_to_rp"] = row["resident_mib"] / (rows or [row])[0]["resident_mib"]
        rows.append(row)
    return rows


def write(rows: Sequence[Row]) -> None:
    """Print the table."""
    for row in rows:
        sys.stdout.write(
            f"{row['estimator']:<15} {row['milliseconds']:8.1f} {row['low']:8.1f} .."
            f"{row['high']:8.1f} {row['time_to_rp']:6.2f} {row['time_to_scalar']:9.2f} "
            f"{row['tensor_mib']:11.1f} {row['memory_to_rp']:6.2f} {row['resident_mib']:12.1f} "
            f"{row.get('resident_to_rp', float('nan')):6.2f}\n"
        )


def draw(rows: Sequence[Row], title: str, path: Path) -> None:
    """Draw time and memory side by side."""
    figure = new_figure(9.0, 2.8, title, "")
    axes = figure.subplots(1, 2, sharey=True)
    names = [row["estimator"] for row in rows]
    middles = [row["milliseconds"] for row in rows]
    spread = [
        [row["milliseconds"] - row["low"] for row in rows],
        [row["high"] - row["milliseconds"] for row in rows],
    ]
    axes[0].barh(names, middles, xerr=spread, capsize=3)
    axes[0].set_xlabel("a gradient (ms; median and quartiles)")
    axes[1].barh(names, [row["tensor_mib"] for row in rows], color=ORANGE)
    axes[1].set_xlabel("tensors at their peak (MiB)")
    axes[0].invert_yaxis()
    save(figure, path)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--hidden", type=int, nargs="+", default=[350, 350, 350])
    parser.add_argument("--particles", type=int, default=300)
    parser.add_argument("--horizon", type=int, default=25)
    parser.add_argument("--repetitions", type=int, default=20)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--csv", type=Path)
    parser.add_argument("--png", type=Path)
    parser.add_argument("--memory-of", choices=ESTIMATORS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.repetitions < 2:
        parser.error("--repetitions must be at least 2, for quartiles.")
    torch.set_num_threads(arguments.threads)
    if arguments.memory_of is not None:
        sys.stdout.write("{} {}\n".format(*measure_memory(arguments, arguments.memory_of)))
        return
    size = sum(
        p.numel() for p in Rollout(arguments.hidden, arguments.particles, 1).policy.parameters()
    )
    title = f"{size:,} parameters, {arguments.particles} particles, horizon {arguments.horizon}"
    sys.stdout.write(
        f"{title}\n"
        f"{'estimator':<15} {'ms':>8} {'quartiles':>19} {'to RP':>6} {'to scalar':>9} "
        f"{'tensors MiB':>11} {'to RP':>6} {'resident MiB':>12} {'to RP':>6}\n"
    )
    rows = table(arguments)
    write(rows)
    if arguments.csv is not None:
        write_table(arguments.csv, FIELDS, rows)
    if arguments.png is not None:
        draw(rows, title, arguments.png)


if __name__ == "__main__":
    main()
