"""Gradients through any distribution, against their exact values.

Each is held to its exact value (see ``exact_expectations.py``) by z-scores, which raise a false
alarm about once in a million seeds (see ``exact_moments.py``).
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.distributions import (
    AffineTransform,
    Bernoulli,
    Beta,
    Binomial,
    Categorical,
    ComposeTransform,
    Dirichlet,
    Distribution,
    Gamma,
    Geometric,
    Independent,
    Laplace,
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
    StudentT,
    TanhTransform,
    TransformedDistribution,
    Uniform,
    VonMises,
)
from torch.distributions.transforms import Transform

from lightning_proppo import PropagationManager
from lightning_proppo.propagators import LRProp

from .distribution_catalogue import (
    F,
    P,
    learnt_range,
    learnt_scale,
    tanh_normal,
    tril,
)
from .exact_expectations import (
    Case,
    Sampler,
    noise_grid,
    normal_mean,
    one,
    particle_estimates,
)
from .exact_moments import assert_mean

# -- exact gradients -----------------------------------------------------------------------------


TABLE = torch.tensor([0.3, -1.0, 2.0], dtype=F)


def bernoulli_pair_exact(t: Tensor) -> Tensor:
    p, q = t.sigmoid()
    return p * q * 3.0 + p * (1 - q) - (1 - p) * q


def bernoulli_pair(sample: Sampler, t: Tensor) -> Tensor:
    x = sample(Independent(Bernoulli(logits=t), 1))
    a, b = x.unbind(1)
    return 3.0 * a * b + a * (1 - b) - (1 - a) * b


QUADRATIC = torch.tensor([[1.0, 0.4], [0.4, -0.6]], dtype=F)


def quadratic(x: Tensor) -> Tensor:
    return torch.einsum("pi,ij,pj->p", x, QUADRATIC, x)


def quadratic_mean(mean: Tensor, covariance: Tensor) -> Tensor:
    return mean @ QUADRATIC @ mean + (QUADRATIC * covariance).sum()


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


# -- transforms that are no bijections -------------------------------------------------------------


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
