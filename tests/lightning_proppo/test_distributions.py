"""Any distribution: gradients against exact values, contracts over a catalogue, precision.

A gradient is held to its exact value by z-scores, each of which raises a false alarm about once in
a million seeds (see :mod:`exact_moments`). The exact values are expectations in closed form, by
enumeration of what is discrete, or by quadrature over noise, differentiated by autograd.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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
from torch.distributions.transforms import Transform

from lightning_proppo import PropagationManager
from lightning_proppo.densities import flatten_transforms, log_density, with_parameters
from lightning_proppo.precision import floating_tensors, widen
from lightning_proppo.propagators import GSLoss, LRProp, RPProp

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
    base = Normal(loc, torch.full_like(loc, 0.75))
    return TransformedDistribution(base, [AffineTransform(0.25, scale), TanhTransform()])


def learnt_range(loc: Tensor, scale: Tensor) -> Distribution:
    """A squashed normal whose range is learnt: the density must be that of the whole."""
    base = Normal(loc, torch.full_like(loc, 0.75))
    return TransformedDistribution(
        base, [TanhTransform(), AffineTransform(0.0, scale), ExpTransform()]
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
            lambda x: ((0.25 + t[1] * x).tanh() - 0.3).square(), t[0], torch.tensor(0.75, dtype=F)
        ),
    ),
    one(
        "tanh-squashed, range learnt",
        [0.5, 0.8],
        learnt_range,
        torch.sin,
        lambda t: normal_mean(
            lambda x: (x.tanh() * t[1]).exp().sin(), t[0], torch.tensor(0.75, dtype=F)
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


class Kind:
    """In which precision the catalogue makes its parameters."""

    dtype = F


@contextmanager
def parameters_in(dtype: torch.dtype) -> Iterator[None]:
    Kind.dtype = dtype
    try:
        yield
    finally:
        Kind.dtype = F


def positive(*shape: int) -> Tensor:
    """New parameters between 1/2 and 3/2, the same numbers in every precision."""
    values = torch.rand(shape, dtype=F) + 0.5
    return values.bfloat16().to(Kind.dtype).requires_grad_()


def lower(*shape: int) -> Tensor:
    return torch.diag_embed(positive(*shape))


def two(family: Any) -> Callable[[Shape], Distribution]:
    return lambda s: family(positive(*s), positive(*s))


def by(family: Any) -> Callable[[Shape], Distribution]:
    return lambda s: family(positive(*s))


def logits(family: Any, *args: Any, event: Shape = ()) -> Callable[[Shape], Distribution]:
    return lambda s: family(*args, logits=positive(*s, *event))


def temperature() -> Tensor:
    return torch.tensor(0.75, dtype=Kind.dtype)


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
    "Pareto": lambda s: Pareto(torch.ones(s, dtype=Kind.dtype), positive(*s)),
    "Poisson": by(Poisson),
    "RelaxedBernoulli": lambda s: RelaxedBernoulli(temperature(), logits=positive(*s)),
    "RelaxedOneHotCategorical": lambda s: RelaxedOneHotCategorical(
        temperature(), logits=positive(*s, 3)
    ),
    "StudentT": by(StudentT),
    "VonMises": two(VonMises),
    "Weibull": two(Weibull),
    "Wishart": lambda s: Wishart(8 * positive(*s), scale_tril=lower(*s, 3)),
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
        for found, a, b in zip(tp, lr, rp, strict=True):
            # The weight is noted in 32 bits.
            allowed = 1e-9 + 2**-24 * (a - b).abs()
            assert bool(((found - (k * a + (1 - k) * b)).abs() <= allowed).all())


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


# -- saturated transforms ------------------------------------------------------------------------


@pytest.mark.parametrize("estimator", ["LR", "RP", "TP", "TPX"])
@pytest.mark.parametrize("events", [0, 1, 2])
def test_saturated_actions_have_a_gradient(estimator: str, events: int) -> None:
    """In 32 bits they are 1.0 exactly, where tanh has no inverse."""
    loc = torch.full((P, 2, 3), 12.0, requires_grad=True)
    scale = torch.full((P, 2, 3), 0.5, requires_grad=True)
    dist: Distribution = TransformedDistribution(Normal(loc, scale), [TanhTransform()])
    dist = Independent(dist, events) if events else dist
    manager = PropagationManager(estimator)
    x = manager.sample(dist)
    assert bool((x == 1).all())
    assert not bool(torch.isfinite(Independent(dist, 3 - events).log_prob(x.detach())).any())
    costs = x.flatten(1).sum(1) + torch.arange(P)
    found = torch.autograd.grad(manager.loss(costs), [loc, scale])
    assert all(bool(torch.isfinite(g).all()) for g in found)
    if estimator == "LR":
        assert all(bool((g != 0).any()) for g in found)


def test_a_transform_that_is_no_bijection_is_a_part_of_the_cost() -> None:
    """Its density would be wrong; the base's is right."""

    class Fold(Transform):
        domain = codomain = torch.distributions.constraints.real
        bijective = False

        def _call(self, x: Tensor) -> Tensor:
            return x.abs()

    def folded(loc: Tensor, scale: Tensor) -> Distribution:
        return TransformedDistribution(Normal(loc, scale), [Fold()])

    case = one(
        "folded",
        [0.4, 0.7],
        folded,
        torch.square,
        lambda t: t.square().sum(),
    )
    for estimator in ("LR", "TP", "TPX"):
        assert_mean(*particle_estimates(estimator, case))


class Captures(Transform):
    """A transform whose parameters stand nowhere in its attributes."""

    domain = codomain = torch.distributions.constraints.real
    bijective = True

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def _call(self, x: Tensor) -> Tensor:
        return self.function(x)


def test_parameters_of_transforms_are_found_wherever_they_are() -> None:
    w = torch.ones(2, requires_grad=True)
    fixed, learnt, module = (
        Captures(torch.exp),
        Captures(lambda x: x * w),
        Captures(nn.Linear(2, 2)),
    )
    x = torch.ones(P, 2, requires_grad=True)
    for transforms, count in (
        ([], 0),
        ([fixed], 0),
        ([fixed, TanhTransform()], 0),
        ([learnt], 1),
        ([fixed, learnt, fixed], 2),
        ([module, fixed], 1),
        ([AffineTransform(w, 1.0), TanhTransform()], 1),
        ([AffineTransform(w.detach(), 1.0), TanhTransform()], 0),
    ):
        assert with_parameters(transforms, x) == count
        with torch.no_grad():
            assert with_parameters(transforms, x) == count


def test_nested_transforms_are_found_below_one_another() -> None:
    tanh, affine = TanhTransform(), AffineTransform(0.0, 2.0)
    normal = Normal(torch.zeros(P, 2, 3), 1.0)
    inner = Independent(TransformedDistribution(Independent(normal, 1), [tanh]), 1)
    dist = TransformedDistribution(inner, [ComposeTransform([affine, ComposeTransform([tanh])])])
    base, transforms = flatten_transforms(dist)
    assert base is normal
    assert transforms == [tanh, affine, tanh]
    assert log_density(base, normal.sample(), len(dist.batch_shape)).shape == (P,)
    for other in (normal, inner.base_dist.base_dist, HalfCauchy(torch.ones(P))):
        assert flatten_transforms(other) == (other, [])


# -- where the score is not the whole gradient ---------------------------------------------------


@pytest.mark.parametrize("estimator", ["LR", "TP", "TPX"])
def test_a_support_that_moves_is_refused(estimator: str) -> None:
    """LR with its baseline would answer zero for a uniform distribution's edges."""
    edge = torch.ones(P, 2, requires_grad=True)
    manager = PropagationManager(estimator)
    for dist in (
        Uniform(-edge, edge),
        Independent(Uniform(-1.0, edge), 1),
        TransformedDistribution(Uniform(-1.0, edge), [TanhTransform()]),
        Pareto(edge, torch.ones(P, 2)),
    ):
        with pytest.raises(ValueError, match=r"the support of .* depends on parameters.*use RP"):
            manager.sample(dist)
        with torch.no_grad():
            assert manager.sample(dist).shape == (P, 2)
    assert manager.sample(Uniform(-edge.detach(), edge.detach())).shape == (P, 2)


def test_rp_of_a_support_that_moves() -> None:
    case = one(
        "uniform",
        [-0.5, 1.5],
        Uniform,
        torch.square,
        lambda t: t.pow(3).diff().sum() / t.diff().sum() / 3,
    )
    assert_mean(*particle_estimates("RP", case))


def test_discrete_or_flat_noise_around_what_is_learnt_is_refused() -> None:
    x = torch.zeros(P, 2, requires_grad=True)
    manager = PropagationManager("LR")
    counts = {"dist_class": Poisson, "dist_params": (torch.ones(P, 2),)}
    flat = {"dist_class": Uniform, "dist_params": (torch.zeros(P, 2), torch.ones(P, 2))}
    with pytest.raises(ValueError, match=r"noise of Poisson, which is discrete.*sample\(dist\)"):
        manager.forward(x, **counts)
    with pytest.raises(ValueError, match=r"density of Uniform is flat.*use RP"):
        manager.forward(x, **flat)
    for options in (counts, flat):
        assert manager.forward(x.detach(), **options).shape == (P, 2)
        with torch.no_grad():
            assert manager.forward(x, **options).shape == (P, 2)


def test_discrete_samples_are_transformed_by_constants_only() -> None:
    w = torch.full((P,), 2.0, dtype=F, requires_grad=True)
    coin = Bernoulli(logits=torch.zeros(P, dtype=F))
    with pytest.raises(ValueError, match=r"samples of Bernoulli, which are discrete.*sample the B"):
        PropagationManager("LR").sample(TransformedDistribution(coin, [AffineTransform(0.0, w)]))
    case = one(
        "signs",
        [0.3],
        lambda t: TransformedDistribution(Bernoulli(logits=t), [AffineTransform(-1.0, 2.0)]),
        lambda y: y + y.square(),
        lambda t: 2 * t.sigmoid().sum(),
    )
    assert_mean(*particle_estimates("LR", case))


# -- precision -----------------------------------------------------------------------------------

BF16 = torch.bfloat16
# torch itself makes no such distribution, or no such sample, in 16 bits.
ONLY_WIDE = {
    "LowRankMultivariateNormal",
    "MultivariateNormal of covariances",
    "MultivariateNormal of precisions",
}
NARROW = [name for name in CATALOGUE if name not in ONLY_WIDE]


def relative_error(found: list[Tensor], expected: list[Tensor]) -> float:
    a, b = (torch.cat([g.to(F).flatten() for g in gs]) for gs in (found, expected))
    return float((a - b).norm() / (b.norm() + 1e-12))  # a gradient of zero may be rounded


def run_in(
    dtype: torch.dtype, autocast: bool, estimator: Any, name: str, shape: Shape = (P, 2)
) -> tuple[Tensor, list[Tensor]]:
    with parameters_in(dtype), torch.autocast("cpu", BF16, enabled=autocast):
        dist, leaves = made(name, shape, 0)
        manager = PropagationManager(estimator)
        torch.manual_seed(3)
        x = manager.sample(dist)
        loss = manager.loss(some_cost(x))
        return x.detach(), list(torch.autograd.grad(loss, leaves))


@pytest.mark.parametrize("estimator", ["LR", "TP", "TPX"])
@pytest.mark.parametrize("name", NARROW)
def test_16_bit_parameters_under_autocast_give_what_32_bits_give(name: str, estimator: str) -> None:
    """The same samples in float32, and gradients that were rounded once or twice."""
    if estimator != "LR" and name in NO_RSAMPLE:
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        expected, gradients_32 = run_in(torch.float32, False, estimator, name)
        x, gradients_16 = run_in(BF16, True, estimator, name)
        same, unchanged = run_in(torch.float32, True, estimator, name)
    assert x.dtype == expected.dtype
    torch.testing.assert_close(x, expected, rtol=0.01, atol=0.01)
    assert {g.dtype for g in gradients_16} == {BF16}
    # In bfloat16 a number is known to 0.4 %.
    assert relative_error(gradients_16, gradients_32) < 0.02
    # And 32-bit parameters are not touched at all.
    assert torch.equal(same, expected)
    assert relative_error(unchanged, gradients_32) < 1e-6


@pytest.mark.parametrize("name", NARROW)
def test_16_bit_samples_are_weighed_before_they_are_rounded(name: str) -> None:
    expected, _ = run_in(torch.float32, False, "LR", name)
    x, found = run_in(BF16, False, "LR", name)
    assert x.dtype == (BF16 if expected.is_floating_point() else torch.int64)
    torch.testing.assert_close(x.float(), expected.float(), rtol=0.02, atol=0.02)
    with parameters_in(torch.float32):
        dist, leaves = made(name, (P, 2), 0)
    costs = some_cost(x)
    deviations = costs - (costs.sum() - costs) / (P - 1)
    scores = dist.log_prob(expected).reshape(P, -1).sum(1)
    by_hand = torch.autograd.grad((deviations * scores).mean(), leaves)
    assert relative_error(found, list(by_hand)) < 0.02


# Noise of one rounding step of bfloat16 around 1.0, which 16 bits would lose.
STEP = 2.0**-7


def steps(x: Tensor) -> Tensor:
    z = (x.to(F) - 1.0) / STEP
    return z.square() + z


@pytest.mark.parametrize("estimator", ["LR", "TP", "TPX"])
def test_noise_too_small_for_16_bits_is_not_lost_under_autocast(estimator: str) -> None:
    small = STEP / 16

    def costs(sample: Sampler, t: Tensor) -> Tensor:
        with torch.autocast("cpu", BF16):
            x = sample(Normal(t[:, 0].to(BF16), t[:, 1].to(BF16)))
            assert x.dtype == torch.float32
            return steps(x)

    def exact(t: Tensor) -> Tensor:
        z = (t[0] - 1) / STEP
        return z.square() + z + (t[1] / STEP).square()

    assert_mean(*particle_estimates(estimator, Case("small", [1.0, small], costs, exact)))


def rounded_mean(t: Tensor) -> Tensor:
    """Of the costs of samples rounded to bfloat16: a sum over the cells of the rounding."""
    below, above = 1 - torch.arange(40, 0, -1) * STEP / 2, 1 + torch.arange(40) * STEP
    values = torch.cat([below, above]).to(F)
    edges = (values[1:] + values[:-1]) / 2
    cdf = torch.special.ndtr((edges - t[0]) / t[1])
    ends = torch.zeros(1, dtype=F), torch.ones(1, dtype=F)
    return torch.cat([ends[0], cdf, ends[1]]).diff() @ steps(values)


@pytest.mark.parametrize("general", [False, True])
def test_lr_of_a_pure_16_bit_model_is_exact_rounding_included(general: bool) -> None:
    def costs(sample: Sampler, t: Tensor) -> Tensor:
        dist: Distribution = Normal(t[:, 0].to(BF16), t[:, 1].to(BF16))
        if general:
            dist = MultivariateNormal(dist.loc[:, None], scale_tril=dist.scale[:, None, None])
        x = sample(dist).reshape(-1)
        assert x.dtype == BF16
        return steps(x)

    assert_mean(*particle_estimates("LR", Case("rounded", [1.0, STEP], costs, rounded_mean)))


def test_the_density_at_the_rounded_sample_would_be_found_out() -> None:
    torch.manual_seed(0)
    loc, scale = torch.tensor([1.0, STEP], dtype=F)
    x = (loc + scale * torch.randn(MANY, dtype=F)).to(BF16).to(F)
    z = (x - loc) / scale
    scores = torch.stack([z / scale, (z.square() - 1) / scale], 1)
    value = torch.stack([loc, scale]).requires_grad_()
    (exact,) = torch.autograd.grad(rounded_mean(value), value)
    costs = steps(x)
    with pytest.raises(AssertionError, match="z-scores"):
        assert_mean((costs - costs.mean())[:, None] * scores, exact)


class Step(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 4))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x.reshape(len(x), 4)).reshape(x.shape)


ESTIMATORS = ["LR", "TP", "TPX", "BIW", "TP+BIW", "TP+MESH", "GS", "TP+GS", "GR"]


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("mode", ["autocast", "autocast, backward within", "pure"])
def test_rollouts_in_16_bits_have_the_gradients_of_32(estimator: str, mode: str) -> None:
    """Samples are float32 under autocast; of the parameters' dtype in a pure 16-bit model."""

    def gradient(mode: str) -> list[Tensor]:
        torch.manual_seed(2)
        net = Step().to(BF16).to(BF16 if mode == "pure" else torch.float32)
        dtype = net.layers[0].weight.dtype
        manager = PropagationManager(estimator)
        x = torch.zeros(256, 2, 2, dtype=dtype)
        torch.manual_seed(4)
        with torch.autocast("cpu", BF16, enabled=mode.startswith("autocast")):
            for _ in range(3):
                x = manager.sample(Normal(net(x), torch.full((), 0.25, dtype=dtype)))
                assert x.dtype == dtype
                options = {"lossfunc": lambda s: (s - 0.5).square().sum((1, 2))}
                manager.append_loss(x, **options)
            if mode == "autocast, backward within":
                manager.loss().backward()
        if mode != "autocast, backward within":
            manager.loss().backward()
        return [p.grad for p in net.parameters()]

    assert 0 < relative_error(gradient(mode), gradient("32")) < (0.05 if mode == "pure" else 0.03)


@pytest.mark.parametrize("autocast", [False, True])
def test_attached_rp_is_exactly_what_pytorch_does(autocast: bool) -> None:
    loc = torch.linspace(0, 1, P).to(BF16).requires_grad_()
    scale = torch.full((P,), 0.5, dtype=BF16, requires_grad=True)
    tril = torch.diag_embed(torch.full((P, 2), 0.5)).requires_grad_()
    with torch.autocast("cpu", BF16, enabled=autocast):
        for dist in (Normal(loc, scale), MultivariateNormal(torch.zeros(P, 2), scale_tril=tril)):
            torch.manual_seed(0)
            x = PropagationManager("RP").sample(dist)
            torch.manual_seed(0)
            y = dist.rsample()
            assert x.dtype == y.dtype
            assert torch.equal(x, y)


def test_detached_rp_draws_in_32_bits() -> None:
    loc = torch.ones(P, 2, dtype=BF16, requires_grad=True)
    for autocast, dtype in ((True, torch.float32), (False, BF16)):
        with torch.autocast("cpu", BF16, enabled=autocast):
            manager = PropagationManager(RPProp())
            x = manager.sample(Normal(loc, 1e-3))
            assert x.dtype == dtype
            (found,) = torch.autograd.grad(manager.loss(x.float().sum(1)), loc)
        assert (len(x.unique()) == 2 * P) == autocast
        torch.testing.assert_close(found, torch.full_like(loc, 1 / P))


def test_noise_around_a_state_of_16_bits() -> None:
    x = torch.ones(P, 2, dtype=BF16, requires_grad=True)
    options = {"dist_class": Normal, "dist_params": (torch.zeros(P, 2, dtype=BF16), 1e-3)}
    for estimator in ("LR", "TP", "BIW"):
        for autocast, dtype in ((True, torch.float32), (False, BF16)):
            with torch.autocast("cpu", BF16, enabled=autocast):
                manager = PropagationManager(estimator)
                y = manager.forward(x, **options)
                assert y.dtype == dtype
                (found,) = torch.autograd.grad(manager.loss(y.float().sum(1)), x)
            assert bool(torch.isfinite(found).all())


def test_wide_distributions_are_not_copied() -> None:
    for name in CATALOGUE:
        dist, _ = made(name, (P, 2), 1)
        wide = widen(dist)
        assert wide.dist is dist
        assert wide.dtype is None


def test_widening_goes_everywhere_and_is_differentiable() -> None:
    module = nn.Linear(2, 2).to(BF16)
    scale = torch.ones(2, dtype=BF16, requires_grad=True)
    normal = Normal(torch.zeros(P, 2, dtype=BF16), scale)
    squash = AffineTransform(torch.zeros(2, dtype=BF16), scale, cache_size=1)
    base = TransformedDistribution(normal, [squash.inv, squash, Captures(module)])
    dist = Independent(base, 1)
    wide = widen(dist)
    assert wide.dtype == BF16
    assert {t.dtype for t in floating_tensors(wide.dist)} == {torch.float32}
    assert {t.dtype for t in floating_tensors(dist)} == {BF16}
    x = wide.dist.rsample()
    assert x.dtype == torch.float32
    assert x.shape == (P, 2)
    found = torch.autograd.grad(x.square().sum(), [scale, module.weight], allow_unused=True)
    assert [g.dtype for g in found] == [BF16, BF16]
    inverse, forward, _ = wide.dist.base_dist.transforms
    assert inverse.inv is forward
    mixed = widen(Normal(torch.zeros(P, 2, dtype=BF16), torch.ones(P, 2)))
    assert mixed.dtype is None


def test_what_was_derived_in_16_bits_is_derived_anew() -> None:
    logits = torch.tensor([6.5, -3.0, 0.5], dtype=BF16)
    for dist in (Bernoulli(logits=logits), Binomial(4, logits=logits)):
        assert dist.probs.dtype == BF16  # which keeps it
        torch.testing.assert_close(widen(dist).dist.probs, logits.float().sigmoid())
    for categorical in (Categorical(logits=logits), OneHotCategorical(logits=logits)):
        assert categorical.probs.dtype == BF16
        wide = widen(categorical).dist
        assert float(wide.probs.sum()) == pytest.approx(1.0, abs=1e-6)
        assert float(wide.logits.logsumexp(-1)) == pytest.approx(0.0, abs=1e-6)
    wide = widen(Categorical(probs=torch.tensor([0.3, 0.3, 0.3], dtype=BF16))).dist
    assert float(wide.probs.sum()) == pytest.approx(1.0, abs=1e-6)


# -- states in parts through Gaussian shaping ----------------------------------------------------


class Parts(NamedTuple):
    position: Tensor
    velocity: Tensor


def parts_cost(position: Tensor, velocity: Tensor) -> Tensor:
    """Of [P, 2] and [P, 2, 1]: quadratic, within the parts and across them."""
    velocity = velocity.squeeze(2)
    inner = position.square().sum(1) - 0.3 * velocity.square().sum(1)
    return inner + 0.5 * position[:, 0] * velocity[:, 1] + velocity.sum(1)


def split_parts(x: Tensor) -> tuple[Tensor, Tensor]:
    return x[:, :, 0], x[:, :, 1:]


FORMS: dict[str, tuple[Callable[[Tensor], Any], Callable[..., Tensor]]] = {
    "tensor": (lambda x: x, lambda x: parts_cost(*split_parts(x))),
    "dict": (
        lambda x: dict(zip(("position", "velocity"), split_parts(x), strict=True)),
        parts_cost,
    ),
    "tuple": (split_parts, lambda parts: parts_cost(*parts)),
    "list": (lambda x: list(split_parts(x)), lambda parts: parts_cost(*parts)),
    "named tuple": (
        lambda x: Parts(*split_parts(x)),
        lambda parts: parts_cost(parts.position, parts.velocity),
    ),
}


def linear_rollout(estimator: Any, form: str, t: Tensor, particles: int) -> Tensor:
    """x1 = m + s e1, x2 = a x1 + m + s e2, of 2 x 2 numbers each; a cost at both steps."""
    make, cost = FORMS[form]
    manager = PropagationManager(estimator, GSLoss())
    m, s, a = t
    x = torch.zeros(particles, 2, 2, dtype=F)
    for _ in range(2):
        x = manager.sample(Normal(a * x + m, s))
        manager.append_loss(make(x), lossfunc=cost)
    return torch.autograd.grad(manager.loss(), t)[0]


def linear_rollout_exact(t: Tensor) -> Tensor:
    m, s, a = t
    mean, variance, total = torch.zeros((), dtype=F), torch.zeros((), dtype=F), 0.0
    for _ in range(2):
        mean, variance = a * mean + m, a.square() * variance + s.square()
        total = total + 1.4 * (mean.square() + variance) + 0.5 * mean.square() + 2 * mean
    return total  # type: ignore[return-value]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("baseline", [True, False])
def test_gaussian_shaping_of_parts_has_the_exact_gradient(form: str, baseline: bool) -> None:
    """With the baseline without bias for few particles; without it (P - 1)/P of the true one."""
    torch.manual_seed(5)
    particles = 9
    t = torch.tensor([0.4, 0.6, 0.7], dtype=F, requires_grad=True)
    (exact,) = torch.autograd.grad(linear_rollout_exact(t), t)
    propagator = LRProp() if baseline else LRProp(baseline=False)
    found = torch.stack([linear_rollout(propagator, form, t, particles) for _ in range(250)])
    assert_mean(found, exact if baseline else exact * (particles - 1) / particles)


def test_parts_of_a_named_tuple_keep_shapes_and_type() -> None:
    seen: list[Any] = []

    def cost(parts: Parts) -> Tensor:
        seen.append(parts)
        return parts_cost(*parts)

    manager = PropagationManager("GS")
    x = manager.sample(Normal(torch.zeros(P, 2, 2), torch.ones((), requires_grad=True)))
    manager.append_loss(Parts(*split_parts(x)), lossfunc=cost)
    assert type(seen[0]) is Parts
    assert [part.shape for part in seen[0]] == [(P, 2), (P, 2, 1)]
