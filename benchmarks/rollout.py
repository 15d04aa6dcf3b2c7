"""Time of a policy step of the PILCO agent, and where it goes.

    python -m benchmarks.rollout                        # a table on the terminal
    python -m benchmarks.rollout --csv r.csv --png r.png
    python -m benchmarks.rollout --peer DIR --peer-library DIR

A step is a rollout through Gaussian processes, its propagation, and Adam's update. All agents take
turns at it; shown are medians with quartiles. How the time is divided is measured in turns of its
own: *dynamics* and *policy* forward and backward, *optimizer*, and the rest, *propagation* (noise,
costs, recording, and what the propagators compute; for TP, the variances over particles).

``--peer`` is a checkout of pipps_demo, which has the same data, particles, horizon, centres and
cost, in float32, its only precision; ``--peer-library`` one of the prototype that it needs, where
that is not installed. The speed-up is the median of the turns' ratios. The demo's own fit needs
GPyTorch 1.3.1; with another, its hyperparameters are set instead, which the time does not depend
on. It is given angles as they are, as it takes them, and so has one input fewer.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from benchmarks.pipps_demo import PEER
from benchmarks.stages import Stages
from lightning_proppo import PropagationManager
from proppo_agents import PILCO, GPDynamics, RBFPolicy
from proppo_agents.experience.episodes import Episode
from proppo_agents.figures import style
from proppo_agents.figures.experiment import Row, write_table
from proppo_agents.figures.style import new_figure, save
from proppo_agents.figures.turns import quartiles, ratio, times

ESTIMATORS = ("RP", "LR", "TP")
DTYPES = {"float32": torch.float32, "float64": torch.float64}
SHARES = ("dynamics", "policy", "propagation", "optimizer")
COLOURS = dict(zip(SHARES, style.COLOURS, strict=False))
FIELDS = [
    "points",
    "estimator",
    "agent",
    "milliseconds",
    "low",
    "high",
    "speed_up",
    *SHARES,
]
# The figures do not depend on how well the model is fitted.
FIT_STEPS = 30
Step = Callable[[], Any]
Timed = Callable[[str, Callable[..., Any]], Callable[..., Any]]


def make_agent(arguments: argparse.Namespace, episodes: list[Episode], dtype: torch.dtype) -> PILCO:
    """Return an agent with a model of the episodes."""
    agent = PILCO(
        dynamics=GPDynamics(steps=FIT_STEPS),
        policy=RBFPolicy(basis_functions=arguments.centres),
        spread=(1.0, 2.0, 3.0, 5.0),
        particles=arguments.particles,
        horizon=arguments.horizon,
    ).to(dtype)
    agent.episodes = episodes
    agent.refit()
    return agent


def our_step(agent: PILCO, estimator: str, timed: Timed = lambda stage, function: function) -> Step:
    """Return a function that takes a policy step, its update ``timed`` as a stage."""
    manager = PropagationManager(estimator)
    (optimizer,), _ = agent.configure_optimizers()

    def update() -> None:
        optimizer.step()
        optimizer.zero_grad()

    update = timed("optimizer", update)

    def step() -> None:
        agent.manager = manager
        loss, _ = agent.predict()
        loss.backward()
        update()

    return step


def peer_steps(arguments: argparse.Namespace, agent: PILCO) -> dict[str, Step]:
    """Return functions that take pipps_demo's policy step (which must be importable)."""
    from pipps.agents import MBAgent
    from pipps.dynamics_models import GPDynamicsModel
    from pipps.policies import RBFPolicy as PeerPolicy
    from proppo.baseline_funcs import mean_baseline
    from proppo.propagation_manager import PropagationManager as PeerManager
    from proppo.propagators import LRProp, RPProp, TotalProp

    episodes = agent.episodes
    inputs = torch.cat([torch.cat([e.observations[:-1], e.actions], 1) for e in episodes]).float()
    outputs = torch.cat([e.observations[1:] - e.observations[:-1] for e in episodes]).float()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Creating a tensor from a list")  # it wants lists
        model = GPDynamicsModel(list(inputs.numpy()), list(outputs.numpy()), lr=0.1)
    size = outputs.shape[1]
    kernel, likelihood = model.model.covar_module, model.likelihood
    kernel.base_kernel.lengthscale = 2 * inputs.std(0).expand(size, 1, -1)
    kernel.outputscale = outputs.var(0)
    likelihood.task_noises = 0.01 * outputs.var(0)
    likelihood.noise = 0.001 * outputs.var(0).mean().reshape(1)
    model.eval()
    likelihood.eval()
    start = agent.initial.mean_value.double().numpy()

    def cost(obs: torch.Tensor, act: torch.Tensor) -> torch.Tensor:
        return agent.env.unwrapped.cost(obs, act)

    # As the demo's own command chooses them.
    propagators = {
        "RP": lambda: RPProp(backprop=False),
        "LR": lambda: LRProp(baseline_func=mean_baseline, backprop=True),
        "TP": lambda: TotalProp(backprop=False),
    }

    def step_of(estimator: str) -> Step:
        policy = PeerPolicy(
            size, 1, arguments.particles, 0.01, arguments.centres, start, activation="sins"
        )
        peer = MBAgent(policy, model, start, cost, float(agent.initial.std_value[0]))
        manager = PeerManager(default_propagator=propagators[estimator]())

        def step() -> None:
            with contextlib.redirect_stderr(io.StringIO()):  # its progress bar
                peer.train_policy(arguments.horizon, 1, manager, reinit_optimizer=False)

        return step

    return {estimator: step_of(estimator) for estimator in arguments.estimators}


def shares(agent: PILCO, estimator: str, repetitions: int) -> dict[str, float]:
    """Return the median share of each stage in a step."""
    stages = Stages()
    step = our_step(agent, estimator, stages.timed)
    dynamics, policy = agent.dynamics.forward, agent.policy.forward
    agent.dynamics.forward = stages.timed("dynamics", dynamics)
    agent.policy.forward = stages.timed("policy", policy)
    step()  # warm up
    found: dict[str, list[float]] = {name: [] for name in SHARES}
    for _ in range(repetitions):
        stages.reset()
        start = time.perf_counter()
        step()
        total = time.perf_counter() - start
        stages.seconds["propagation"] = total - sum(stages.seconds.values())
        for name, own in found.items():
            own.append(stages.seconds[name] / total)
    agent.dynamics.forward, agent.policy.forward = dynamics, policy
    return {name: statistics.median(own) for name, own in found.items()}


def table(arguments: argparse.Namespace, points: int) -> list[Row]:
    """Return the rows for one number of data."""
    torch.manual_seed(0)
    collector = PILCO()
    episodes = [collector.collect(policy=None) for _ in range(points // collector.episode_steps)]
    agents = {name: make_agent(arguments, episodes, DTYPES[name]) for name in arguments.dtypes}
    steps = {
        (estimator, name): our_step(agent, estimator)
        for estimator in arguments.estimators
        for name, agent in agents.items()
    }
    if arguments.peer is not None:
        peers = peer_steps(arguments, make_agent(arguments, episodes, torch.float32))
        steps.update({(estimator, PEER): step for estimator, step in peers.items()})
    steps = {key: steps[key] for key in sorted(steps, key=lambda key: ESTIMATORS.index(key[0]))}
    label = f"{points} points"
    with tqdm(total=arguments.repetitions, desc=label, file=sys.stderr, disable=None) as bar:
        found = times(steps, arguments.repetitions, torch.device("cpu"), bar)
    rows = []
    for (estimator, name), seconds in found.items():
        row: Row = {"points": points, "estimator": estimator, "agent": name} | quartiles(seconds)
        theirs = found.get((estimator, PEER))
        if theirs is not None and name != PEER:
            row["speed_up"] = ratio(theirs, seconds)
        if name in agents:
            row |= shares(agents[name], estimator, arguments.repetitions)
        rows.append(row)
    return rows


def draw(rows: Sequence[Row], title: str, path: Path) -> None:
    """Draw the steps' times, divided into stages."""
    figure = new_figure(8.0, 1.5 + 0.3 * len(rows), title, "")
    ax = figure.add_subplot()
    labels = [f"{row['points']} points, {row['estimator']}, {row['agent']}" for row in rows]
    left = [0.0] * len(rows)
    for stage in (*SHARES, PEER):
        undivided = [float(stage == row["agent"] == PEER) for row in rows]
        width = [
            row["milliseconds"] * row.get(stage, share)
            for row, share in zip(rows, undivided, strict=True)
        ]
        if any(width):
            ax.barh(labels, width, left=left, label=stage, color=COLOURS.get(stage, "0.75"))
        left = [a + b for a, b in zip(left, width, strict=True)]
    spread = [
        [row["milliseconds"] - row["low"] for row in rows],
        [row["high"] - row["milliseconds"] for row in rows],
    ]
    middles = [row["milliseconds"] for row in rows]
    ax.errorbar(middles, labels, xerr=spread, fmt="none", ecolor="black", capsize=2)
    ax.invert_yaxis()
    ax.set_xlabel("a policy step (ms; median and quartiles)")
    ax.legend(fontsize=8)
    save(figure, path)


def write(rows: Sequence[Row]) -> None:
    """Print rows of the table."""
    for row in rows:
        speed_up = f"{row['speed_up']:8.1f}" if "speed_up" in row else f"{'':8}"
        divided = "".join(f" {100 * row[stage]:10.0f}%" for stage in SHARES if stage in row)
        sys.stdout.write(
            f"{row['points']:6d} {row['estimator']:<9} {row['agent']:<10} "
            f"{row['milliseconds']:8.1f} {row['low']:8.1f} ..{row['high']:8.1f} "
            f"{speed_up}{divided}\n"
        )
    sys.stdout.flush()


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--points", type=int, nargs="+", default=[125, 250])
    parser.add_argument("--estimators", nargs="+", choices=ESTIMATORS, default=list(ESTIMATORS))
    parser.add_argument("--dtypes", nargs="+", choices=list(DTYPES), default=list(DTYPES))
    parser.add_argument("--particles", type=int, default=300)
    parser.add_argument("--horizon", type=int, default=25)
    parser.add_argument("--centres", type=int, default=50)
    parser.add_argument("--repetitions", type=int, default=20)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--csv", type=Path)
    parser.add_argument("--png", type=Path)
    parser.add_argument("--peer", type=Path, help="a checkout of pipps_demo")
    parser.add_argument("--peer-library", type=Path, help="a checkout of the prototype")
    arguments = parser.parse_args()
    if any(points < 25 or points % 25 for points in arguments.points):
        parser.error("--points must be multiples of 25, an episode's steps.")
    if arguments.repetitions < 2:
        parser.error("--repetitions must be at least 2, for quartiles.")
    torch.set_num_threads(arguments.threads)
    for path in (arguments.peer, arguments.peer_library):
        if path is not None:
            sys.path.insert(0, str(path))
    sys.stdout.write(
        f"{'points':>6} {'estimator':<9} {'agent':<10} {'ms':>8} {'quartiles':>19} {'speed-up':>8}"
        + "".join(f" {stage:>11}" for stage in SHARES)
        + "\n"
    )
    rows: list[Row] = []
    for points in arguments.points:
        found = table(arguments, points)
        write(found)
        rows += found
    if arguments.csv is not None:
        write_table(arguments.csv, FIELDS, rows)
    if arguments.png is not None:
        title = (
            f"PILCO: horizon {arguments.horizon}, {arguments.particles} particles, "
            f"{arguments.centres} centres, {arguments.threads} thread(s)"
        )
        draw(rows, title, arguments.png)


if __name__ == "__main__":
    main()
