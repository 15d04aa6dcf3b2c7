"""What one rollout says of RP's, LR's and TP's gradients, against brute force and by hand."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Normal

from lightning_proppo import PropagationManager, expand
from lightning_proppo.comparison import (
    COMPARABLE,
    Comparison,
    Difference,
    Findings,
    Kind,
    time_steps,
)
from lightning_proppo.disagreement import DisagreementMemory
from lightning_proppo.mathematics.accuracy import trace_of_covariance
from lightning_proppo.per_particle import rollouts, sketches
from lightning_proppo.propagators import TotalProp, estimator_names, make_estimator
from lightning_proppo.propagators.comparing import comparable, comparing_propagators
from proppo_envs import ChaoticRNN

# Two-sided; one in 15,000 by chance, for each comparison of two independent estimates.
Z = 4.0
Rollout = Callable[[PropagationManager], Tensor]


class Walker:
    """A small MLP steers a point: costs at every step, and a price of the action."""

    def __init__(self, particles: int = 60, horizon: int = 4, seed: int = 0) -> None:
        torch.manual_seed(seed)
        self.net = nn.Sequential(nn.Linear(3, 16), nn.Tanh(), nn.Linear(16, 3)).double()
        self.log_std = nn.Parameter(torch.full((3,), -1.5, dtype=torch.float64))
        self.parameters = [*self.net.parameters(), self.log_std]
        self.particles, self.horizon = particles, horizon

    def __call__(self, manager: PropagationManager) -> Tensor:
        x = torch.zeros(self.particles, 3, dtype=torch.float64)
        for _ in range(self.horizon):
            action = self.net(x)
            manager.append_loss(0.05 * action.square().sum(1))
            x = manager.sample(Normal(x + 0.5 * action.sin(), self.log_std.exp().expand_as(x)))
            manager.append_loss((x - 0.5).square().sum(1).sqrt())
        return manager.loss()


class Chaos:
    """The chaotic recurrent network."""

    def __init__(self, beta: float, particles: int = 100, horizon: int = 40) -> None:
        self.system = ChaoticRNN(horizon=horizon)
        self.parameters = [torch.tensor([beta], dtype=torch.float64, requires_grad=True)]
        self.particles = particles

    def __call__(self, manager: PropagationManager) -> Tensor:
        x = self.system.initial_state(self.particles, torch.float64)
        for _ in range(self.system.horizon):
            x = manager.sample(self.system.transition(x, self.parameters[0]))
        return manager.loss(self.system.cost(x))


def compare(
    rollout: Any, used: str | TotalProp = "TP", names: Sequence[str] = COMPARABLE, **options: Any
) -> tuple[Findings, Comparison, list[Tensor | None]]:
    """Return what is found in a rollout, and the gradient of the estimator in use."""
    manager = PropagationManager(used)
    name = comparable(manager.default_propagator, manager.loss_propagator)
    assert name is not None
    comparison = Comparison(name, names, **options)
    manager.default_propagator, manager.loss_propagator = comparing_propagators(
        manager.default_propagator, comparison
    )
    gradient = torch.autograd.grad(rollout(manager), rollout.parameters, allow_unused=True)
    findings = comparison.findings()
    assert findings is not None
    return findings, comparison, list(gradient)


def gradient_of(comparison: Comparison, name: str, parameters: Sequence[Tensor]) -> Tensor:
    """Return an estimator's batch-mean gradient, flat."""
    totals = comparison._gradients.totals(comparison.names.index(name))
    return torch.cat([totals[id(p)].flatten() for p in parameters])


def z_score(gradients: Tensor, estimates: Tensor) -> float:
    """Return how far apart the variance of gradients [N, n] and the mean estimate [M] are."""
    squares = (gradients - gradients.mean(0)).square().sum(1)
    variance = squares.sum() / (len(squares) - 1)
    error = math.hypot(
        squares.std() / math.sqrt(len(squares)), estimates.std() / math.sqrt(len(estimates))
    )
    return float((estimates.mean() - variance) / error)


# -- the gradient itself -------------------------------------------------------------------------


@pytest.mark.parametrize("used", ["RP", "LR", "TP", "TPX"])
@pytest.mark.parametrize("problem", [Walker(), Chaos(2.5)], ids=["mlp", "chaos"])
def test_the_gradient_and_the_random_stream_are_left_as_they_are(problem: Any, used: str) -> None:
    torch.manual_seed(3)
    plain = torch.autograd.grad(problem(PropagationManager(used)), problem.parameters)
    after = torch.rand(())
    torch.manual_seed(3)
    _, _, compared = compare(problem, used)
    assert torch.equal(torch.rand(()), after)
    for a, b in zip(plain, compared, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=0)


@pytest.mark.parametrize("problem", [Walker(), Chaos(2.5)], ids=["mlp", "chaos"])
def test_each_estimators_gradient_is_what_it_would_have_been(problem: Any) -> None:
    torch.manual_seed(4)
    _, comparison, _ = compare(problem, "TP")
    for name in COMPARABLE:
        torch.manual_seed(4)
        plain = torch.autograd.grad(problem(PropagationManager(name)), problem.parameters)
        torch.testing.assert_close(
            gradient_of(comparison, name, problem.parameters),
            torch.cat([g.flatten() for g in plain]),
            rtol=1e-9,
            atol=1e-12,
        )


@pytest.mark.parametrize(
    "options",
    [
        {"weighting": "covariance"},
        {"k_interval": 3},
        {"ivw_target": "node"},
    ],
    ids=str,
)
def test_options_of_tp_are_honoured(options: dict[str, Any]) -> None:
    walker = Walker()
    torch.manual_seed(5)
    plain = torch.autograd.grad(walker(PropagationManager(TotalProp(**options))), walker.parameters)
    torch.manual_seed(5)
    _, _, compared = compare(walker, TotalProp(**options))
    for a, b in zip(plain, compared, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=0)


# -- the numbers ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "names"),
    [
        (lambda: Walker(), COMPARABLE),
        (lambda: Chaos(2.0, horizon=25), COMPARABLE),
        # RP's variance is one of rare events there, which 300 repetitions know nothing of.
        (lambda: Chaos(2.5), ("LR", "TP")),
    ],
    ids=["mlp", "calm", "chaos"],
)
def test_variances_are_those_of_independent_repetitions(
    make: Callable[[], Any], names: Sequence[str]
) -> None:
    problem = make()
    torch.manual_seed(6)
    gradients: dict[str, list[Tensor]] = {name: [] for name in names}
    for _ in range(300):
        _, comparison, _ = compare(problem, "TP", names)
        for name in names:
            gradients[name].append(gradient_of(comparison, name, problem.parameters))
    found = [compare(problem, "TP", names)[0] for _ in range(40)]
    for name in names:
        estimates = torch.tensor([f.estimates[name].variance for f in found])
        z = z_score(torch.stack(gradients[name]), estimates)
        assert abs(z) < Z, (name, z)


def test_the_comparison_of_variances_can_fail() -> None:
    torch.manual_seed(7)
    gradients = torch.randn(300, 5)
    estimates = 5 + 0.5 * torch.randn(40)
    assert abs(z_score(gradients, estimates)) < Z
    assert abs(z_score(gradients, 1.3 * estimates)) > Z


def by_hand(walker: Walker, seed: int) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Return RP's and LR's per-particle gradients [P, n], and what LR's samples add, [P] each.

    The last are functions whose gradients those are.
    """
    torch.manual_seed(seed)
    particles, parameters = walker.particles, walker.parameters
    x = torch.zeros(particles, 3, dtype=torch.float64)
    fixed = x
    direct, attached, scores = [], [], []
    later = []
    for _ in range(walker.horizon):
        noise = torch.empty(particles, 3, dtype=torch.float64).normal_()
        action, fixed_action = walker.net(x), walker.net(fixed)
        std = walker.log_std.exp().expand_as(x)
        attached.append(0.05 * action.square().sum(1))
        direct.append(0.05 * fixed_action.square().sum(1))
        x = x + 0.5 * action.sin() + noise * std
        loc = fixed + 0.5 * fixed_action.sin()
        fixed = (loc + noise * std).detach()
        scores.append(Normal(loc, std).log_prob(fixed).sum(1))
        attached.append((x - 0.5).square().sum(1).sqrt())
        later.append((direct[-1].detach(), attached[-1].detach()))
    total = torch.stack(attached).sum(0)
    # A sample's later costs: its own step's state cost, and all of the steps after it.
    surrogate = torch.stack(direct).sum(0)
    to_come = torch.zeros(particles, dtype=torch.float64)
    by_sample: list[Tensor] = []
    for score, (price, cost) in zip(reversed(scores), reversed(later), strict=True):
        to_come = to_come + cost
        baseline = (to_come.sum() - to_come) / (particles - 1)
        by_sample.insert(0, (to_come - baseline) * score)
        surrogate = surrogate + by_sample[0]
        to_come = to_come + price
    return rows_of(total, parameters), rows_of(surrogate, parameters), by_sample


def rows_of(values: Tensor, parameters: Sequence[Tensor]) -> Tensor:
    """Return the gradients [P, n] of values [P]."""
    rows = []
    for value in values:
        found = torch.autograd.grad(value, parameters, retain_graph=True)
        rows.append(torch.cat([g.flatten() for g in found]))
    return torch.stack(rows)


def test_variances_are_those_among_particles() -> None:
    walker = Walker(particles=20)
    # So many sketches leave an error of about 1 %.
    torch.manual_seed(8)
    findings, _, _ = compare(walker, "TP", copies=400)
    for name, rows in zip(("RP", "LR"), by_hand(walker, 8)[:2], strict=True):
        expected = rows.var(0).sum() / walker.particles
        assert findings.estimates[name].variance == pytest.approx(float(expected), rel=0.03)


def test_small_parameters_are_without_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (sketches, rollouts):
        monkeypatch.setattr(module, "EXACT", 1000)
    walker = Walker(particles=20)
    torch.manual_seed(9)
    findings, comparison, gradient = compare(walker, "TP")
    for name, rows in zip(("RP", "LR"), by_hand(walker, 9)[:2], strict=True):
        expected = rows.var(0).sum() / walker.particles
        assert findings.estimates[name].variance == pytest.approx(float(expected), rel=1e-9)
    # TP's: at least the particles' contributions add up to its gradient.
    sketches_of = comparison._gradients._sketches
    for parameter, total in zip(walker.parameters, gradient, strict=True):
        sums = sketches_of[id(parameter)]._sums[comparison.names.index("TP")]
        torch.testing.assert_close(sums.sum(0), total.flatten())


def test_the_difference_is_that_among_particles(monkeypatch: pytest.MonkeyPatch) -> None:
    """With RP's and LR's covariance: costs' own gradients, which both have, are none of it."""
    for module in (sketches, rollouts):
        monkeypatch.setattr(module, "EXACT", 1000)
    walker = Walker(particles=20)
    for used in COMPARABLE:
        torch.manual_seed(9)
        findings, comparison, _ = compare(walker, used)
        rp, lr, _ = by_hand(walker, 9)
        expected = (rp - lr).var(0).sum() / walker.particles
        assert findings.difference is not None
        assert findings.difference.variance == pytest.approx(float(expected), rel=1e-9)
        assert sum(findings.estimates[name].variance for name in ("RP", "LR")) != pytest.approx(
            float(expected), rel=1e-3
        )
        totals = comparison._gradients.difference(0, 1)
        found = torch.cat([totals[id(p)] for p in walker.parameters])
        torch.testing.assert_close(found, (rp - lr).mean(0), rtol=1e-9, atol=1e-12)
        norm = (rp - lr).mean(0).norm()
        torch.testing.assert_close(findings.difference.vector.norm(), norm)


def test_the_difference_of_large_parameters_is_sketched() -> None:
    """So many sketches leave an error of about 1 %."""
    walker = Walker(particles=20)
    torch.manual_seed(8)
    findings, _, _ = compare(walker, "TP", copies=400)
    rp, lr, _ = by_hand(walker, 8)
    expected = (rp - lr).var(0).sum() / walker.particles
    assert findings.difference.variance == pytest.approx(float(expected), rel=0.03)


@pytest.mark.parametrize("names", [("LR", "TP"), ("RP", "TP")])
def test_there_is_no_difference_of_one(names: Sequence[str]) -> None:
    assert compare(Walker(particles=20), "TP", names)[0].difference is None


def test_variances_by_time_step_are_in_the_rollouts_order() -> None:
    walker = Walker(particles=20)
    torch.manual_seed(10)
    findings, _, _ = compare(walker, "LR")
    _, _, by_sample = by_hand(walker, 10)
    for found, values in zip(findings.variances["LR"], by_sample, strict=True):
        expected = rows_of(values, walker.parameters).var(0).sum() / walker.particles
        assert float(found) == pytest.approx(float(expected), rel=1e-9)
    assert findings.variances["RP"].shape == findings.lr_weight.shape == (walker.horizon,)


def test_weights_by_time_step_are_those_of_tp() -> None:
    walker = Walker()
    manager = PropagationManager("TP")
    torch.manual_seed(11)
    walker(manager).backward()
    weights = torch.stack(manager.statistics["lr_weight"]).flip(0).double()
    torch.manual_seed(11)
    findings, _, _ = compare(walker, "TP")
    torch.testing.assert_close(findings.lr_weight, weights)


class Agent(Walker):
    """Draws an action and a state at each step.

    Args:
        costs: where they are recorded.
        initial: draw the first state too.
    """

    def __init__(self, costs: str, initial: bool = False) -> None:
        super().__init__(particles=20)
        self.costs, self.initial = costs, initial
        self.mean = torch.zeros(3, dtype=torch.float64, requires_grad=True)

    def __call__(self, manager: PropagationManager) -> Tensor:
        x = self.mean.expand(self.particles, 3)
        if self.initial:
            x = manager.sample(Normal(x, 0.3))
        for _ in range(self.horizon):
            if self.costs == "before the action":
                manager.append_loss(x.square().sum(1))
            action = manager.sample(Normal(self.net(x), 0.1))
            if self.costs in ("before the state", "of action and state"):
                manager.append_loss((x + action).square().sum(1))
            # Of an action's shape.
            x = manager.sample(Normal(x + 0.5 * action.sin(), self.log_std.exp()))
            if self.costs in ("after the state", "of action and state"):
                manager.append_loss(x.square().sum(1))
        return manager.loss(x.square().sum(1))


COSTS = (
    "before the action",
    "before the state",
    "after the state",
    "of action and state",
    "at the end",
)


@pytest.mark.parametrize("initial", [False, True])
@pytest.mark.parametrize("costs", COSTS)
def test_an_action_and_a_state_are_one_time_step(costs: str, initial: bool) -> None:
    agent = Agent(costs, initial)
    torch.manual_seed(12)
    findings, comparison, _ = compare(agent, "TP")
    assert findings.rows == "time step"
    for name in ("RP", "LR"):
        by_sample = comparison._gradients.variances_by_sample()[name].flip(0)
        by_sample = trace_of_covariance(by_sample, agent.particles)
        first = by_sample[: len(by_sample) - 2 * agent.horizon].sum()  # the initial state's
        expected = by_sample[-2 * agent.horizon :].reshape(agent.horizon, 2).sum(1)
        expected[0] += first
        torch.testing.assert_close(findings.variances[name], expected)
    torch.manual_seed(12)
    manager = PropagationManager("TP")
    agent(manager).backward()
    weights = torch.stack(manager.statistics["lr_weight"]).flip(0)[-2 * agent.horizon :].double()
    expected = weights.reshape(agent.horizon, 2).mean(1)
    torch.testing.assert_close(findings.lr_weight[1:], expected[1:])


@pytest.mark.parametrize(
    ("kinds", "lengths"),
    [
        ("", []),
        ("s s s", [1, 1, 1]),
        ("a s a s", [2, 2]),
        ("a . a .", [2, 2]),  # the model is frozen
        ("i a s a s", [3, 2]),
        ("s a s a s", [2, 2, 1]),
        ("ea es a s a s", [2, 2, 2]),  # from an encoder's state
        ("a b c", [3]),  # parameters of its own at each
    ],
)
def test_a_time_step_ends_where_a_kind_of_sample_comes_again(
    kinds: str, lengths: list[int]
) -> None:
    """Samples are given by their parameters, one letter each."""
    shape = torch.Size([20, 3])
    parameters = [frozenset(map(ord, names.strip("."))) for names in kinds.split()]
    assert time_steps([Kind(shape, found) for found in parameters]) == lengths
    # Without parameters, shapes tell them apart.
    shapes = [(len(names), *map(ord, names)) for names in kinds.replace("e", "").split()]
    if "e" not in kinds:
        assert time_steps([Kind(each, frozenset()) for each in shapes]) == lengths


def test_samples_that_do_not_come_again_are_rows() -> None:
    class Planner(Walker):
        """Each action's mean is a parameter of its own."""

        def __init__(self) -> None:
            super().__init__()
            self.parameters = [torch.zeros(3, requires_grad=True) for _ in range(5)]

        def __call__(self, manager: PropagationManager) -> Tensor:
            means = (mean.expand(self.particles, 3) for mean in self.parameters)
            x = sum(manager.sample(Normal(mean, 0.1)) for mean in means)
            return manager.loss((x - 1.0).square().sum(1))

    findings, _, _ = compare(Planner(), "TP")
    assert findings.rows == "sample"
    assert findings.variances["LR"].shape == findings.lr_weight.shape == (5,)


# -- what the guard finds ------------------------------------------------------------------------


def look_at(
    rollout: Any, manager: PropagationManager, names: Sequence[str] = COMPARABLE
) -> tuple[Findings, DisagreementMemory]:
    """Return what is found in a rollout, and what the guard remembers after it."""
    own = manager.default_propagator, manager.loss_propagator
    used = comparable(*own)
    assert used is not None
    comparison = Comparison(used, names)
    manager.default_propagator, manager.loss_propagator = comparing_propagators(own[0], comparison)
    torch.autograd.grad(rollout(manager), rollout.parameters, allow_unused=True)
    manager.default_propagator, manager.loss_propagator = own
    findings = comparison.findings(manager.disagreement)
    assert findings is not None
    return findings, manager.disagreement


@pytest.mark.parametrize("used", COMPARABLE)
def test_a_time_steps_disagreement_is_the_largest_of_its_samples(used: str) -> None:
    agent = Agent("after the state")
    torch.manual_seed(16)
    manager = PropagationManager(used)
    for _ in range(3):
        findings, memory = look_at(agent, manager)
    assert memory.gradients == 3
    assert findings.guarded
    expected = memory.standard_errors().reshape(agent.horizon, 2).amax(1)
    torch.testing.assert_close(findings.disagreement, expected)


def test_a_sample_of_a_fixed_distribution_has_nothing_to_disagree_on() -> None:
    class Started(Chaos):
        """Draws the first state, which reaches no parameter."""

        def __call__(self, manager: PropagationManager) -> Tensor:
            x = self.system.initial_state(self.particles, torch.float64)
            x = manager.sample(Normal(x, 0.1))
            for _ in range(self.system.horizon):
                x = manager.sample(self.system.transition(x, self.parameters[0]))
            return manager.loss(self.system.cost(x))

    torch.manual_seed(17)
    findings, memory = look_at(Started(2.0, horizon=5), PropagationManager("TP"))
    known = memory.standard_errors()
    assert len(known) == 5
    assert float(findings.disagreement[0]) in (0.0, float(known[0]))
    torch.testing.assert_close(findings.disagreement[-4:], known[-4:])


def test_without_the_guard_no_time_steps_disagreement_is_known() -> None:
    torch.manual_seed(18)
    findings, _ = look_at(Chaos(2.0, horizon=5), PropagationManager("TP", guard=False))
    assert not findings.guarded
    assert len(findings.disagreement) == 0
    assert findings.difference is not None


def test_without_tp_no_time_steps_disagreement_is_known() -> None:
    torch.manual_seed(18)
    findings, _ = look_at(Chaos(2.0, horizon=5), PropagationManager("RP"), ("RP", "LR"))
    assert not findings.guarded
    assert len(findings.disagreement) == 0


def test_what_is_known_of_another_rollout_says_nothing_of_this_one() -> None:
    manager = PropagationManager("TP")
    comparison = Comparison("TP")
    own = manager.default_propagator
    manager.default_propagator, manager.loss_propagator = comparing_propagators(own, comparison)
    for horizon in (5, 6):
        chaos = Chaos(2.0, horizon=horizon)
        torch.autograd.grad(chaos(manager), chaos.parameters)
    findings = comparison.findings(manager.disagreement)
    assert findings is not None
    assert findings.guarded
    assert len(findings.disagreement) == 0


@pytest.mark.parametrize("size", [3, 64, 100, 10_000])
def test_a_folded_difference_has_the_same_length_on_average(size: int) -> None:
    torch.manual_seed(19)
    vectors = torch.randn(200, size, dtype=torch.float64)
    folded = [Difference(vector, 2.0).folded() for vector in vectors]
    assert {(*each.vector.shape, each.variance) for each in folded} == {(64, 2.0)}
    ratios = torch.stack([each.vector for each in folded]).square().sum(1)
    ratios /= vectors.square().sum(1)
    if size <= 64:
        torch.testing.assert_close(ratios, torch.ones_like(ratios))
    else:  # one in 15,000 by chance
        assert abs(float(ratios.mean()) - 1) < Z * float(ratios.std()) / len(ratios) ** 0.5


# -- what can be compared ------------------------------------------------------------------------


@pytest.mark.parametrize("name", estimator_names())
def test_which_estimators_are_comparable(name: str) -> None:
    expected = {"RP": "RP", "LR": "LR", "TP": "TP", "TPX": "TP"}.get(name)
    assert comparable(*make_estimator(name)) == expected


@pytest.mark.parametrize("name", ["RP", "LR", "TP"])
def test_particles_that_depend_on_each_other_are_not(name: str) -> None:
    assert comparable(*make_estimator(name, noise="quasi-random")) is None


def test_tp_without_a_baseline_is_not_comparable() -> None:
    sampler = TotalProp(baseline=False)
    assert comparable(sampler, sampler.loss_propagator()) is None


def test_a_single_particle_has_no_variance() -> None:
    chaos = Chaos(2.0, particles=1, horizon=3)
    manager = PropagationManager("RP")
    comparison = Comparison("RP")
    manager.default_propagator, manager.loss_propagator = comparing_propagators(
        manager.default_propagator, comparison
    )
    torch.manual_seed(12)
    (compared,) = torch.autograd.grad(chaos(manager), chaos.parameters)
    torch.manual_seed(12)
    (plain,) = torch.autograd.grad(chaos(PropagationManager("RP")), chaos.parameters)
    assert torch.equal(compared, plain)
    assert comparison.findings() is None


def test_only_the_first_rollout_of_a_step_is_looked_at() -> None:
    chaos = Chaos(2.5, horizon=5)
    manager = PropagationManager("RP")
    comparison = Comparison("RP")
    manager.default_propagator, manager.loss_propagator = comparing_propagators(
        manager.default_propagator, comparison
    )
    torch.manual_seed(13)
    (two,) = torch.autograd.grad(chaos(manager) + chaos(manager), chaos.parameters)
    manager = PropagationManager("RP")
    torch.manual_seed(13)
    (plain,) = torch.autograd.grad(chaos(manager) + chaos(manager), chaos.parameters)
    torch.testing.assert_close(two, plain)
    assert comparison.findings().variances["RP"].shape == (5,)


class Particular(Walker):
    """A rollout with one sample that has options of its own."""

    options: dict[str, Any]

    def __call__(self, manager: PropagationManager) -> Tensor:
        x = torch.zeros(self.particles, 3, dtype=torch.float64)
        for step in range(3):
            more = self.options if step == 1 else {}
            dist = Normal(x + self.net(x), self.log_std.exp().expand_as(x))
            x = manager.sample(dist, **more)
        return manager.loss((x - 0.5).square().sum(1))


@pytest.mark.parametrize(
    "options",
    [{"weighting": "cross-fitted"}, {"share": "mesh"}, {"noise": "quasi-random"}],
    ids=str,
)
def test_options_of_single_samples_are_honoured(options: dict[str, Any]) -> None:
    rollout = Particular()
    rollout.options = options
    torch.manual_seed(14)
    plain = torch.autograd.grad(rollout(PropagationManager("TP")), rollout.parameters)
    torch.manual_seed(14)
    findings, _, compared = compare(rollout, "TP")
    for a, b in zip(plain, compared, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=0)
    assert findings.estimates == {}
    assert "let particles share" in findings.missing["TP"]


def test_a_targets_tensors_may_be_expanded() -> None:
    class Expanded(Chaos):
        def __call__(self, manager: PropagationManager) -> Tensor:
            beta = expand(self.parameters[0], self.particles)
            x = self.system.initial_state(self.particles, torch.float64)
            for _ in range(self.system.horizon):
                x = manager.sample(self.system.transition(x, beta), ivw_target=beta)
            return manager.loss(self.system.cost(x))

    torch.manual_seed(15)
    expected, _, plain = compare(Chaos(2.5, horizon=8), "TP")
    torch.manual_seed(15)
    found, _, compared = compare(Expanded(2.5, horizon=8), "TP")
    torch.testing.assert_close(plain, compared)
    for name in COMPARABLE:
        variance = expected.estimates[name].variance
        assert found.estimates[name].variance == pytest.approx(variance)
