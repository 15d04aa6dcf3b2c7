"""Gaussian shaping gradients (Parmas 2018; Appendix A.2, C.3)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lightning_proppo.containers import Listed
from lightning_proppo.engine.cuts import cut
from lightning_proppo.initializers import ChainInit, Init, Optional
from lightning_proppo.mathematics.gaussians import sample_gaussian, shaped_statistic
from lightning_proppo.pooling import fit_gaussian_over
from lightning_proppo.propagators.backprop import BackPropagator
from lightning_proppo.propagators.base import ComboProp, Propagator
from lightning_proppo.propagators.chain import ChainProp
from lightning_proppo.propagators.loss import GSLossBase
from lightning_proppo.propagators.plumbing import SkipProp, SumBase
from lightning_proppo.ranks import active_ranks, sum_together

State = Tensor | Mapping[str, Tensor] | tuple[Tensor, ...] | list[Tensor]


def pack(state: Any) -> Tensor:
    """Lay all parts of a state side by side: [P, D].

    Raises:
        TypeError: if a part is no floating point tensor.
        ValueError: if the parts differ in their number of particles.
    """
    if isinstance(state, Mapping):
        parts = list(state.values())
    elif isinstance(state, (tuple, list)):
        parts = list(state)
    else:
        parts = [state]
    for part in parts:
        if not isinstance(part, Tensor) or not part.is_floating_point() or part.dim() == 0:
            came = (
                f"a tensor of shape {list(part.shape)} and dtype {part.dtype}"
                if isinstance(part, Tensor)
                else f"a {type(part).__name__}"
            )
            raise TypeError(
                "the state to shape must be a floating point tensor of particles [P, ...], or a "
                f"dict, tuple or list of such; got {came} in it."
            )
    if len({part.shape[0] for part in parts}) != 1:
        raise ValueError(
            "all parts of a state must have the same number of particles; got shapes "
            f"{[list(part.shape) for part in parts]}."
        )
    flat = [part.flatten(1) if part.dim() > 1 else part.unsqueeze(1) for part in parts]
    return torch.cat(flat, dim=1) if len(flat) > 1 else flat[0]


def unpack(flat: Tensor, like: Any) -> Any:
    """Undo :func:`pack`: give ``flat`` [P, D] the structure, shapes and dtypes of ``like``."""
    if isinstance(like, Tensor):
        return flat.reshape(like.shape).to(like.dtype)
    parts = list(like.values()) if isinstance(like, Mapping) else list(like)
    sizes = [part[0].numel() for part in parts]
    split = [
        piece.reshape(part.shape).to(part.dtype)
        for piece, part in zip(flat.split(sizes, dim=1), parts, strict=True)
    ]
    if isinstance(like, Mapping):
        return dict(zip(like.keys(), split, strict=True))
    # A named tuple takes its fields apart from each other.
    return like._make(split) if hasattr(like, "_make") else type(like)(split)


class GaussShapeBase(Propagator):
    """Shapes a state into a Gaussian, so that costs on it act through its mean and covariance.

    Forward, it fits a Gaussian to the particles and draws new ones from it. Backward, it turns the
    gradients of the costs with respect to mean and covariance into one value for each particle,
    which stands for the particle's loss in the likelihood-ratio gradients of all earlier samples.
    Its variance does not grow with the dimensions that the costs ignore.

    Biased wherever the particles are not Gaussian (the expectation is taken under the fitted
    Gaussian). Where the costs are quadratic, LR with the leave-one-out baseline has no bias for any
    number of particles and any distribution of them; without the baseline its gradient is
    (P - 1)/P of the true one. What passes through the fit itself (RP's part) is the gradient at a
    variance larger by Sigma/P; for other costs a bias of O(1/P) is left where the particles are
    Gaussian.
    """

    def forward_impl(self, x: Any, node: Any = None, shaped_grad: bool = True) -> Any:
        """Return particles of the fitted Gaussian.

        Args:
            x: the state: [P, ...], or a dict, tuple or list of such.
            node: not used.
            shaped_grad: back-propagate through the fit too (RP's part, and parameters that the
                state depends on directly).

        Raises:
            TypeError: if the state is made of anything but floating point tensors.
            ValueError: for a single particle, or a covariance that is not positive definite.
        """
        del node
        flat = pack(x)
        mean, covariance = fit_gaussian_over(flat, active_ranks())
        mean_cut, covariance_cut = cut(mean), cut(covariance)
        fresh = sample_gaussian(mean_cut, covariance_cut, flat.shape[0])
        return {
            "output": unpack(fresh, x),
            "mu": mean,
            "covar": covariance,
            "mu_detached": mean_cut,
            "covar_detached": covariance_cut,
            "centred": (flat - mean).detach(),
            "shaped_grad": shaped_grad,
        }

    def backward_impl(self, node: Any, message: Any) -> Any:
        """Send the shaped statistic, and the gradients of mean and covariance."""
        message.pop("baselined_loss", None)
        message.pop("shaped_loss", None)
        mean_cut, covariance_cut = node["mu_detached"], node["covar_detached"]
        mean_gradient, covariance_gradient = (
            torch.zeros_like(leaf) if leaf.grad is None else leaf.grad
            for leaf in (mean_cut, covariance_cut)
        )
        centred = node["centred"]
        ranks = active_ranks()
        # The Gaussian fitted to all ranks' particles acts on the costs of all.
        mean_gradient, covariance_gradient = sum_together(
            [mean_gradient, covariance_gradient], ranks
        )
        particles = centred.shape[0] * ranks.size
        # The mean square, without Bessel's correction.
        scatter = node["covar"].detach() * ((particles - 1) / particles)
        statistic = shaped_statistic(centred, scatter, mean_gradient, covariance_gradient)
        sent: dict[str, Any] = {
            # A rank's costs were averaged over its own particles.
            "shaped_stat": statistic / ranks.size if ranks.size > 1 else statistic
        }
        if node["shaped_grad"]:
            sent["outputs"] = Listed(node["mu"], node["covar"])
            sent["grads"] = Listed(mean_gradient, covariance_gradient)
        return sent


class GSProp(
    ComboProp,
    propagators=ChainInit(
        backprop=Optional(BackPropagator, True),
        sum_base=Init(SumBase, sum_name="local_loss", local_variable="shaped_stat"),
        gs_base=GaussShapeBase,
    ),
):
    """:class:`GaussShapeBase`, summed into the loss that is sent back, with back-propagation."""


class GSLoss(
    ChainProp,
    propagators=ChainInit(
        gs_prop=Init(GSProp, shaped_grad=True, backprop=True),
        gs_loss=Init(GSLossBase, sum_loss=False, base={"loss_name": "shaped_loss"}),
        skip=Init(SkipProp, skip=2),
    ),
):
    """A loss on a Gaussian-shaped state, for use as a manager's loss propagator.

    ``append_loss(state, lossfunc=cost)`` must give the state and the function, not its value. The
    losses of later steps skip the shaping and are added to the shaped statistic.
    """
