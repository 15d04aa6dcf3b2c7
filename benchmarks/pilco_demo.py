"""Time of a whole training, beside the prototype's demo at equal settings.

    python -m benchmarks.pilco_demo --peer PIPPS_DEMO --peer-library PROTOTYPE

``--peer`` is a checkout of pipps_demo, ``--peer-library`` one of the prototype that it needs, where
that is not installed. Both learn a cart-pole swing-up with total propagation, each its own: trials
of as many steps, the first with random actions, and in each trial a fit of exact Gaussian processes
to all data with as many steps of Adam, and policy steps with as many particles, horizon and
centres. Both write their models and metrics. Ours runs as a Lightning training, and also scores 50
random policies to start from, and has an episode with the final policy, which the demo does not;
the demo's evaluation episodes are left out. It is the settings that are equal, not the data: each
acts in its own environment. Ours gives angles to the model by sine and cosine, so that it has one
input more.

The trainings take turns, one thread each. Shown are the processor's time of this process (user and
system), which other programs on the machine disturb less than the time on the clock, and that too.
How the demo is run today, :mod:`benchmarks.pipps_demo` says.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import logging
import os
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import CSVLogger
from tqdm import tqdm

from benchmarks.pipps_demo import PEER, import_stand_ins, peer_settings
from lightning_proppo import PropagationCallback
from proppo_agents import PILCO, GPDynamics, RBFPolicy, SaturatingCost
from proppo_agents.figures.experiment import Row, write_table

PRECISIONS = {"float32": "32-true", "float64": "64-true"}
FIELDS = ["agent", "round", "fit_cpu", "rest_cpu", "total_cpu", "fit_wall", "rest_wall"]
FIELDS += ["total_wall", "load"]


@dataclass
class Clock:
    """Seconds of the processor and on the clock, of fits and of all."""

    cpu: dict[str, float] = field(default_factory=dict)
    wall: dict[str, float] = field(default_factory=dict)

    @contextlib.contextmanager
    def measure(self, stage: str) -> Iterator[None]:
        """Add what is done inside to a stage."""
        cpu, wall = time.process_time(), time.perf_counter()
        try:
            yield
        finally:
            self.cpu[stage] = self.cpu.get(stage, 0.0) + time.process_time() - cpu
            self.wall[stage] = self.wall.get(stage, 0.0) + time.perf_counter() - wall

    def timed(self, stage: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return the function, measured as a stage."""

        def measured(*arguments: Any, **options: Any) -> Any:
            with self.measure(stage):
                return function(*arguments, **options)

        return measured

    def row(self) -> dict[str, float]:
        """Return the times as a line has them."""
        found = {}
        for name, seconds in (("cpu", self.cpu), ("wall", self.wall)):
            found[f"fit_{name}"] = seconds["fit"]
            found[f"rest_{name}"] = seconds["all"] - seconds["fit"]
            found[f"total_{name}"] = seconds["all"]
        return found


def train_ours(arguments: argparse.Namespace, precision: str, folder: Path) -> Clock:
    """Train our agent."""
    clock = Clock()
    pl.seed_everything(arguments.seed, verbose=False)
    agent = PILCO(
        environment_options={},
        dynamics=GPDynamics(steps=arguments.fit_steps),
        policy=RBFPolicy(basis_functions=arguments.centres),
        cost=SaturatingCost(target=[0.0] * 4, width=[0.7, float("inf"), 0.5, float("inf")]),
        spread=(1.0, 2.0, 3.0, 5.0),
        particles=arguments.particles,
        steps=arguments.steps,
    )
    agent.refit = clock.timed("fit", agent.refit)  # type: ignore[method-assign]
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=1,
        precision=PRECISIONS[precision],  # type: ignore[arg-type]
        max_epochs=arguments.trials,
        gradient_clip_val=0.1,
        log_every_n_steps=1,
        callbacks=[PropagationCallback("TP")],
        logger=CSVLogger(folder),
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    with clock.measure("all"):
        trainer.fit(agent)
    return clock


def horizon_of_ours() -> int:
    """Return the steps of an episode of our environment."""
    env = gymnasium.make("proppo_envs:CartPoleSwingUp-v0")
    steps = env.spec.max_episode_steps  # type: ignore[union-attr]
    env.close()
    return int(steps)  # type: ignore[arg-type]


@contextlib.contextmanager
def inside(folder: Path) -> Iterator[None]:
    """Work in a folder; contextlib has such a function from Python 3.11 on."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def train_peer(arguments: argparse.Namespace, folder: Path) -> Clock:
    """Train the demo's agent by the demo's own command (which must be importable)."""
    clock = Clock()
    with inside(folder), contextlib.redirect_stdout(io.StringIO()):
        import_stand_ins()
        train = importlib.import_module("pipps.train")
        agents = importlib.import_module("pipps.agents")
        np.random.seed(arguments.seed)
        torch.manual_seed(arguments.seed)
        own_fit = agents.MBAgent.train_dynamics_model
        agents.MBAgent.train_dynamics_model = clock.timed("fit", own_fit)
        try:
            settings = peer_settings(arguments, horizon_of_ours())
            with clock.measure("all"), contextlib.redirect_stderr(io.StringIO()):
                train.main(settings)
        finally:
            agents.MBAgent.train_dynamics_model = own_fit
    return clock


def write(rows: Sequence[Row]) -> None:
    """Print the medians of the rounds, and ratios to the demo's."""
    agents = list(dict.fromkeys(row["agent"] for row in rows))
    names = FIELDS[2:-1]
    own = {
        agent: {
            name: statistics.median(row[name] for row in rows if row["agent"] == agent)
            for name in names
        }
        for agent in agents
    }
    lines = [
        "| seconds | processor: fits | the rest | total | to the demo | clock: fits | the rest "
        "| total | to the demo |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for agent in agents:
        cells = [agent]
        for kind in ("cpu", "wall"):
            cells += [f"{own[agent][f'{stage}_{kind}']:.1f}" for stage in ("fit", "rest", "total")]
            ratio = own[agent][f"total_{kind}"] / own[PEER][f"total_{kind}"] if PEER in own else 1
            cells.append(f"{ratio:.2f}")
        lines.append(f"| {' | '.join(cells)} |")
    loads = [row["load"] for row in rows]
    lines.append(f"\nProcesses that wanted to run (load): {min(loads):.1f} to {max(loads):.1f}")
    lines[-1] += f" on {os.cpu_count()} processors."
    sys.stdout.write("\n".join(lines) + "\n")


def main() -> None:
    """Time the trainings, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--peer", type=Path, required=True, help="a checkout of pipps_demo")
    parser.add_argument("--peer-library", type=Path, help="a checkout of the prototype")
    parser.add_argument("--trials", type=int, default=8)
    parser.add_argument("--steps", type=int, default=30, help="policy steps in a trial")
    parser.add_argument("--fit-steps", type=int, default=100, help="Adam's steps in a fit")
    parser.add_argument("--particles", type=int, default=300)
    parser.add_argument("--centres", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--csv", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    for path in (arguments.peer, arguments.peer_library):
        if path is not None:
            if not path.is_dir():
                parser.error(f"{path} is not a folder; give the checkout.")
            sys.path.insert(0, str(path.resolve()))
    warnings.filterwarnings("ignore")
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    trainings: dict[str, Callable[[Path], Clock]] = {PEER: partial(train_peer, arguments)}
    trainings |= {name: partial(train_ours, arguments, name) for name in PRECISIONS}
    rows = []
    with tqdm(total=arguments.rounds * len(trainings), disable=None) as bar:
        for number in range(arguments.rounds):
            for name, training in trainings.items():
                bar.set_description(name)
                with tempfile.TemporaryDirectory() as folder:
                    clock = training(Path(folder))
                rows.append({"agent": name, "round": number, **clock.row()})
                rows[-1]["load"] = os.getloadavg()[0]
                bar.update()
                if arguments.csv is not None:
                    write_table(arguments.csv, FIELDS, rows)
    write(rows)


if __name__ == "__main__":
    main()
