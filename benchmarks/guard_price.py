"""What total propagation's guard costs where nothing jumps, in variance and in time.

    python -m benchmarks.guard_price
    python -m benchmarks.guard_price --estimators TP --repetitions 300 --betas 2.5

The chaotic recurrent network (1000 particles, 100 steps; the gradient with respect to beta), and a
policy step of the PILCO agent on the cart-pole (300 particles, 25 steps, 125 points; the variance
summed over the policy's parameters). Each gradient is taken with and without the guard from the
same noise, in turns, at the same parameters; the ratio of variances has a 95 % interval (bootstrap
of pairs), that of times is the median of the turns'.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor
from tqdm import tqdm

from benchmarks.rollout import make_agent
from lightning_proppo import PropagationManager
from proppo_agents import PILCO
from proppo_envs import ChaoticRNN

Gradient = Callable[[PropagationManager], Tensor]


def of_network(beta: float, particles: int = 1000) -> Gradient:
    """Return a function that computes the network's gradient, [1]."""
    system = ChaoticRNN()
    parameter = torch.tensor(beta, requires_grad=True)

    def gradient(manager: PropagationManager) -> Tensor:
        x = system.initial_state(particles)
        for _ in range(system.horizon):
            x = manager.sample(system.transition(x, parameter))
        (found,) = torch.autograd.grad(manager.loss(system.cost(x)), [parameter])
        return found.reshape(1)

    return gradient


def of_cart_pole() -> Gradient:
    """Return a function that computes the agent's gradient, [n]."""
    settings = argparse.Namespace(particles=300, horizon=25, centres=50)
    torch.manual_seed(0)
    collector = PILCO()
    episodes = [collector.collect(policy=None) for _ in range(125 // collector.episode_steps)]
    agent = make_agent(settings, episodes, torch.float64)
    parameters = [p for p in agent.policy.parameters() if p.requires_grad]

    def gradient(manager: PropagationManager) -> Tensor:
        agent.manager = manager
        loss, _ = agent.predict()
        return torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters)])

    return gradient


def compare(gradient: Gradient, estimator: str, repetitions: int) -> str:
    """Return a line of the table, less its first column."""
    managers = {guard: PropagationManager(estimator, guard=guard) for guard in (True, False)}
    values: dict[bool, list[Tensor]] = {True: [], False: []}
    seconds: dict[bool, list[float]] = {True: [], False: []}
    for number in tqdm(range(repetitions + 1), leave=False, disable=None):
        for guard, manager in managers.items():
            torch.manual_seed(number)
            start = time.perf_counter()
            found = gradient(manager).double()
            if number:  # the first warms up
                seconds[guard].append(time.perf_counter() - start)
                values[guard].append(found)
    pairs = torch.stack([torch.stack(values[guard]) for guard in (True, False)])
    index = torch.randint(repetitions, (2000, repetitions))
    ratios = torch.stack([_ratio(pairs[:, chosen]) for chosen in index])
    low, high = ratios.quantile(torch.tensor([0.025, 0.975], dtype=ratios.dtype)).tolist()
    times = [a / b for a, b in zip(seconds[True], seconds[False], strict=True)]
    changed = (pairs[0] != pairs[1]).any(1).double().mean().item()
    return (
        f"{_ratio(pairs):8.3f} [{low:.3f}, {high:.3f}] {100 * changed:7.1f} % "
        f"{1e3 * statistics.median(seconds[False]):8.1f} {statistics.median(times):8.3f}"
    )


def _ratio(pairs: Tensor) -> Tensor:
    """Return the ratio of variances, summed over parameters, of pairs [2, R, n]."""
    variances = pairs.var(1).sum(1)
    return variances[0] / variances[1]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--estimators", nargs="+", default=["TP", "TPX"])
    parser.add_argument("--betas", type=float, nargs="*", default=[1.0, 2.0, 2.5, 3.0, 4.0])
    parser.add_argument("--repetitions", type=int, default=100)
    parser.add_argument("--no-cart-pole", action="store_true")
    settings = parser.parse_args()
    torch.set_num_threads(1)
    problems = {f"network, beta {beta:g}": of_network(beta) for beta in settings.betas}
    if not settings.no_cart_pole:
        problems["cart-pole"] = of_cart_pole()
    sys.stdout.write(
        f"{'problem':<20} {'estimator':<10} {'variance, with / without':>24} {'changed':>9} "
        f"{'ms':>8} {'time':>8}\n"
    )
    for name, gradient in problems.items():
        for estimator in settings.estimators:
            line = compare(gradient, estimator, settings.repetitions)
            sys.stdout.write(f"{name:<20} {estimator:<10} {line}\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
