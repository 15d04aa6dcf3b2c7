"""Any distribution: gradients against exact values, contracts over a catalogue, precision.

A gradient is held to its exact value by z-scores, each of which raises a false alarm about once in
a million seeds (see :mod:`exact_moments`). The exact values are expectations in closed form, by
enumeration of what is discrete, or by quadrature over noise, differentiated by autograd.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import (
    AffineTransform,
    Bernoulli,
    Beta,
    Binomial,
    Categorical,
    Cauchy,
    Chi2,
    ComposeTransform,
    ContinuousBernoulli,
    Dirichlet,
    Distribution,
    Exponential,
    ExpTransform,
    FisherSnedecor,
    Gamma,
    Geometric,
    Gumbel,
    HalfCauchy,
    HalfNormal,
    Independent,
    InverseGamma,
    Kumaraswamy,
    Laplace,
    LKJCholesky,
    LogisticNormal,
    LogNormal,
    LowRankMultivariateNormal,
    MixtureSameFamily,
    Multinomial,
    MultivariateNormal,
    NegativeBinomial,
    Normal,
    OneHotCategorical,
    Pareto,
    Poisson,
    RelaxedBernoulli,
    RelaxedOneHotCategorical,
    StickBreakingTransform,
    StudentT,
    TanhTransform,
    TransformedDistribution,
    Uniform,
    VonMises,
    Weibull,
    Wishart,
)

from lightning_proppo import PropagationManager
from lightning_proppo.densities import (
    floating_tensors,
    flatten_transforms,
    log_density,
    widen,
    with_parameters,
)
from lightning_proppo.propagators import BIWProp, GSLoss, LRProp, RPProp, TotalProp

from .exact_moments import assert_mean

F = torch.float64
MANY = 60_000
Sampler = Callable[..., Tensor]


# -- exact gradients -----------------------------------------------------------------------------


def noise_grid() -> tuple[Tensor, Tensor]:
    """Points [Q] and weights of standard normal noise; exact to rounding for analytic costs."""
    points = torch.linspace(-9.0, 9.0, 1201, dtype=F)
    weights = torch.exp(-0.5 * points.square())
    return points, weights / weights.sum()


def normal_mean(f: Callable[[Tensor], Tensor], loc: Tensor, scale: Tensor) -> Tensor:
    """The expectation of f(x), x ~ N(loc, scale^2), of scalars."""
    points, weights = noise_grid()
    return (weights * f(loc + scale * points)).sum()


@dataclass
class Case:
    """An expectation that is known.

    Attributes:
        name: for pytest.
        values: the parameters, [K].
        costs: rolls out with parameters [P, K] and returns costs [P].
        exact: the expectation, as a function of parameters [K].
        reparameterized: whether RP and TP can be used.
    """

    name: str
    values: list[float]
    costs: Callable[[Sampler, Tensor], Tensor]
    exact: Callable[[Tensor], Tensor]
    reparameterized: bool = True

    def __repr__(self) -> str:
        return self.name


def one(
    name: str, values: list[float], make: Any, f: Any, exact: Any, rsample: bool = True
) -> Case:
    """A cost f of one sample of a distribution made from columns of the parameters."""
    return Case(name, values, lambda sample, t: f(sample(make(*t.unbind(1)))), exact, rsample)


TABLE = torch.tensor([0.3, -1.0, 2.0], dtype=F)


def bernoulli_pair_exact(t: Tensor) -> Tensor:
    p, q = t.sigmoid()
    return p * q * 3.0 + p * (1 - q) - (1 - p) * q


def bernoulli_pair(sample: Sampler, t: Tensor) -> Tensor:
    x = sample(Independent(Bernoulli(logits=t), 1))
    a, b = x.unbind(1)
    return 3.0 * a * b + a * (1 - b) - (1 - a) * b


def tril(t: Tensor) -> Tensor:
    """[..., 3] -> [..., 2, 2]."""
    a, b, c = t.unbind(-1)
    rows = [torch.stack([a, torch.zeros_like(a)], -1), torch.stack([b, c], -1)]
    return torch.stack(rows, -2)


QUADRATIC = torch.tensor([[1.0, 0.4], [0.4, -0.6]], dtype=F)


def quadratic(x: Tensor) -> Tensor:
    return torch.einsum("pi,ij,pj->p", x, QUADRATIC, x)


def quadratic_mean(mean: Tensor, covariance: Tensor) -> Tensor:
    return mean @ QUADRATIC @ mean + (QUADRATIC * covariance).sum()


def tanh_normal(loc: Tensor, scale: Tensor) -> Distribution:
    return TransformedDistribution(Normal(loc, scale), [TanhTransform()])


def learnt_scale(loc: Tensor, scale: Tensor) -> Distribution:
    """A squashed normal whose scale is in a transform: only tanh may be left out."""
    base = Normal(loc, torch.full_like(loc, 0.7))
    return TransformedDistribution(base, [AffineTransform(0.2, scale), TanhTransform()])


def learnt_range(loc: Tensor, scale: Tensor) -> Distribution:
    """A squashed normal whose range is learnt: the density must be that of the whole."""
    base = Normal(loc, torch.full_like(loc, 0.7))
    return TransformedDistribution(
        base, [TanhTransform(), AffineTransform(0.0, 1 + scale), ExpTransform()]
    )


def mixture(sample: Sampler, t: Tensor) -> Tensor:
    parts = Normal(t[:, 2:4], t[:, 4:6])
    return sample(MixtureSameFamily(Categorical(logits=t[:, :2]), parts)).sin()


def mixture_exact(t: Tensor) -> Tensor:
    p = t[:2].softmax(0)
    return sum(p[k] * normal_mean(torch.sin, t[2 + k], t[4 + k]) for k in range(2))  # type: ignore[return-value]


def relaxed_exact(t: Tensor) -> Tensor:
    u = (torch.arange(200_000, dtype=F) + 0.5) / 200_000
    return ((t[0] + u.logit()) / 0.7).sigmoid().square().mean()


def bessel_ratio(k: Tensor) -> Tensor:
    return torch.special.i1(k) / torch.special.i0(k)


ONE_SAMPLE = [
    one(
        "categorical",
        [0.2, -0.5, 0.4],
        lambda *t: Categorical(logits=torch.stack(t, 1)),
        lambda x: TABLE[x],
        lambda t: t.softmax(0) @ TABLE,
        False,
    ),
    one(
        "categorical of probabilities",
        [0.2, 0.5, 0.4],
        lambda *t: Categorical(probs=torch.stack(t, 1)),
        lambda x: TABLE[x],
        lambda t: t @ TABLE / t.sum(),
        False,
    ),
    one(
        "one-hot",
        [0.2, -0.5, 0.4],
        lambda *t: OneHotCategorical(logits=torch.stack(t, 1)),
        lambda x: x @ TABLE,
        lambda t: t.softmax(0) @ TABLE,
        False,
    ),
    Case("bernoulli pair", [0.4, -0.3], bernoulli_pair, bernoulli_pair_exact, False),
    one(
        "poisson",
        [0.6],
        lambda t: Poisson(t.exp()),
        lambda n: n.square(),
        lambda t: (t.exp() + (2 * t).exp()).sum(),
        False,
    ),
    one(
        "binomial",
        [0.3],
        lambda t: Binomial(5, logits=t),
        lambda n: n.square(),
        lambda t: (5 * t.sigmoid() * (1 - t.sigmoid()) + 25 * t.sigmoid().square()).sum(),
        False,
    ),
    one(
        "geometric",
        [0.4],
        lambda p: Geometric(probs=p),
        lambda n: 0.5**n,
        lambda p: (p / (1 - 0.5 * (1 - p))).sum(),
        False,
    ),
    one(
        "negative binomial",
        [0.4],
        lambda p: NegativeBinomial(3, probs=p),
        lambda n: 0.5**n,
        lambda p: ((1 - p) / (1 - 0.5 * p)).pow(3).sum(),
        False,
    ),
    one(
        "multinomial",
        [0.2, -0.5, 0.4],
        lambda *t: Multinomial(4, logits=torch.stack(t, 1)),
        lambda n: n @ TABLE,
        lambda t: 4 * t.softmax(0) @ TABLE,
        False,
    ),
    one(
        "von Mises",
        [0.5, 1.3],
        VonMises,
        torch.cos,
        lambda t: t[0].cos() * bessel_ratio(t[1]),
        False,
    ),
    Case("mixture", [0.3, -0.4, -1.0, 0.8, 0.5, 0.4], mixture, mixture_exact, False),
    one(
        "normal",
        [0.4, 0.7],
        Normal,
        lambda x: x.square() + x.sin(),
        lambda t: t.square().sum() + t[0].sin() * (-t[1].square() / 2).exp(),
    ),
    one(
        "log-normal",
        [0.1, 0.3],
        LogNormal,
        torch.square,
        lambda t: (2 * t[0] + 2 * t[1].square()).exp(),
    ),
    one(
        "gamma",
        [2.5, 1.5],
        Gamma,
        torch.square,
        lambda t: t[0] * (t[0] + 1) / t[1].square(),
    ),
    one(
        "beta",
        [2.5, 1.5],
        Beta,
        torch.square,
        lambda t: t[0] * (t[0] + 1) / (t.sum() * (t.sum() + 1)),
    ),
    one(
        "dirichlet",
        [2.5, 1.5, 3.0],
        lambda *t: Dirichlet(torch.stack(t, 1)),
        lambda x: x.square() @ TABLE,
        lambda t: (t * (t + 1)) @ TABLE / (t.sum() * (t.sum() + 1)),
    ),
    one(
        "laplace",
        [0.3, 0.6],
        Laplace,
        torch.square,
        lambda t: t[0].square() + 2 * t[1].square(),
    ),
    one(
        "Student's t",
        [0.3, 0.6],
        lambda loc, scale: StudentT(torch.full_like(loc, 9.0), loc, scale),
        torch.square,
        lambda t: t[0].square() + t[1].square() * 9 / 7,
    ),
    one(
        "relaxed Bernoulli",
        [0.4],
        lambda t: RelaxedBernoulli(torch.tensor(0.7, dtype=F), logits=t),
        torch.square,
        relaxed_exact,
    ),
    one(
        "tanh-squashed",
        [0.5, 0.8],
        tanh_normal,
        lambda y: (y - 0.3).square(),
        lambda t: normal_mean(lambda x: (x.tanh() - 0.3).square(), t[0], t[1]),
    ),
    one(
        "tanh-squashed, scale learnt",
        [0.5, 0.8],
        learnt_scale,
        lambda y: (y - 0.3).square(),
        lambda t: normal_mean(
            lambda x: ((0.2 + t[1] * x).tanh() - 0.3).square(), t[0], torch.tensor(0.7, dtype=F)
        ),
    ),
    one(
        "tanh-squashed, range learnt",
        [0.5, 0.8],
        learnt_range,
        torch.sin,
        lambda t: normal_mean(
            lambda x: (x.tanh() * (1 + t[1])).exp().sin(), t[0], torch.tensor(0.7, dtype=F)
        ),
    ),
    Case(
        "multivariate normal",
        [0.4, -0.3, 0.8, 0.3, 0.6],
        lambda sample, t: quadratic(
            sample(MultivariateNormal(t[:, :2], scale_tril=tril(t[:, 2:])))
        ),
        lambda t: quadratic_mean(t[:2], tril(t[2:]) @ tril(t[2:]).T),
    ),
    Case(
        "covariance matrix",
        [0.4, -0.3, 0.8, 0.3, 0.6],
        lambda sample, t: quadratic(
            sample(MultivariateNormal(t[:, :2], tril(t[:, 2:]) @ tril(t[:, 2:]).mT))
        ),
        lambda t: quadratic_mean(t[:2], tril(t[2:]) @ tril(t[2:]).T),
    ),
    Case(
        "low rank",
        [0.4, -0.3, 0.8, 0.3, 0.6, 0.5],
        lambda sample, t: quadratic(
            sample(LowRankMultivariateNormal(t[:, :2], t[:, 2:4, None], t[:, 4:]))
        ),
        lambda t: quadratic_mean(t[:2], torch.outer(t[2:4], t[2:4]) + t[4:].diag()),
    ),
    Case(
        "event of two axes",
        [0.4, -0.3, 0.8, 0.3, 0.7],
        lambda sample, t: (
            sample(Independent(Normal(t[:, :4].reshape(-1, 2, 2), t[:, 4, None, None]), 2))
            .square()
            .sum((1, 2))
        ),
        lambda t: t[:4].square().sum() + 4 * t[4].square(),
    ),
    Case(
        "squashed event of two axes",
        [0.4, -0.3, 0.8, 0.3, 0.7],
        lambda sample, t: (
            sample(
                Independent(
                    TransformedDistribution(
                        Independent(Normal(t[:, :4].reshape(-1, 2, 2), t[:, 4, None, None]), 1),
                        [ComposeTransform([TanhTransform(), AffineTransform(1.0, 2.0)])],
                    ),
                    1,
                )
            )
            .square()
            .sum((1, 2))
        ),
        lambda t: sum(
            normal_mean(lambda x: (1 + 2 * x.tanh()).square(), t[k], t[4]) for k in range(4)
        ),
    ),
]


def particle_estimates(estimator: Any, case: Case) -> tuple[Tensor, Tensor]:
    """Each particle's gradient [P, K] at parameters of its own, and the exact one [K]."""
    theta = torch.tensor(case.values, dtype=F)
    value = theta.clone().requires_grad_()
    (exact,) = torch.autograd.grad(case.exact(value), value)
    each = theta.expand(MANY, -1).clone().requires_grad_()
    manager = PropagationManager(estimator)
    torch.manual_seed(1)
    with warnings.catch_warnings():  # of gradients taken one by one
        warnings.simplefilter("ignore", UserWarning)
        (found,) = torch.autograd.grad(manager.loss(case.costs(manager.sample, each)), each)
    return found * MANY, exact


@pytest.mark.parametrize("case", ONE_SAMPLE, ids=repr)
def test_lr_of_one_sample(case: Case) -> None:
    assert_mean(*particle_estimates("LR", case))


@pytest.mark.parametrize("estimator", ["RP", "TP", "TPX"])
@pytest.mark.parametrize("case", [c for c in ONE_SAMPLE if c.reparameterized], ids=repr)
def test_rp_and_mixtures_with_it_of_one_sample(case: Case, estimator: str) -> None:
    assert_mean(*particle_estimates(estimator, case))


@pytest.mark.parametrize("name", ["categorical", "poisson", "tanh-squashed", "mixture"])
def test_a_gradient_that_is_wrong_by_a_tenth_is_found_out(name: str) -> None:
    (case,) = [case for case in ONE_SAMPLE if case.name == name]
    found, exact = particle_estimates("LR", case)
    with pytest.raises(AssertionError, match="z-scores"):
        assert_mean(1.1 * found, exact)


# Rollouts of several steps


LR_HERE = LRProp()


def latent_then_normal(sample: Sampler, t: Tensor) -> Tensor:
    """A discrete latent, and a normal state whose mean depends on it."""
    z = sample(Categorical(logits=t[:, :3]), local_propagator=LR_HERE)
    x = sample(Normal(t[:, 3] * TABLE[z] + t[:, 4], t[:, 5]))
    return (x - 0.5).square() + TABLE[z]


def latent_then_normal_exact(t: Tensor) -> Tensor:
    means = t[3] * TABLE + t[4]
    return t[:3].softmax(0) @ ((means - 0.5).square() + t[5].square() + TABLE)


def normal_then_counts(sample: Sampler, t: Tensor) -> Tensor:
    x = sample(Normal(t[:, 0], t[:, 1]))
    n = sample(Poisson((0.5 * x + t[:, 2]).exp()))
    return n + 0.1 * x.square()


def normal_then_counts_exact(t: Tensor) -> Tensor:
    counts = (0.5 * t[0] + t[1].square() / 8 + t[2]).exp()
    return counts + 0.1 * (t[0].square() + t[1].square())


def coins(sample: Sampler, t: Tensor) -> Tensor:
    """Each coin depends on the one before; costs depend on pairs."""
    z, total = torch.zeros_like(t[:, 0]), torch.zeros_like(t[:, 0])
    for _ in range(3):
        before, z = z, sample(Bernoulli(logits=t[:, 0] + t[:, 1] * z))
        total = total + 2.0 * z - 3.0 * z * before
    return total


def coins_exact(t: Tensor) -> Tensor:
    total = torch.zeros((), dtype=F)
    for path in torch.cartesian_prod(*[torch.tensor([0.0, 1.0], dtype=F)] * 3):
        before = torch.cat([torch.zeros(1, dtype=F), path[:-1]])
        p = (t[0] + t[1] * before).sigmoid()
        total = (
            total
            + torch.where(path == 1, p, 1 - p).prod() * (2.0 * path - 3.0 * path * before).sum()
        )
    return total


def squashed_action(sample: Sampler, t: Tensor) -> Tensor:
    """A state, an action that is squashed, the next state."""
    x = sample(Normal(t[:, 0], 0.5 + torch.zeros_like(t[:, 0])))
    u = sample(tanh_normal(t[:, 1] * x, t[:, 2]))
    y = sample(Normal(x + u, 0.3 + torch.zeros_like(u)))
    return (y - 1.0).square() + 0.1 * u.square()


def squashed_action_exact(t: Tensor) -> Tensor:
    points, weights = (v[::4] for v in noise_grid())
    weights = weights / weights.sum()
    x = (t[0] + 0.5 * points).unsqueeze(1)
    u = (t[1] * x + t[2] * points).tanh()
    return weights @ ((x + u - 1.0).square() + 0.1 * u.square()) @ weights + 0.09


def mixture_of_actions(sample: Sampler, t: Tensor) -> Tensor:
    """A squashed mixture: its base has no rsample."""
    x = sample(Normal(t[:, 0], 0.5 + torch.zeros_like(t[:, 0])))
    parts = Normal(torch.stack([t[:, 1] * x, t[:, 2] - x], 1), torch.full_like(t[:, :2], 0.6))
    chosen = MixtureSameFamily(Categorical(logits=t[:, 3:5]), parts)
    u = sample(TransformedDistribution(chosen, [TanhTransform()]))
    return (u + 0.3 * x).square()


def mixture_of_actions_exact(t: Tensor) -> Tensor:
    points, weights = (v[::4] for v in noise_grid())
    weights = weights / weights.sum()
    x = (t[0] + 0.5 * points).unsqueeze(1)
    p = t[3:5].softmax(0)
    return sum(  # type: ignore[return-value]
        p[k] * (weights @ ((mean + 0.6 * points).tanh() + 0.3 * x).square() @ weights)
        for k, mean in enumerate([t[1] * x, t[2] - x])
    )


ROLLOUTS = [
    Case(
        "latent then normal",
        [0.2, -0.5, 0.4, 0.7, -0.2, 0.6],
        latent_then_normal,
        latent_then_normal_exact,
    ),
    Case(
        "normal then counts", [0.3, 0.5, 0.1], normal_then_counts, normal_then_counts_exact, False
    ),
    Case("coins", [0.3, -0.8], coins, coins_exact, False),
    Case("squashed action", [0.4, -0.9, 0.7], squashed_action, squashed_action_exact),
    Case(
        "mixture of actions",
        [0.4, -0.9, 0.7, 0.3, -0.2],
        mixture_of_actions,
        mixture_of_actions_exact,
        False,
    ),
]


@pytest.mark.parametrize("case", ROLLOUTS, ids=repr)
def test_lr_of_a_rollout(case: Case) -> None:
    assert_mean(*particle_estimates("LR", case))


@pytest.mark.parametrize("estimator", ["TP", "TPX"])
@pytest.mark.parametrize("case", [c for c in ROLLOUTS if c.reparameterized], ids=repr)
def test_total_propagation_of_a_rollout(case: Case, estimator: str) -> None:
    """Where a latent is discrete, LR serves for its node, and TP for the others."""
    assert_mean(*particle_estimates(estimator, case))


@pytest.mark.parametrize("estimator", ["LR", "RP", "TP", "TPX"])
def test_noise_with_a_support_of_its_own_added_to_a_state(estimator: str) -> None:
    """x + noise, with noise of a gamma distribution around a state and around a parameter."""

    def costs(sample: Sampler, t: Tensor) -> Tensor:
        gamma = {"concentration": torch.full_like(t[:, 1], 6.0), "rate": t[:, 1]}
        forward = sample.__self__.forward  # type: ignore[attr-defined]
        x = forward(t[:, 0], dist_class=Gamma, dist_params=gamma)
        y = forward(0.5 * x, dist_class=Gamma, dist_params=gamma)
        return y.square()

    def exact(t: Tensor) -> Tensor:
        mean = 0.5 * (t[0] + 6 / t[1]) + 6 / t[1]
        return mean.square() + 1.25 * 6 / t[1].square()

    assert_mean(*particle_estimates(estimator, Case("gamma noise", [0.4, 3.0], costs, exact)))


@pytest.mark.parametrize("estimator", ["LR", "TP", "TPX"])
def test_fixed_noise_is_squashed_before_it_is_added(estimator: str) -> None:
    """To a constant: the transform is left out of the density; to a parameter: it is inverted."""

    def costs(sample: Sampler, t: Tensor) -> Tensor:
        forward = sample.__self__.forward  # type: ignore[attr-defined]

        def around(x: Tensor) -> Tensor:
            params = [Normal(t[:, 1], 0.5 + 0 * t[:, 1]), [TanhTransform()]]
            return forward(x, dist_class=TransformedDistribution, dist_params=params)

        return around(torch.full_like(t[:, 0], 0.3)).square() + around(t[:, 0]).sin()

    def exact(t: Tensor) -> Tensor:
        s = torch.tensor(0.5, dtype=F)
        return normal_mean(lambda u: (0.3 + u.tanh()).square(), t[1], s) + normal_mean(
            lambda u: (t[0] + u.tanh()).sin(), t[1], s
        )

    assert_mean(*particle_estimates(estimator, Case("squashed noise", [0.2, 0.3], costs, exact)))


# -- a contract over a catalogue -----------------------------------------------------------------

P = 7
Shape = tuple[int, ...]


def positive(*shape: int) -> Tensor:
    """New parameters between 1/2 and 3/2."""
    return (torch.rand(shape, dtype=F) + 0.5).requires_grad_()


def lower(*shape: int) -> Tensor:
    return torch.diag_embed(positive(*shape))


def two(family: Any) -> Callable[[Shape], Distribution]:
    return lambda s: family(positive(*s), positive(*s))


def by(family: Any) -> Callable[[Shape], Distribution]:
    return lambda s: family(positive(*s))


def logits(family: Any, *args: Any, event: Shape = ()) -> Callable[[Shape], Distribution]:
    return lambda s: family(*args, logits=positive(*s, *event))


TEMPERATURE = torch.tensor(0.7, dtype=F)
CATALOGUE: dict[str, Callable[[Shape], Distribution]] = {
    "Bernoulli": logits(Bernoulli),
    "Beta": two(Beta),
    "Binomial": logits(Binomial, 5),
    "Categorical": logits(Categorical, event=(3,)),
    "Cauchy": two(Cauchy),
    "Chi2": by(Chi2),
    "ContinuousBernoulli": logits(ContinuousBernoulli),
    "Dirichlet": lambda s: Dirichlet(positive(*s, 3)),
    "Exponential": by(Exponential),
    "FisherSnedecor": two(FisherSnedecor),
    "Gamma": two(Gamma),
    "Geometric": logits(Geometric),
    "Gumbel": two(Gumbel),
    "HalfCauchy": by(HalfCauchy),
    "HalfNormal": by(HalfNormal),
    "InverseGamma": two(InverseGamma),
    "Kumaraswamy": two(Kumaraswamy),
    "LKJCholesky": lambda s: LKJCholesky(3, positive(*s)),
    "Laplace": two(Laplace),
    "LogNormal": two(LogNormal),
    "LogisticNormal": lambda s: LogisticNormal(positive(*s, 3), positive(*s, 3)),
    "LowRankMultivariateNormal": lambda s: LowRankMultivariateNormal(
        positive(*s, 3), positive(*s, 3, 2), positive(*s, 3)
    ),
    "MixtureSameFamily": lambda s: MixtureSameFamily(
        Categorical(logits=positive(*s, 2)), Normal(positive(*s, 2), positive(*s, 2))
    ),
    "MixtureSameFamily of vectors": lambda s: MixtureSameFamily(
        Categorical(logits=positive(*s, 2)),
        Independent(Normal(positive(*s, 2, 3), positive(*s, 2, 3)), 1),
    ),
    "Multinomial": logits(Multinomial, 4, event=(3,)),
    "MultivariateNormal": lambda s: MultivariateNormal(positive(*s, 3), scale_tril=lower(*s, 3)),
    "MultivariateNormal of covariances": lambda s: MultivariateNormal(
        positive(*s, 3), covariance_matrix=lower(*s, 3)
    ),
    "MultivariateNormal of precisions": lambda s: MultivariateNormal(
        positive(*s, 3), precision_matrix=lower(*s, 3)
    ),
    "NegativeBinomial": logits(NegativeBinomial, 5),
    "Normal": two(Normal),
    "OneHotCategorical": logits(OneHotCategorical, event=(3,)),
    "Pareto": lambda s: Pareto(torch.ones(s, dtype=F), positive(*s)),
    "Poisson": by(Poisson),
    "RelaxedBernoulli": logits(RelaxedBernoulli, TEMPERATURE),
    "RelaxedOneHotCategorical": logits(RelaxedOneHotCategorical, TEMPERATURE, event=(3,)),
    "StudentT": by(StudentT),
    "VonMises": two(VonMises),
    "Weibull": two(Weibull),
    "Wishart": lambda s: Wishart(positive(*s) + 9, scale_tril=lower(*s, 3)),
    "squashed": lambda s: tanh_normal(positive(*s), positive(*s)),
    "squashed, scale learnt": lambda s: learnt_scale(positive(*s), positive(*s)),
    "squashed, range learnt": lambda s: learnt_range(positive(*s), positive(*s)),
    "squashed vectors": lambda s: TransformedDistribution(
        MultivariateNormal(positive(*s, 3), scale_tril=lower(*s, 3)), [TanhTransform()]
    ),
    "squashed mixture": lambda s: TransformedDistribution(
        MixtureSameFamily(
            Categorical(logits=positive(*s, 2)), Normal(positive(*s, 2), positive(*s, 2))
        ),
        [TanhTransform()],
    ),
    "broken sticks": lambda s: TransformedDistribution(
        Normal(positive(*s, 3), positive(*s, 3)), [StickBreakingTransform()]
    ),
}
# Batch shapes, and how many of their axes belong to an event.
SHAPES: list[tuple[Shape, int]] = [
    ((P,), 0),
    ((P, 2), 0),
    ((P, 2), 1),
    ((P, 2, 3), 1),
    ((P, 2, 3), 2),
]


def made(name: str, shape: Shape, reinterpreted: int) -> tuple[Distribution, list[Tensor]]:
    """A distribution, and its parameters to learn."""
    torch.manual_seed(0)
    dist = CATALOGUE[name](shape)
    leaves = {id(t): t for t in all_leaves(dist)}
    return (Independent(dist, reinterpreted) if reinterpreted else dist), list(leaves.values())


def all_leaves(dist: Distribution) -> Iterator[Tensor]:
    stack = [t.grad_fn for t in floating_tensors(dist) if t.grad_fn is not None]
    yield from (t for t in floating_tensors(dist) if t.is_leaf and t.requires_grad)
    while stack:
        function = stack.pop()
        if hasattr(function, "variable"):
            yield function.variable
        stack.extend(f for f, _ in function.next_functions if f is not None)


def some_cost(x: Tensor) -> Tensor:
    return x.to(F).reshape(P, -1).sin().sum(1)


def gradients(
    estimator: str, name: str, shape: Shape, reinterpreted: int
) -> tuple[list[Tensor], Tensor, float | None]:
    """Of each parameter; the sample; the weight of LR."""
    dist, leaves = made(name, shape, reinterpreted)
    manager = PropagationManager(estimator)
    torch.manual_seed(3)
    x = manager.sample(dist)
    assert x.shape == dist.batch_shape + dist.event_shape
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        found = torch.autograd.grad(manager.loss(some_cost(x)), leaves)
    weights = manager.statistics.get("lr_weight")
    return list(found), x.detach(), None if not weights else float(weights[0])


NO_RSAMPLE = [name for name in CATALOGUE if not made(name, (P,), 0)[0].has_rsample]
WITH_RSAMPLE = [name for name in CATALOGUE if name not in NO_RSAMPLE]


@pytest.mark.parametrize("name", CATALOGUE)
def test_lr_is_the_score_times_the_deviation_from_the_others(name: str) -> None:
    for shape, reinterpreted in SHAPES:
        found, x, _ = gradients("LR", name, shape, reinterpreted)
        dist, leaves = made(name, shape, reinterpreted)
        torch.manual_seed(3)
        torch.testing.assert_close(dist.sample(), x)
        costs = some_cost(x)
        deviations = costs - (costs.sum() - costs) / (P - 1)
        scores = dist.log_prob(x).reshape(P, -1).sum(1)
        expected = torch.autograd.grad((deviations * scores).mean(), leaves)
        torch.testing.assert_close(found, list(expected), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("name", WITH_RSAMPLE)
def test_rp_is_what_autograd_says(name: str) -> None:
    for shape, reinterpreted in SHAPES:
        found, _, _ = gradients("RP", name, shape, reinterpreted)
        dist, leaves = made(name, shape, reinterpreted)
        torch.manual_seed(3)
        expected = torch.autograd.grad(some_cost(dist.rsample()).mean(), leaves)
        torch.testing.assert_close(found, list(expected))


@pytest.mark.parametrize("name", WITH_RSAMPLE)
def test_tp_is_a_mixture_of_lr_and_rp(name: str) -> None:
    """With one weight for all parameters: the one that it reports."""
    for shape, reinterpreted in SHAPES:
        lr, x, _ = gradients("LR", name, shape, reinterpreted)
        rp, y, _ = gradients("RP", name, shape, reinterpreted)
        tp, z, k = gradients("TP", name, shape, reinterpreted)
        torch.testing.assert_close(x, z)
        torch.testing.assert_close(y, z)
        assert k is not None
        assert 0 <= k <= 1
        expected = [k * a + (1 - k) * b for a, b in zip(lr, rp, strict=True)]
        # The weight is noted in 32 bits.
        torch.testing.assert_close(tp, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", WITH_RSAMPLE)
def test_tpx_lies_between_lr_and_rp_coordinate_by_coordinate(name: str) -> None:
    for shape, reinterpreted in SHAPES:
        lr, _, _ = gradients("LR", name, shape, reinterpreted)
        rp, _, _ = gradients("RP", name, shape, reinterpreted)
        tpx, _, k = gradients("TPX", name, shape, reinterpreted)
        assert k is not None
        assert 0 <= k <= 1
        for a, b, mixed in zip(lr, rp, tpx, strict=True):
            assert bool(torch.isfinite(mixed).all())
            if mixed.shape == shape and not torch.equal(a, b):
                # A particle's row depends on its own coordinates only, with weights in [0, 1].
                low, high = torch.minimum(a, b) - 1e-9, torch.maximum(a, b) + 1e-9
                assert bool(((low <= mixed) & (mixed <= high)).all())


@pytest.mark.parametrize("estimator", ["RP", "TP", "TPX", "GR"])
@pytest.mark.parametrize("name", NO_RSAMPLE)
def test_without_rsample_lr_must_be_used(name: str, estimator: str) -> None:
    for shape, reinterpreted in SHAPES:
        dist, _ = made(name, shape, reinterpreted)
        with pytest.raises(TypeError, match=r"has no rsample; use LR \(LRProp\)") as raised:
            PropagationManager(estimator).sample(dist)
        assert name.split()[0] in str(raised.value) or name.startswith("squashed")


def test_what_has_no_rsample_is_named_with_what_it_is_wrapped_in() -> None:
    mixed = MixtureSameFamily(Categorical(torch.ones(P, 2)), Normal(torch.zeros(P, 2), 1.0))
    dist = TransformedDistribution(mixed, [TanhTransform()])
    with pytest.raises(TypeError, match=r"TransformedDistribution\(MixtureSameFamily\) has no rs"):
        PropagationManager("TP").sample(dist)


@pytest.mark.parametrize("name", CATALOGUE)
@pytest.mark.parametrize("estimator", ["LR", "TP"])
def test_particles_must_come_first(name: str, estimator: str) -> None:
    dist, _ = made(name, (), 0)
    if estimator == "TP" and not dist.has_rsample:
        return
    with pytest.raises(ValueError, match=r"dist must have particles first.*expand"):
        PropagationManager(estimator).sample(dist)


def test_integer_samples() -> None:
    for dist, shape in (
        (Categorical(torch.ones(P, 3)), (P,)),
        (Categorical(torch.ones(P, 2, 3)), (P, 2)),
    ):
        x = PropagationManager("LR").sample(dist)
        assert x.dtype == torch.int64
        assert x.shape == shape
        assert not x.requires_grad
    manager = PropagationManager("LR")
    with pytest.raises(TypeError, match=r"floating point; got dtype torch\.int64"):
        manager.loss(manager.sample(Categorical(torch.ones(P, 3))))
