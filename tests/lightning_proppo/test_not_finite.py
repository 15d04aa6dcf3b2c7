"""What overflows or is not a number, in RP's part, does not reach what LR can still tell."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Gamma, Normal

from lightning_proppo import PropagationManager, expand
from lightning_proppo.comparison import Comparison
from lightning_proppo.mathematics.variances import mix, not_negative, scaled, weights_from_variances
from lightning_proppo.per_particle import per_particle_variance
from lightning_proppo.pooling import pooled_variances
from lightning_proppo.propagators import TotalProp, tp
from lightning_proppo.propagators.comparing import comparing_propagators
from lightning_proppo.propagators.tp import WEIGHTINGS
from lightning_proppo.ranks import ALONE
from proppo_envs import ChaoticRNN

F = torch.float64
BAD = (math.inf, -math.inf, math.nan)
TARGETS = ("parameters", "module", "expanded", "node")
P, H, STEP = 12, 5, 2  # the cost after sample STEP, counted from 0, has the bad cotangent


class Plant(torch.autograd.Function):
    """Hands a tensor on; backward, one particle's cotangent (or one element of it) is replaced."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, value: float, where: Any) -> Tensor:
        ctx.value, ctx.where = value, where
        return x.clone()

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        g = g.clone()
        g[ctx.where] = ctx.value
        return g, None, None


class Walk:
    """A linear layer steers a point; costs at every step."""

    def __init__(self, dtype: torch.dtype = F, target: str | None = None) -> None:
        torch.manual_seed(1)
        self.layer = nn.Linear(2, 2).to(dtype)
        self.log_std = nn.Parameter(torch.tensor([-0.5, -1.0], dtype=dtype))
        self.parameters = [*self.layer.parameters(), self.log_std]
        self.start = torch.linspace(-1, 1, 2 * P, dtype=dtype).reshape(P, 2)
        self.target = target

    def step(self, manager: PropagationManager, x: Tensor) -> Tensor:
        options: dict[str, Any] = {}
        scale = self.log_std.exp().expand(P, 2)
        if self.target == "expanded":
            weight, bias = expand(self.layer.weight, P), expand(self.layer.bias, P)
            loc = torch.einsum("pi,pji->pj", x, weight) + bias
            options["ivw_target"] = [weight, bias]
        else:
            loc = self.layer(x)
            if self.target is not None:
                options["ivw_target"] = self.layer if self.target == "module" else self.target
        return manager.sample(Normal(x + 0.3 * loc.tanh(), scale), **options)

    def gradient(
        self, manager: PropagationManager, value: float | None, where: Any = 3, horizon: int = H
    ) -> list[Tensor]:
        torch.manual_seed(2)
        x = self.start
        for step in range(horizon):
            x = self.step(manager, x)
            seen = x
            if value is not None and step == min(STEP, horizon - 1):
                seen = Plant.apply(x, value, where)
            manager.append_loss((seen - 0.3).square().sum(1))
        return list(torch.autograd.grad(manager.loss(), self.parameters))


def weights_of(manager: PropagationManager) -> list[float]:
    """By sample, from the first to the last."""
    return [float(weight) for weight in reversed(manager.statistics["lr_weight"])]


# -- arithmetic ----------------------------------------------------------------------------------


def scalar(value: float) -> Tensor:
    return torch.tensor(value, dtype=F)


@pytest.mark.parametrize("c", [0.0, 1.0, *BAD])
def test_an_infinite_variance_beside_none_gets_no_weight_whatever_the_covariance(c: float) -> None:
    """The square root of infinity times zero is no bound."""
    k1, k2 = weights_from_variances(scalar(0.0), scalar(math.inf), scalar(c))
    assert (float(k1), float(k2)) == (1.0, 0.0)
    k1, k2 = weights_from_variances(scalar(math.inf), scalar(0.0), scalar(c))
    assert (float(k1), float(k2)) == (0.0, 1.0)


def test_variances_that_rounding_made_negative_count_as_zero() -> None:
    for v1, v2, k in ((-1e-20, 1e-20, 1.0), (-1e-20, 5e-21, 1.0), (1.0, -1e-20, 0.0)):
        found, other = weights_from_variances(scalar(v1), scalar(v2))
        assert (float(found), float(other)) == (k, 1.0 - k)
    for v1, v2 in ((-1.0, -2.0), (0.0, 0.0)):
        assert [float(k) for k in weights_from_variances(scalar(v1), scalar(v2))] == [0.5, 0.5]
    both = weights_from_variances(scalar(math.inf), scalar(math.inf))
    assert sum(float(k) for k in both) == 1.0


def test_a_variance_less_infinity_is_infinite() -> None:
    found = not_negative(torch.tensor([-1e-9, 2.0, math.inf, -math.inf, math.nan], dtype=F))
    assert found.tolist() == [0.0, 2.0, math.inf, math.inf, math.inf]
    k1, k2 = weights_from_variances(scalar(-math.inf), scalar(1.0))
    assert (float(k1), float(k2)) == (0.0, 1.0)
    (same,) = pooled_variances([scalar(1.0)], [[None]], 3, ALONE)
    assert float(same) == 1.0


def test_a_total_that_overflows_beside_squares_that_do_not_has_no_weight() -> None:
    """Squares are summed in 64 bits; the gradient itself overflows in 32."""
    layer = nn.Linear(3, 4)
    loc = layer(torch.ones(100, 3))
    cotangent = torch.full_like(loc, 1e37)
    assert not bool(
        torch.autograd.grad(loc, layer.weight, cotangent, retain_graph=True)[0].isfinite().all()
    )
    assert not math.isfinite(per_particle_variance([loc], [cotangent], [layer.weight]))


@pytest.mark.parametrize("value", BAD)
def test_a_weight_that_vanishes_in_32_bits_silences(value: float) -> None:
    k, bad, good = scalar(1e-60), torch.tensor([value, 2.0]), torch.tensor([1.0, 3.0])
    assert torch.equal(mix(1 - k, [good], k, [bad])[0], good)
    assert torch.equal(mix(k, [bad], 1 - k, [good])[0], good)
    assert torch.equal(mix(k, [bad], 1 - k, [None])[0], torch.zeros(2))
    assert torch.equal(scaled(k, bad), torch.zeros(2))


@pytest.mark.parametrize("particles", [2, 3, 4])
def test_cross_fitted_weights_of_a_few_particles_are_weights(particles: int) -> None:
    """A half of one particle has a variance of zero, but for rounding, which may be negative."""
    for seed in range(20):
        torch.manual_seed(seed)
        theta = torch.randn(3, dtype=F).requires_grad_()
        manager = PropagationManager(TotalProp(weighting="cross-fitted"))
        x = manager.sample(Normal(theta.expand(particles, 3), 1.0))
        (gradient,) = torch.autograd.grad(manager.loss(x.square().sum(1)), theta)
        assert bool(gradient.isfinite().all())
        assert all(0.0 <= weight <= 1.0 for weight in weights_of(manager))


# -- planted cotangents ---------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, F], ids=str)
@pytest.mark.parametrize("weighting", WEIGHTINGS)
@pytest.mark.parametrize("target", TARGETS)
def test_one_bad_cotangent_leaves_a_sample_to_lr(
    target: str, weighting: str, dtype: torch.dtype
) -> None:
    walk = Walk(dtype, target)
    expected = Walk(dtype).gradient(PropagationManager("LR"), None, horizon=1)
    for value in BAD:
        manager = PropagationManager(TotalProp(weighting=weighting))
        found = walk.gradient(manager, value, horizon=1)
        assert weights_of(manager) == [1.0]
        for a, b in zip(found, expected, strict=True):
            torch.testing.assert_close(a, b)


@pytest.mark.parametrize("k_interval", [1, 3])
@pytest.mark.parametrize("weighting", WEIGHTINGS)
@pytest.mark.parametrize("target", TARGETS)
def test_samples_before_and_after_are_mixed_as_ever(
    target: str, weighting: str, k_interval: int
) -> None:
    """What a bad value was does not matter: the sample's mixture is LR's part alone."""
    found = []
    for value in (*BAD, None):
        manager = PropagationManager(TotalProp(weighting=weighting, k_interval=k_interval))
        gradient = Walk(target=target).gradient(manager, value)
        weights = weights_of(manager)
        assert all(bool(part.isfinite().all()) for part in gradient)
        if value is not None and weighting == "cross-fitted" and k_interval > 1:
            assert 0.5 < weights[STEP] < 1.0  # the other half keeps the weights that it had
        elif value is not None:
            assert weights[STEP] == 1.0
        assert all(0.0 <= weight < 1.0 for step, weight in enumerate(weights) if step != STEP)
        found.append(torch.cat([part.flatten() for part in gradient]))
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])
    assert not torch.equal(found[0], found[3])


@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_tpx_leaves_one_bad_coordinate_to_lr_and_no_other(weighting: str) -> None:
    def bias(propagator: Any, value: float | None) -> Tensor:
        walk = Walk()
        return walk.gradient(PropagationManager(propagator), value, (3, 0), horizon=1)[1]

    lr = bias("LR", None)
    tpx = TotalProp(ivw_target="node", weighting=weighting)
    plain = bias(tpx, None)
    for value in BAD:
        found = bias(tpx, value)
        torch.testing.assert_close(found[0], lr[0])
        torch.testing.assert_close(found[1], plain[1])
        assert abs(float(found[1] - lr[1])) > 1e-3


@pytest.mark.parametrize("weighting", WEIGHTINGS)
@pytest.mark.parametrize("target", ["parameters", "node"])
def test_other_families_are_shielded_too(target: str, weighting: str) -> None:
    def gradient(propagator: Any, value: float | None) -> list[Tensor]:
        torch.manual_seed(3)
        values = [torch.tensor(v, dtype=F, requires_grad=True) for v in (1.5, 0.7)]
        manager = PropagationManager(propagator)
        x = manager.sample(Gamma(*(v.expand(P, 2) for v in values)))
        seen = x if value is None else Plant.apply(x, value, 3)
        return list(torch.autograd.grad(manager.loss(seen.sin().sum(1)), values))

    tp = TotalProp(weighting=weighting, ivw_target=target)
    expected = gradient(tp, math.nan)
    for value in BAD:
        for found, other in zip(gradient(tp, value), expected, strict=True):
            assert bool(found.isfinite())
            assert torch.equal(found, other)
    for found, plain in zip(expected, gradient(tp, None), strict=True):
        assert not torch.equal(found, plain)


@pytest.mark.parametrize("share", ["likelihoods", "mesh"])
@pytest.mark.parametrize("weighting", ["inverse-variance", "covariance"])
@pytest.mark.parametrize("target", TARGETS)
def test_total_propagation_of_shared_samples_is_shielded_too(
    target: str, weighting: str, share: str
) -> None:
    found = []
    for value in BAD:
        manager = PropagationManager(TotalProp(weighting=weighting, share=share, group_size=4))
        found.append(Walk(target=target).gradient(manager, value))
        weights = weights_of(manager)
        assert weights[STEP] == 1.0
        assert all(0.0 <= weight < 1.0 for step, weight in enumerate(weights) if step != STEP)
        for part, other in zip(found[-1], found[0], strict=True):
            assert bool(part.isfinite().all())
            assert torch.equal(part, other)


@pytest.mark.parametrize("target", ["parameters", "node"])
@pytest.mark.parametrize("k_interval", [1, 3])
def test_a_comparison_shields_total_propagation_alike(k_interval: int, target: str) -> None:
    plain = PropagationManager(TotalProp(k_interval=k_interval, ivw_target=target))
    expected = Walk().gradient(plain, math.inf)
    manager = PropagationManager(TotalProp(k_interval=k_interval, ivw_target=target))
    comparison = Comparison("TP")
    manager.default_propagator, manager.loss_propagator = comparing_propagators(
        manager.default_propagator, comparison
    )
    for a, b in zip(Walk().gradient(manager, math.inf), expected, strict=True):
        torch.testing.assert_close(a, b)
    assert weights_of(manager) == pytest.approx(weights_of(plain))


@pytest.mark.parametrize("name", ["LR", "BIW"])
def test_the_likelihood_ratio_does_not_notice(name: str) -> None:
    expected = Walk().gradient(PropagationManager(name), None)
    for value in BAD:
        for a, b in zip(Walk().gradient(PropagationManager(name), value), expected, strict=True):
            assert torch.equal(a, b)


def test_what_is_sent_back_is_looked_at_where_variances_are_not_compared() -> None:
    """The parameters that are compared do not see it, but the samples before would get it."""

    def gradient(value: float) -> tuple[Tensor, list[float]]:
        torch.manual_seed(4)
        theta, shift = (torch.tensor(v, dtype=F, requires_grad=True) for v in (0.5, 0.2))
        manager = PropagationManager("TP")
        x = manager.sample(Normal(theta.expand(P, 1), 1.0))
        y = manager.sample(Normal(Plant.apply(x, value, 3) + shift, 1.0))
        manager.append_loss(y.square())
        (found,) = torch.autograd.grad(manager.loss(), theta)
        return found, weights_of(manager)

    found = [gradient(value) for value in BAD]
    assert all(weights == [1.0, 1.0] for _, weights in found)
    assert bool(found[0][0].isfinite())
    assert all(torch.equal(gradient, found[0][0]) for gradient, _ in found)


@pytest.mark.parametrize("value", BAD)
def test_resampling_and_shaping_are_as_bad_as_back_propagation(value: float) -> None:
    """Documented: each particle's cotangent reaches all through the fit, and LR is no way out."""

    def gaussian(name: str) -> Tensor:
        torch.manual_seed(5)
        theta = torch.tensor(0.5, dtype=F, requires_grad=True)
        manager = PropagationManager(name)
        x = manager.sample(Normal(theta.expand(P, 2), 1.0))

        def cost(x: Tensor) -> Tensor:
            return Plant.apply(x, value, 3).square().sum(1)

        if "GS" in name:
            manager.append_loss(x, lossfunc=cost)
        else:
            manager.append_loss(cost(x))
        return torch.autograd.grad(manager.loss(), theta)[0]

    for name in ("RP", "GR", "GS", "TP+GS"):
        assert not bool(gaussian(name).isfinite()), name


# -- deep chaos ----------------------------------------------------------------------------------

BETAS = (2.5, 3.5, 6.0)
TOTAL_PROPAGATIONS: dict[str, Callable[[], PropagationManager]] = {
    **{
        f"{target}, {weighting}": lambda t=target, w=weighting: PropagationManager(
            TotalProp(ivw_target=t, weighting=w)
        )
        for target in ("parameters", "node")
        for weighting in WEIGHTINGS
    },
    "kept": lambda: PropagationManager(TotalProp(k_interval=10)),
    "mesh": lambda: PropagationManager("TP+MESH", group_size=10),
}


def chaotic_gradient(
    manager: PropagationManager,
    beta: float,
    particles: int,
    horizon: int,
    after: int = 0,
    seed: int = 0,
) -> Tensor:
    """In 32 bits; ``after`` steps without noise are taken before the cost."""
    torch.manual_seed(seed)
    system = ChaoticRNN(horizon=horizon)
    parameter = torch.tensor(beta, requires_grad=True)
    x = system.initial_state(particles)
    for _ in range(horizon):
        x = manager.sample(system.transition(x, parameter))
    seen = x
    for _ in range(after):
        seen = system.mean(seen, torch.tensor(beta))
    return torch.autograd.grad(manager.loss(system.cost(seen)), parameter)[0]


@pytest.mark.parametrize("beta", BETAS)
@pytest.mark.parametrize("name", TOTAL_PROPAGATIONS)
def test_total_propagation_stays_finite_in_deep_chaos(name: str, beta: float) -> None:
    manager = TOTAL_PROPAGATIONS[name]()
    gradient = chaotic_gradient(manager, beta, 20, 100)
    assert bool(gradient.isfinite())
    assert all(0.0 <= weight <= 1.0 for weight in weights_of(manager))


@pytest.mark.parametrize("beta", BETAS)
def test_total_propagation_stays_finite_over_a_thousand_steps(beta: float) -> None:
    for name in ("TP", "TPX", "TP+MESH"):
        manager = PropagationManager(name, **({"group_size": 5} if "MESH" in name else {}))
        assert bool(chaotic_gradient(manager, beta, 10, 1000).isfinite())
        assert all(0.0 <= weight <= 1.0 for weight in weights_of(manager))
    # Or there would be nothing to be seen: RP overflows, LR does not.
    assert bool(chaotic_gradient(PropagationManager("LR"), beta, 10, 1000).isfinite())
    if beta > 3:
        assert not bool(chaotic_gradient(PropagationManager("RP"), beta, 10, 1000).isfinite())


@pytest.mark.parametrize("beta", [3.9, 6.0])
@pytest.mark.parametrize("name", TOTAL_PROPAGATIONS)
def test_a_cost_that_is_chaos_itself_goes_to_lr(name: str, beta: float) -> None:
    """600 steps without noise, whose derivative is infinite in 32 bits, follow the last sample."""
    manager = TOTAL_PROPAGATIONS[name]()
    gradient = chaotic_gradient(manager, beta, 20, 5, after=600)
    assert bool(gradient.isfinite())
    assert weights_of(manager)[-1] == 1.0
    assert not bool(chaotic_gradient(PropagationManager("RP"), beta, 20, 5, after=600).isfinite())


@pytest.mark.parametrize("beta", [3.5, 6.0])
def test_the_variance_of_rp_in_chaos_is_not_that_of_total_propagation(beta: float) -> None:
    sizes = {
        name: torch.stack(
            [chaotic_gradient(PropagationManager(name), beta, 50, 100, seed=k) for k in range(8)]
        ).abs()
        for name in ("RP", "LR", "TP")
    }
    assert float(sizes["RP"].median()) > 1e9
    # The largest of 8 absolute values each.
    assert float(sizes["TP"].max()) < 3 * float(sizes["LR"].max())


def test_weights_that_come_first_may_be_of_parameters_that_do_not_see_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The parameter acts on one coordinate; the other one's cotangent is infinite."""
    monkeypatch.setattr(tp, "_LARGE", 0)  # weights first, however few the particles are
    beta = torch.tensor([0.7], dtype=F, requires_grad=True)
    weight = torch.tensor([[1.0, 0.5], [0.5, 1.0]], dtype=F)
    found = {}
    for value in (None, *BAD):
        torch.manual_seed(1)
        manager = PropagationManager("TP")
        x = torch.linspace(-1, 1, 2 * P, dtype=F).reshape(P, 2)
        for _ in range(2):
            mixed = x @ weight
            mean = torch.where(torch.tensor([True, False]), beta * mixed, mixed)
            x = manager.sample(Normal(mean, 0.5))
        seen = x if value is None else Plant.apply(x, value, (3, 1))
        (found[value],) = torch.autograd.grad(manager.loss(seen.square().sum(1)), beta)
        if value is not None:
            # The last sample is left to LR.
            assert float(manager.statistics["lr_weight"][0]) == 1.0
    assert all(gradient.isfinite().all() for gradient in found.values())
