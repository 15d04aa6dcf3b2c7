"""Distributions of all kinds, by name, in any batch shape and precision."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.distributions import (
    AffineTransform,
    Bernoulli,
    Beta,
    Binomial,
    Categorical,
    Cauchy,
    Chi2,
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
    VonMises,
    Weibull,
    Wishart,
)

from lightning_proppo.mathematics.precision import floating_tensors

F = torch.float64


P = 7


Shape = tuple[int, ...]


def tril(t: Tensor) -> Tensor:
    """[..., 3] -> [..., 2, 2]."""
    a, b, c = t.unbind(-1)
    rows = [torch.stack([a, torch.zeros_like(a)], -1), torch.stack([b, c], -1)]
    return torch.stack(rows, -2)


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


NO_RSAMPLE = [name for name in CATALOGUE if not made(name, (P,), 0)[0].has_rsample]


WITH_RSAMPLE = [name for name in CATALOGUE if name not in NO_RSAMPLE]
