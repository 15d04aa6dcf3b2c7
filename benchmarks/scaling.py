"""Throughput and gradient variance against ranks and particles.

    python -m benchmarks.scaling                        # a table on the terminal
    python -m benchmarks.scaling --csv s.csv --png s.png
    python -m benchmarks.scaling --device cuda          # one GPU beside one CPU core

Each rank is a process with one thread, of one gloo group; ``--device cuda`` compares one process on
a GPU with one on the CPU instead. Systems: *chaotic RNN*, the gradient with respect to beta = 2.5
over 100 steps; *PILCO*, a policy step of the agent (25 steps through Gaussian processes of 125
points, policy of 50 basis functions), both by TP over the particles of all ranks. Shown are medians
of the time of a gradient with quartiles, particles (of all ranks) a second, and the trace of the
gradient's covariance over repetitions, with a bootstrap interval of 95 % (for PILCO, over the
policy's parameters). With N ranks the variance is to be that of N times the particles.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from lightning_proppo import PropagationManager
from lightning_proppo.callbacks.noise import NoiseStream
from proppo_agents import PILCO, GPDynamics
from proppo_agents.figures.experiment import Row, write_table
from proppo_agents.figures.style import BLUE, VERMILLION, new_figure, save
from proppo_agents.figures.turns import Gradient
from proppo_envs import ChaoticRNN

SYSTEMS = ("chaotic RNN", "PILCO")
BETA, HORIZON, POINTS = 2.5, 100, 125
FIELDS = ["system", "device", "ranks", "particles", "milliseconds", "low", "high"]
FIELDS += ["particles_per_second", "variance", "variance_low", "variance_high"]
COLOURS = {"chaotic RNN": BLUE, "PILCO": VERMILLION}
MARKERS = {1: "o", 2: "s", 4: "^", 8: "D"}


def chaotic_gradient(particles: int, device: torch.device) -> Gradient:
    """Return a function that computes one gradient [1] from this rank's particles."""
    system, manager = ChaoticRNN(), PropagationManager("TP")
    beta = torch.tensor([BETA], device=device, requires_grad=True)

    def gradient() -> Tensor:
        x = system.initial_state(particles, device=device)
        for _ in range(HORIZON):
            x = manager.sample(system.transition(x, beta))
        return torch.autograd.grad(manager.loss(system.cost(x)), beta)[0]

    return gradient


def pilco_gradient(particles: int, device: torch.device) -> Gradient:
    """Return a function that computes one gradient [n] with respect to the policy's parameters."""
    torch.manual_seed(0)  # the same episodes, model and policy on all ranks
    agent = PILCO(dynamics=GPDynamics(steps=30), spread=(1.0, 2.0, 3.0, 5.0), particles=particles)
    agent.episodes = [agent.collect(policy=None) for _ in range(POINTS // agent.episode_steps)]
    agent.refit()
    agent.to(device)
    agent.manager = PropagationManager("TP")
    parameters = [p for p in agent.policy.parameters() if p.requires_grad]

    def gradient() -> Tensor:
        loss, _ = agent.predict()
        return nn.utils.parameters_to_vector(torch.autograd.grad(loss, parameters))

    return gradient


MAKERS = {"chaotic RNN": chaotic_gradient, "PILCO": pilco_gradient}


def work(arguments: argparse.Namespace) -> None:
    """Measure on this rank; the first one saves seconds and gradients, by system and particles."""
    torch.set_num_threads(1)
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    device = torch.device(arguments.device)
    if size > 1:
        dist.init_process_group(
            "gloo", init_method=f"file://{arguments.folder}/meet", rank=rank, world_size=size
        )
    found: dict[tuple[str, int], tuple[list[float], Tensor]] = {}
    for system in arguments.systems:
        for particles in arguments.particles:
            gradient = MAKERS[system](particles // size, device)
            torch.manual_seed(arguments.seed)
            stream = NoiseStream()
            stream.begin(device, rank, size)
            stream.enter()
            found[system, particles] = measure(gradient, arguments.repetitions, size, device)
            stream.leave()
    if rank == 0:
        torch.save(found, f"{arguments.folder}/found")
    if size > 1:
        dist.destroy_process_group()


def measure(
    gradient: Gradient, repetitions: int, size: int, device: torch.device
) -> tuple[list[float], Tensor]:
    """Return each repetition's seconds, and gradients [repetitions, n], means over the ranks."""
    seconds, gradients = [], []
    for repetition in range(repetitions + 2):
        if size > 1:
            dist.barrier()
        start = time.perf_counter()
        own = gradient().cpu()  # which waits for a GPU
        if size > 1:
            dist.all_reduce(own)
            own /= size
        if repetition >= 2:  # the first ones warm up
            seconds.append(time.perf_counter() - start)
            gradients.append(own)
    return seconds, torch.stack(gradients)


def launch(arguments: argparse.Namespace, device: str, ranks: int) -> Any:
    """Run ``work`` on so many ranks and return what the first has found."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "benchmarks.scaling", "--folder", folder]
        command += ["--device", device, "--repetitions", str(arguments.repetitions)]
        command += ["--particles", *map(str, arguments.particles), "--systems", *arguments.systems]
        command += ["--seed", str(arguments.seed)]
        environment = {**os.environ, "WORLD_SIZE": str(ranks), "OMP_NUM_THREADS": "1"}
        environment["PL_GLOBAL_SEED"] = str(arguments.seed)
        processes = [
            subprocess.Popen(command, env={**environment, "RANK": str(rank)})
            for rank in range(ranks)
        ]
        for process in processes:
            if process.wait():
                raise SystemExit(f"a rank ended with status {process.returncode}")
        return torch.load(f"{folder}/found", weights_only=True)


def variance(gradients: Tensor, draws: int = 1000) -> tuple[float, float, float]:
    """Return the trace of the covariance of gradients [R, n], and its 95 % bootstrap interval."""
    generator = torch.Generator().manual_seed(0)
    gradients = gradients.double()
    chosen = torch.randint(len(gradients), (draws, len(gradients)), generator=generator)
    # For each draw without its rows: E|g|^2 - |E g|^2.
    squares = gradients.square().sum(1)
    means = torch.stack([gradients[rows].mean(0).square().sum() for rows in chosen])
    unbiased = len(gradients) / (len(gradients) - 1)
    drawn = (squares[chosen].mean(1) - means) * unbiased
    low, high = drawn.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return gradients.var(0).sum().item(), low, high


def rows_of(arguments: argparse.Namespace, device: str, ranks: int) -> list[Row]:
    """Return the table's rows for one number of ranks."""
    rows = []
    for (system, particles), (seconds, gradients) in launch(arguments, device, ranks).items():
        low, middle, high = statistics.quantiles(seconds, n=4)
        row = [system, device, ranks, particles, 1e3 * middle, 1e3 * low, 1e3 * high]
        row += [particles / middle, *variance(gradients)]
        rows.append(dict(zip(FIELDS, row, strict=True)))
    return rows


def draw(rows: Sequence[Row], path: Path) -> None:
    """Draw throughput and variance against the particles of all ranks."""
    figure = new_figure(11.0, 4.5, "Throughput and variance against particles and ranks", "")
    axes = figure.subplots(1, 2)
    lines = dict.fromkeys((row["system"], row["device"], row["ranks"]) for row in rows)
    for number, (system, device, ranks) in enumerate(lines):
        own = [r for r in rows if (r["system"], r["device"], r["ranks"]) == (system, device, ranks)]
        label = f"{system}, {ranks} {'rank' if ranks == 1 else 'ranks'}"
        label += "" if device == "cpu" else f" on {device}"
        style = {
            "label": label,
            "color": COLOURS[system],
            "marker": MARKERS.get(ranks, "v"),
            "linestyle": "-" if device == "cpu" else ":",
        }
        particles = [row["particles"] for row in own]
        axes[0].plot(particles, [row["particles_per_second"] for row in own], **style)
        # Side by side, so that intervals do not hide each other.
        beside = [p * 1.03 ** (number - len(lines) / 2) for p in particles]
        # A bootstrap interval need not hold the estimate.
        errors = [
            [max(row["variance"] - row["variance_low"], 0.0) for row in own],
            [max(row["variance_high"] - row["variance"], 0.0) for row in own],
        ]
        middles = [row["variance"] for row in own]
        axes[1].errorbar(beside, middles, yerr=errors, capsize=2, **style)
    for ax, label in zip(axes, ("particles a second", "variance of the gradient"), strict=True):
        ax.set_xscale("log")
        ax.set_yscale("log")
        ax.set_xlabel("particles, of all ranks")
        ax.set_ylabel(label)
        ax.grid(alpha=0.3, which="both")
    axes[1].legend(fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    save(figure, path)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--particles", type=int, nargs="+", default=[200, 1000, 5000])
    parser.add_argument("--systems", nargs="+", choices=SYSTEMS, default=list(SYSTEMS))
    parser.add_argument("--repetitions", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--csv", type=Path)
    parser.add_argument("--png", type=Path)
    parser.add_argument("--folder", help=argparse.SUPPRESS)  # in the processes that it starts
    arguments = parser.parse_args()
    if arguments.folder is not None:
        work(arguments)
        return
    if arguments.repetitions < 2:
        parser.error("--repetitions must be at least 2, for a variance.")
    for particles in arguments.particles:
        for ranks in arguments.ranks:
            if particles % ranks or particles < 2 * ranks:
                parser.error(
                    f"--particles must be multiples of --ranks, and at least 2 on each; got "
                    f"{particles} on {ranks} ranks."
                )
    settings = [("cpu", ranks) for ranks in arguments.ranks]
    if arguments.device != "cpu":
        settings = [("cpu", 1), (arguments.device, 1)]
    sys.stdout.write(
        f"{'system':<12} {'device':<6} {'ranks':>5} {'particles':>9} {'ms':>9} "
        f"{'quartiles':>19} {'particles/s':>11} {'variance':>10} {'95 % interval':>21}\n"
    )
    rows: list[Row] = []
    for device, ranks in settings:
        for row in rows_of(arguments, device, ranks):
            rows.append(row)
            sys.stdout.write(
                f"{row['system']:<12} {device:<6} {ranks:5d} {row['particles']:9d} "
                f"{row['milliseconds']:9.1f} {row['low']:8.1f} ..{row['high']:8.1f} "
                f"{row['particles_per_second']:11.0f} {row['variance']:10.3g} "
                f"{row['variance_low']:9.2g} ..{row['variance_high']:9.2g}\n"
            )
        sys.stdout.flush()
    if arguments.csv is not None:
        write_table(arguments.csv, FIELDS, rows)
    if arguments.png is not None:
        draw(rows, arguments.png)


if __name__ == "__main__":
    main()
