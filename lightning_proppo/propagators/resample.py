"""Gaussian resampling (Parmas et al. 2018, PIPPS): moment matching by samples."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from lightning_proppo.initializers import ChainInit
from lightning_proppo.mathematics.gaussians import sample_gaussian
from lightning_proppo.pooling import fit_gaussian_over
from lightning_proppo.propagators.base import ComboProp, Propagator
from lightning_proppo.propagators.baseline import mcgrad_temp
from lightning_proppo.propagators.chain import ChainProp
from lightning_proppo.propagators.plumbing import detached_output, gradient_message
from lightning_proppo.propagators.rp import RPProp
from lightning_proppo.ranks import active_ranks, sum_gradients


class ResampleBase(Propagator):
    r"""Fits a Gaussian to the particles and draws them anew from it, differentiably.

    Biased: the gradient is that of the costs' expectation under the fitted Gaussian N(m, S).

    - Where the particles are not Gaussian this is another expectation, however many they are.
    - Where they are Gaussian, a bias of O(1/P) is left. The new particles share the fitted mean,
      which varies from rollout to rollout, so that their variance is in expectation
      :math:`\Sigma / P` larger than the :math:`\Sigma` of the old ones; each further fit adds its
      own. A linear cost's gradient is exact, a quadratic one's is that of this larger variance.

    With several ranks the Gaussian is fitted to the particles of all.
    """

    uses_cost_gradient = True
    loss_baseline = False

    def forward_impl(self, x: Any, node: Any = None, detach: bool = True) -> Any:
        """Return new particles of the shape of ``x`` [P, ...].

        Raises:
            TypeError: if ``x`` is no floating point tensor.
            ValueError: for a single particle, or a covariance that is not positive definite.
        """
        del node
        if not isinstance(x, Tensor) or not x.is_floating_point():
            raise TypeError(f"x must be a floating point tensor of particles; got {x!r}.")
        ranks = active_ranks()
        fitted = fit_gaussian_over(x.flatten(1) if x.dim() > 1 else x.unsqueeze(1), ranks)
        mean, covariance = sum_gradients(fitted, ranks)
        fresh = sample_gaussian(mean, covariance, x.shape[0]).reshape(x.shape).to(x.dtype)
        return detached_output(fresh) if detach else {"output": fresh, "register_node": False}

    def backward_impl(self, node: Any, message: Any) -> Any:
        """Send the collected cotangent back through the fit."""
        del message
        return gradient_message(node)


class ResampleProp(ComboProp, propagators=mcgrad_temp(backprop=True, base=ResampleBase)):
    """:class:`ResampleBase`, with back-propagation unless ``backprop=False``."""

    uses_cost_gradient = True
    loss_baseline = False


class GRProp(ChainProp, propagators=ChainInit(rp=RPProp, resamp=ResampleProp)):
    """Samples with RP, then resamples the particles from the Gaussian fitted to them.

    Biased as :class:`ResampleBase` is at every step: by O(1/P) on a linear rollout with Gaussian
    noise, and wherever nonlinear dynamics bend the particles' distribution, by what a Gaussian
    does not follow of it.
    """

    uses_cost_gradient = True
