"""Expectations that are known, and each particle's estimate of their gradients.

They are in closed form, by enumeration of what is discrete, or by quadrature over noise; autograd
differentiates them.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lightning_proppo import PropagationManager

from .distribution_catalogue import F

MANY = 60_000
Sampler = Callable[..., Tensor]


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
