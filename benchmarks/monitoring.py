"""What a look of the VarianceMonitor costs, and how right its numbers are.

    python -m benchmarks.monitoring                      # the step that it looks at, and others
    python -m benchmarks.monitoring --accuracy           # its variances, and those of repetitions

A step is a rollout and its gradient. "All" compares RP, LR and TP; "without RP" compares LR and TP,
which TP has computed anyway. Steps take turns; shown are medians of the time, and medians of the
turns' ratios. What the monitor costs a training with ``every_n_steps`` is that part of it.

Accuracy is on the chaotic recurrent network: the variance of independent repetitions' gradients
with a 95 % interval (bootstrap), and what single looks at other repetitions say of it (median and
quartiles).
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.distributions import Normal
from tqdm import tqdm

from lightning_proppo import PropagationManager
from lightning_proppo.comparison import Comparison, Findings
from lightning_proppo.propagators.comparing import comparing_propagators
from proppo_agents.figures.repetitions import bootstrap_interval
from proppo_envs import ChaoticRNN

ESTIMATORS = ("RP", "LR", "TP")
LOOKS: dict[str, Sequence[str] | None] = {
    "no look": None,
    "all": ESTIMATORS,
    "without RP": ("LR", "TP"),
}


class Network:
    """The chaotic recurrent network: 1000 particles, 100 steps, one parameter."""

    def __init__(self, beta: float = 2.0) -> None:
        self.system = ChaoticRNN()
        self.parameters = [torch.tensor([beta], requires_grad=True)]

    def __call__(self, manager: PropagationManager) -> Tensor:
        """Return the loss of a rollout."""
        x = self.system.initial_state(1000)
        for _ in range(self.system.horizon):
            x = manager.sample(self.system.transition(x, self.parameters[0]))
        return manager.loss(self.system.cost(x))


class Policy:
    """A policy of three layers: 300 particles, 25 steps, costs at each."""

    def __init__(self, width: int) -> None:
        layers = [nn.Linear(4, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh()]
        self.net = nn.Sequential(*layers, nn.Linear(width, 4))
        self.parameters = list(self.net.parameters())

    def __call__(self, manager: PropagationManager) -> Tensor:
        """Return the loss of a rollout."""
        x = torch.zeros(300, 4)
        for _ in range(25):
            x = manager.sample(Normal(x + 0.1 * self.net(x), 0.05))
            manager.append_loss((x - 1).square().sum(1))
        return manager.loss()


def step(problem: Network | Policy, used: str, compare: Sequence[str] | None) -> float:
    """Return how many seconds a step takes."""
    manager = PropagationManager(used)
    start = time.perf_counter()
    if compare is not None:
        comparison = Comparison(used, compare)
        manager.default_propagator, manager.loss_propagator = comparing_propagators(
            manager.default_propagator, comparison
        )
    torch.autograd.grad(problem(manager), problem.parameters)
    if compare is not None:
        comparison.findings()
    return time.perf_counter() - start


def look(problem: Network) -> Findings:
    """Return what one rollout says."""
    manager = PropagationManager("TP")
    comparison = Comparison("TP")
    manager.default_propagator, manager.loss_propagator = comparing_propagators(
        manager.default_propagator, comparison
    )
    torch.autograd.grad(problem(manager), problem.parameters)
    findings = comparison.findings()
    assert findings is not None
    return findings


def gradient(problem: Network, estimator: str) -> float:
    """Return one gradient, without a look."""
    manager = PropagationManager(estimator)
    return torch.autograd.grad(problem(manager), problem.parameters)[0].item()


def accuracy(repetitions: int) -> None:
    """Print variances of repetitions beside what looks say."""
    sys.stdout.write(f"{'beta':>4}  {'':<2}  {'repetitions':>28}  {'one look':>28}\n")
    for beta in (2.0, 2.5, 3.5):
        problem = Network(beta)
        turns = tqdm(range(repetitions), leave=False, disable=None)
        gradients = [[gradient(problem, name) for name in ESTIMATORS] for _ in turns]
        found = [look(problem) for _ in tqdm(range(100), leave=False, disable=None)]
        for number, name in enumerate(ESTIMATORS):
            values = torch.tensor([row[number] for row in gradients], dtype=torch.float64)
            low, high = bootstrap_interval(values)
            looks = torch.tensor([f.estimates[name].variance for f in found], dtype=torch.float64)
            q = looks.quantile(torch.tensor([0.25, 0.5, 0.75]).double())
            sys.stdout.write(
                f"{beta:4.1f}  {name:<2}  {values.var():8.2g} [{low:8.2g}, {high:8.2g}]"
                f"  {q[1]:8.2g} [{q[0]:8.2g}, {q[2]:8.2g}]\n"
            )
            sys.stdout.flush()


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--repetitions", type=int, default=40)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--accuracy", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    if arguments.accuracy:
        accuracy(arguments.repetitions)
        return
    problems: dict[str, Callable[[], Network | Policy]] = {
        "chaotic network": Network,
        "policy, 64 wide": lambda: Policy(64),
        "policy, 256 wide": lambda: Policy(256),
    }
    columns = "  ".join(f"{name:>18}" for name in LOOKS)
    sys.stdout.write(f"{'':<18} {'in use':<6}  {columns}\n")
    for title, make in problems.items():
        problem = make()
        for used in ("TP", "LR", "RP"):
            seconds: dict[str, list[float]] = {name: [] for name in LOOKS}
            for turn in tqdm(range(arguments.repetitions + 2), leave=False, disable=None):
                for name, compare in LOOKS.items():
                    taken = step(problem, used, compare)
                    if turn > 1:
                        seconds[name].append(taken)
            cells = []
            for name, taken in seconds.items():
                pairs = zip(taken, seconds["no look"], strict=True)
                ratio = statistics.median(a / b for a, b in pairs)
                more = "" if name == "no look" else f" ({ratio - 1:+.0%})"
                cells.append(f"{1e3 * statistics.median(taken):.1f} ms{more}")
            sys.stdout.write(f"{title:<18} {used:<6}  " + "  ".join(f"{c:>18}" for c in cells))
            sys.stdout.write("\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
