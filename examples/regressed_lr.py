"""A propagator of one's own: likelihood ratios with a baseline that is linear in the noise.

The page docs/writing-a-propagator.md builds it step by step and takes its listings from here.

    python examples/regressed_lr.py     # how its variance compares with LR's
"""

from __future__ import annotations

import sys

# --8<-- [start:imports]
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Normal

from lightning_proppo import PropagationManager
from lightning_proppo.containers import Listed
from lightning_proppo.propagators import ComboProp, Propagator, mcgrad_temp

# --8<-- [end:imports]
from proppo_envs import ChaoticRNN


# --8<-- [start:fit]
def fit_without_each(losses: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    r"""Fit :math:`a + s \cdot \varepsilon` to the losses P times, each time without one particle.

    Args:
        losses: L, [P, 1].
        noise: [P, D].

    Returns:
        Each particle's loss less what the others' fit predicts for it, [P, 1]; and the slopes s of
        that fit, [P, D].
    """
    particles, dimensions = noise.shape
    if particles < dimensions + 3:
        raise ValueError(
            "a baseline that is linear in the noise needs at least D + 3 particles; got "
            f"{particles} for D = {dimensions}. Use more particles, or LRProp."
        )
    design = torch.cat([torch.ones_like(noise[:, :1]), noise], dim=1)
    q, r = torch.linalg.qr(design)
    coefficients = torch.linalg.solve_triangular(r, q.T @ losses, upper=True)
    # To leave a particle out moves the fit by its residual, and that by its leverage.
    leverage = q.square().sum(1, keepdim=True)
    left_out = (losses - design @ coefficients) / (1 - leverage)
    pull = torch.linalg.solve_triangular(r, q.T, upper=True).T
    slopes = coefficients.T - pull * left_out
    return left_out, slopes[:, 1:]


# --8<-- [end:fit]


# --8<-- [start:cotangents]
def regressed_cotangents(losses: Tensor, noise: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    r"""Return the cotangents of location and scale of :math:`x = m + \sigma \varepsilon`.

    .. math:: \frac1P \Big[(L_i - b_i) \frac{\varepsilon_i}{\sigma_i} + \frac{s_i}{\sigma_i}\Big],
              \qquad \frac1P (L_i - b_i) \frac{\varepsilon_i^2 - 1}{\sigma_i}, \qquad
              b_i = a_i + s_i \cdot \varepsilon_i

    Args:
        losses: L, [P, 1].
        noise: [P, D].
        scale: [P, D].

    Returns:
        Two tensors [P, D].
    """
    left_out, slopes = fit_without_each(losses.double(), noise.double())
    noise, scale = noise.double(), scale.double() * len(noise)
    return (left_out * noise + slopes) / scale, left_out * (noise.square() - 1) / scale


# --8<-- [end:cotangents]


# --8<-- [start:base]
class RegressedLRBase(Propagator):
    """Weighs the score of each sample by what a linear fit to the other particles leaves.

    Unbiased, for any costs. For costs that are linear in the noise it is exact.
    """

    def forward_impl(self, x: Any, node: Any = None, dist: Any = None) -> Any:
        """Draw a sample [P, ...] of a normal distribution and keep what it was made from."""
        del x, node
        if type(dist) is not Normal:
            raise TypeError(f"dist must be a Normal; got {type(dist).__name__}. Or use LRProp.")
        noise = torch.randn_like(dist.loc)
        sample = (dist.loc + dist.scale * noise).detach()
        return {"output": sample, "loc": dist.loc, "scale": dist.scale, "noise": noise}

    def backward_impl(self, node: Any, message: Any) -> Any:
        """Pair location and scale with their cotangents."""
        losses = message.get("local_loss")
        if losses is None:  # no cost follows this sample
            return {}
        loc, scale, noise = node["loc"], node["scale"], node["noise"]
        cotangents = regressed_cotangents(losses, noise.flatten(1), scale.detach().flatten(1))
        grads = (cotangent.reshape(loc.shape).to(loc.dtype) for cotangent in cotangents)
        return {"outputs": Listed(loc, scale), "grads": Listed(*grads)}


# --8<-- [end:base]


# --8<-- [start:prop]
class RegressedLRProp(ComboProp, propagators=mcgrad_temp(backprop=True, base=RegressedLRBase)):
    """:class:`RegressedLRBase`, which has its own baseline, with back-propagation."""

    loss_baseline = False  # the samples subtract their own


# --8<-- [end:prop]


def square_gradient(estimator: str | Propagator, dimensions: int, particles: int = 200) -> Tensor:
    """Return the gradient of |x|² by the mean of x, [D]; it is 1.4 for each coordinate."""
    mean = torch.full((dimensions,), 0.7, requires_grad=True)
    manager = PropagationManager(estimator)
    x = manager.sample(Normal(mean.expand(particles, -1), 0.6))
    (gradient,) = torch.autograd.grad(manager.loss(x.square().sum(1)), [mean])
    return gradient


def network_gradient(estimator: str | Propagator, beta: float, particles: int = 1000) -> Tensor:
    """Return the chaotic network's gradient by beta, [1]."""
    system = ChaoticRNN()
    parameter = torch.tensor([beta], requires_grad=True)
    manager = PropagationManager(estimator)
    x = system.initial_state(particles)
    for _ in range(system.horizon):
        x = manager.sample(system.transition(x, parameter))
    (gradient,) = torch.autograd.grad(manager.loss(system.cost(x)), [parameter])
    return gradient


def main() -> None:
    """Write a table of variances, a coordinate's on average."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    rows = [
        (f"|x|^2, D = {size}", 2000, lambda estimator, size=size: square_gradient(estimator, size))
        for size in (1, 5, 20)
    ]
    rows += [
        (
            f"network, beta {beta}",
            150,
            lambda estimator, beta=beta: network_gradient(estimator, beta),
        )
        for beta in (2.0, 2.5, 3.5)
    ]
    sys.stdout.write(f"{'':24}{'LR':>12}{'regressed':>12}\n")
    for name, repetitions, gradient in rows:
        variances = [
            torch.stack([gradient(estimator) for _ in range(repetitions)]).var(0).mean().item()
            for estimator in ("LR", RegressedLRProp())
        ]
        sys.stdout.write(f"{name:24}" + "".join(f"{v:12.3g}" for v in variances) + "\n")


if __name__ == "__main__":
    main()
