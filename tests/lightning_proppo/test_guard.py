"""Total propagation where costs or dynamics jump, and where nothing does.

The truths are closed forms, or central differences of benchmarks.discontinuity (given with four
digits). Statistical tests allow 5 standard errors, by chance exceeded once in 2e6, and 5 % of the
truth, which is the bias that the guard may leave.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import ContinuousBernoulli, Independent, Laplace, Normal

from lightning_proppo import PropagationManager
from lightning_proppo.disagreement import Look

F = torch.float64
PARTICLES = 1000

Rollout = Callable[[PropagationManager, Tensor], Tensor]


def normal(loc: Tensor, scale: float) -> Normal:
    return Normal(loc, scale)


def step_cost(manager: PropagationManager, theta: Tensor, family: Any = normal) -> Tensor:
    """A cost that steps: 1[x > 0] + 0.1 x, x ~ N(theta, 0.5^2)."""
    x = manager.sample(family(theta.expand(PARTICLES, 1), 0.5))
    return manager.loss((x > 0).to(x) + 0.1 * x)


def wall(manager: PropagationManager, theta: Tensor) -> Tensor:
    """Dynamics that jump: a chain that is thrown back beyond 0.5."""
    x = torch.zeros(PARTICLES, 1, dtype=F)
    for _ in range(10):
        loc = torch.where(x > 0.5, torch.full_like(x, 0.2), 0.9 * x) + theta
        x = manager.sample(Normal(loc, 0.2))
    return manager.loss((x - 1).square())


def tube(manager: PropagationManager, theta: Tensor) -> Tensor:
    """A symmetric task: the gradient at a sample is zero on average, the parameter's is not."""
    x = torch.zeros(PARTICLES, 1, dtype=F)
    for _ in range(10):
        x = manager.sample(Normal((1 - theta) * x, 0.3))
        manager.append_loss(0 * x - (x.abs() < 0.3).to(x))
    return manager.loss()


def drifting_wall(manager: PropagationManager, theta: Tensor) -> Tensor:
    """A wall in segments without parameters: those enter at the actions alone."""
    x = torch.zeros(PARTICLES, 1, dtype=F)
    for _ in range(6):
        action = manager.sample(Normal(theta.expand(PARTICLES, 1), 0.1))
        loc = torch.where(x > 0.5, torch.full_like(x, 0.2), 0.9 * x) + action
        x = manager.sample(Normal(loc, 0.2))
    return manager.loss((x - 1).square())


def smooth_chain(manager: PropagationManager, theta: Tensor, horizon: int = 10) -> Tensor:
    """The wall's chain without the wall, with smaller noise."""
    x = torch.zeros(PARTICLES, 1, dtype=F)
    for _ in range(horizon):
        x = manager.sample(Normal(0.9 * x + theta, 0.05))
    return manager.loss((x - 1).square())


def gradients(
    rollout: Rollout, start: float, count: int, name: str = "TP", **options: Any
) -> Tensor:
    """Return successive gradients at one parameter, [count]."""
    manager = PropagationManager(name, **options)
    theta = torch.tensor(start, dtype=F, requires_grad=True)
    found = [torch.autograd.grad(rollout(manager, theta), [theta])[0] for _ in range(count)]
    return torch.stack(found)


def is_right(found: Tensor, truth: float) -> bool:
    error = float(found.std()) / math.sqrt(len(found))
    return abs(float(found.mean()) - truth) < 5 * error + 0.05 * abs(truth)


STEP = 0.1 + math.exp(-0.5 * 0.6**2) / (0.5 * math.sqrt(2 * math.pi))
WALL, TUBE = -1.4574, -4.4983
MIXING: dict[str, tuple[str, dict[str, Any]]] = {
    "TP": ("TP", {}),
    "TPX": ("TPX", {}),
    "TP+BIW": ("TP+BIW", {}),
    "TP+MESH": ("TP+MESH", {}),
    "covariance": ("TP", {"weighting": "covariance"}),
    "cross-fitted": ("TP", {"weighting": "cross-fitted"}),
    "TPX, cross-fitted": ("TPX", {"weighting": "cross-fitted"}),
    "TP, every other node": ("TP", {"k_interval": 2}),
}


@pytest.mark.parametrize("estimator", MIXING)
def test_a_step_in_the_cost_is_seen_in_the_first_gradient(estimator: str) -> None:
    torch.manual_seed(0)
    name, options = MIXING[estimator]
    found = torch.cat([gradients(step_cost, 0.3, 1, name, **options) for _ in range(10)])
    assert is_right(found, STEP)


def test_without_the_guard_it_is_not() -> None:
    torch.manual_seed(0)
    found = gradients(step_cost, 0.3, 5, guard=False)
    torch.testing.assert_close(found, torch.full_like(found, 0.1))


@pytest.mark.slow
@pytest.mark.parametrize("estimator", [*MIXING, "TP+GS"])
def test_a_wall_is_seen_after_twenty_gradients(estimator: str) -> None:
    torch.manual_seed(0)
    name, options = MIXING.get(estimator, (estimator, {}))
    rollout = wall
    if name == "TP+GS":

        def rollout(manager: PropagationManager, theta: Tensor) -> Tensor:
            x = torch.zeros(PARTICLES, 1, dtype=F)
            for _ in range(10):
                loc = torch.where(x > 0.5, torch.full_like(x, 0.2), 0.9 * x) + theta
                x = manager.sample(Normal(loc, 0.2))
            manager.append_loss(x, lossfunc=lambda x: (x - 1).square().sum(1))
            return manager.loss()

    found = gradients(rollout, 0.2, 45, name, **options)[20:]
    assert is_right(found, WALL)


def test_without_the_guard_a_wall_is_missed() -> None:
    torch.manual_seed(0)
    assert not is_right(gradients(wall, 0.2, 10, guard=False), WALL)


@pytest.mark.parametrize("name", ["TP", "TPX"])
def test_a_bias_that_is_zero_on_average_over_the_particles_is_seen(name: str) -> None:
    torch.manual_seed(0)
    assert is_right(gradients(tube, 0.3, 40, name)[20:], TUBE)


def test_a_bias_is_seen_at_samples_that_reach_no_parameters() -> None:
    torch.manual_seed(0)
    right = gradients(drifting_wall, 0.2, 60, "LR")
    found = gradients(drifting_wall, 0.2, 40)[20:]
    wrong = gradients(drifting_wall, 0.2, 20, guard=False)
    truth = float(right.mean())
    assert is_right(found, truth)
    assert abs(float(wrong.mean()) - truth) > 0.2 * abs(truth)


@pytest.mark.parametrize("name", ["TP", "TPX"])
def test_samples_that_are_not_normal_are_guarded(name: str) -> None:
    """Of a Laplace distribution: d/dm P(x > 0) = exp(-|m| / b) / 2b."""
    torch.manual_seed(0)

    def rollout(manager: PropagationManager, theta: Tensor) -> Tensor:
        return step_cost(manager, theta, Laplace)

    truth = 0.1 + math.exp(-0.3 / 0.5) / (2 * 0.5)
    assert is_right(gradients(rollout, 0.3, 20, name), truth)


@pytest.mark.parametrize("name", ["TP", "TPX"])
def test_a_faulty_derivative_of_a_distributions_samples_is_guarded(name: str) -> None:
    """PyTorch's samples of a continuous Bernoulli at 1/2 do not depend on it: dE[x]/dp = 1/3."""
    torch.manual_seed(0)

    def rollout(manager: PropagationManager, theta: Tensor) -> Tensor:
        x = manager.sample(ContinuousBernoulli(theta.expand(PARTICLES, 1)))
        return manager.loss(x.squeeze(1))

    assert float(gradients(rollout, 0.5, 1, "RP")) == 0.0
    assert is_right(gradients(rollout, 0.5, 20, name), 1 / 3)


def test_squashed_samples_are_guarded() -> None:
    """1[tanh x > 0] is 1[x > 0]."""
    torch.manual_seed(0)

    def rollout(manager: PropagationManager, theta: Tensor) -> Tensor:
        from torch.distributions import TanhTransform, TransformedDistribution

        base = Normal(theta.expand(PARTICLES, 1), 0.5)
        x = manager.sample(TransformedDistribution(base, [TanhTransform()]))
        return manager.loss((x > 0).to(x) + 0 * x)

    assert is_right(gradients(rollout, 0.3, 20), STEP - 0.1)


def test_a_policy_of_many_parameters_is_guarded() -> None:
    """Its differences are remembered as sketches. The reference is LR."""
    torch.manual_seed(0)
    policy = nn.Sequential(nn.Linear(2, 20), nn.Tanh(), nn.Linear(20, 2)).double()
    parameters = list(policy.parameters())

    def gradient(manager: PropagationManager) -> Tensor:
        x = torch.zeros(PARTICLES, 2, dtype=F)
        for _ in range(4):
            x = manager.sample(Independent(Normal(0.8 * x + policy(x), 0.3), 1))
            manager.append_loss((x > 0.5).to(x).sum(1) + 0 * x.sum(1))
        found = torch.autograd.grad(manager.loss(), parameters)
        return torch.cat([g.flatten() for g in found])

    lr = PropagationManager("LR")
    right = torch.stack([gradient(lr) for _ in range(60)])
    tp = PropagationManager("TP")
    found = torch.stack([gradient(tp) for _ in range(30)])[15:]
    truth = right.mean(0)
    difference = found.mean(0) - truth
    noise = (right.var(0) / len(right) + found.var(0) / len(found)).sum()
    # RP is zero: all of the gradient is to come from LR.
    assert float(difference.norm()) < 3 * float(noise.sqrt()) + 0.05 * float(truth.norm())
    assert float(truth.norm()) > 5 * float(noise.sqrt())


# -- nothing is lost where nothing jumps -----------------------------------------------------


def spread_ratio(rollout: Rollout, start: float, count: int) -> float:
    """Return the variance with the guard over that without, of the same samples."""
    found = []
    for guard in (True, False):
        torch.manual_seed(1)
        found.append(gradients(rollout, start, count, guard=guard))
    return float(found[0].var() / found[1].var())


def test_on_smooth_problems_no_variance_is_lost() -> None:
    assert spread_ratio(smooth_chain, 0.1, 60) < 1.1


def test_a_guard_that_fires_at_random_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """At one sample of a hundred: LR's variance is hundreds of times RP's here."""
    state = torch.Generator().manual_seed(0)

    def doubt(self: Look, evidence: Any) -> Tensor:
        return (torch.rand(1, generator=state, dtype=F) < 0.01).to(F)

    monkeypatch.setattr(Look, "doubt", doubt)
    assert spread_ratio(smooth_chain, 0.1, 60) > 1.1


@pytest.mark.parametrize("steepness", [20.0, 100.0])
def test_rp_that_is_right_but_heavy_tailed_is_not_mistaken_for_a_bias(steepness: float) -> None:
    """A steep sigmoid: few particles have all of RP's gradient. Nothing becomes worse."""

    def rollout(manager: PropagationManager, theta: Tensor) -> Tensor:
        x = manager.sample(Normal(theta.expand(PARTICLES, 1), 0.5))
        return manager.loss(torch.sigmoid(steepness * x))

    u = torch.linspace(-40, 40, 40_001, dtype=F)
    slope = torch.sigmoid(u) * torch.sigmoid(-u)
    density = Normal(0.3, 0.5).log_prob(u / steepness).exp()
    truth = float(torch.trapezoid(slope * density, u))
    errors = []
    for guard in (True, False):
        torch.manual_seed(2)
        errors.append((gradients(rollout, 0.3, 300, guard=guard) - truth).square().mean())
    assert float(errors[0] / errors[1]) < 1.1


@pytest.mark.slow
@pytest.mark.parametrize("beta", [2.0, 2.5])
def test_chaos_is_not_mistaken_for_a_bias(beta: float) -> None:
    """The chaotic network, whose RP is right and has a variance up to thousands of times LR's."""
    from proppo_envs import ChaoticRNN

    system = ChaoticRNN(horizon=40)

    def rollout(manager: PropagationManager, theta: Tensor) -> Tensor:
        x = system.initial_state(300, F)
        for _ in range(system.horizon):
            x = manager.sample(system.transition(x, theta))
        return manager.loss(system.cost(x))

    assert spread_ratio(rollout, beta, 40) < 1.1


# -- options and passes ----------------------------------------------------------------------


def test_a_guard_that_is_no_bool_is_refused() -> None:
    manager = PropagationManager("TP")
    with pytest.raises(TypeError, match="guard must be True or False; got 'yes'"):
        manager.sample(Normal(torch.zeros(4, 1), 1.0), guard="yes")


def test_the_guard_is_an_option_of_the_estimator_and_of_a_sample() -> None:
    for options, at_sample in (({"guard": False}, {}), ({}, {"guard": False})):
        torch.manual_seed(0)
        manager = PropagationManager("TP", **options)
        theta = torch.tensor(0.3, dtype=F, requires_grad=True)
        x = manager.sample(Normal(theta.expand(PARTICLES, 1), 0.5), **at_sample)
        loss = manager.loss((x > 0).to(x) + 0.1 * x)
        (found,) = torch.autograd.grad(loss, [theta])
        assert float(found) == pytest.approx(0.1)
        assert manager.disagreement.gradients == 0


def test_a_second_pass_over_one_rollout_is_no_further_evidence() -> None:
    manager = PropagationManager("TP")
    theta = torch.tensor(0.3, dtype=F, requires_grad=True)
    loss = step_cost(manager, theta)
    loss.backward(retain_graph=True)
    loss.backward()
    assert manager.disagreement.gradients == 1


def test_every_pass_over_one_rollout_gives_the_same_gradient() -> None:
    """Also where the first pass has made the memory."""
    torch.manual_seed(0)
    manager = PropagationManager("TP")
    theta = torch.tensor(0.2, dtype=F, requires_grad=True)
    for _ in range(2):
        loss = wall(manager, theta)
        found = [torch.autograd.grad(loss, [theta], retain_graph=True)[0] for _ in range(3)]
        assert float(found[0]) == float(found[1]) == float(found[2])


@pytest.mark.parametrize("name", ["TP", "TPX"])
def test_weights_may_be_kept_where_the_last_sample_is_not_guarded(name: str) -> None:
    manager = PropagationManager(name, k_interval=2)
    theta = torch.tensor(0.2, dtype=F, requires_grad=True)
    for _ in range(2):
        x = torch.zeros(20, 1, dtype=F)
        for t in range(4):
            x = manager.sample(Normal(x + theta, 0.2), guard=t < 3)
        torch.autograd.grad(manager.loss(x.square()), [theta])


def test_of_samples_of_many_coordinates_little_is_remembered() -> None:
    """Not the products of 300 coordinates with 300 before them."""
    manager = PropagationManager("TPX")
    theta = torch.tensor(0.1, dtype=F, requires_grad=True)
    for _ in range(2):
        x = torch.zeros(20, 300, dtype=F)
        for _ in range(3):
            x = manager.sample(Normal(0.9 * x + theta, 0.2))
        torch.autograd.grad(manager.loss(x.square().sum(1)), [theta])
    assert {a.units.shape for a in manager.disagreement._averages.values()} == {(3, 300, 1)}


def test_gradients_at_a_sample_are_summed_over_its_particles() -> None:
    manager = PropagationManager("TP")
    theta = torch.tensor(0.1, dtype=F, requires_grad=True)
    x = manager.sample(Normal(theta.expand(20, 1), 0.2))
    y = manager.sample(Normal(x, 0.1), ivw_target=[x])
    torch.autograd.grad(manager.loss(y.square()), [theta])
    assert {a.units.shape for a in manager.disagreement._averages.values()} == {(2, 1, 1)}


@pytest.mark.parametrize("name", ["TP+BIW", "TP+MESH"])
def test_particles_that_share_are_no_evidence_of_a_bias(name: str) -> None:
    """A linear chain, with variances compared at incoming samples; 2.2 with rows that depend.

    40 gradients of 4 samples; the standard deviation's error is 6 %.
    """
    torch.manual_seed(0)
    theta = torch.tensor(0.1, dtype=F, requires_grad=True)
    units = []
    for _ in range(40):
        manager = PropagationManager(name)
        x = theta + torch.zeros(100, 1, dtype=F)
        for _ in range(5):
            x = manager.sample(Normal(0.9 * x, 0.3))
        torch.autograd.grad(manager.loss((x - 1).square()), [theta])
        kinds = manager.disagreement._averages
        units.append(torch.cat([a.units.flatten() for kind, a in kinds.items() if len(kind) > 1]))
    assert 0.5 < float(torch.stack(units).std()) < 1.3


def test_only_estimators_that_mix_gather_evidence() -> None:
    for name in ("RP", "LR", "GR"):
        manager = PropagationManager(name)
        theta = torch.tensor(0.3, dtype=F, requires_grad=True)
        torch.autograd.grad(smooth_chain(manager, theta, 2), [theta])
        assert manager.disagreement.gradients == 0


def test_where_a_parameter_enters_the_jump_no_estimator_sees_it() -> None:
    """The limit that the documentation names: LR is wrong too, until noise comes before the jump.

    m = 0.9 x + theta, thrown back to 0.2 beyond 0.5, and x ~ N(m, 0.2^2) ten times, cost (x - 1)^2.
    """

    def rollout(noise: float) -> Rollout:
        def run(manager: PropagationManager, theta: Tensor) -> Tensor:
            x = torch.zeros(PARTICLES, 1, dtype=F)
            for _ in range(10):
                m = 0.9 * x + theta
                if noise:
                    m = manager.sample(Normal(m, noise))
                x = manager.sample(Normal(torch.where(m > 0.5, torch.full_like(m, 0.2), m), 0.2))
            return manager.loss((x - 1).square())

        return run

    def truth(noise: float, width: float = 0.02, particles: int = 400_000) -> float:
        sides = []
        for side in (1, -1):
            torch.manual_seed(0)
            x = torch.zeros(particles, dtype=F)
            for _ in range(10):
                m = 0.9 * x + 0.2 + side * width + noise * torch.randn(particles, dtype=F)
                jumped = torch.where(m > 0.5, torch.full_like(m, 0.2), m)
                x = jumped + 0.2 * torch.randn(particles, dtype=F)
            sides.append(float((x - 1).square().mean()))
        return (sides[0] - sides[1]) / (2 * width)

    torch.manual_seed(3)
    assert not is_right(gradients(rollout(0.0), 0.2, 30, "LR"), truth(0.0))
    assert is_right(gradients(rollout(0.1), 0.2, 45)[20:], truth(0.1))
