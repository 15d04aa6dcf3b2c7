"""Reparameterization gradients (Appendix A.1, B.2)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from torch import Tensor

from lightning_proppo.propagators.backprop import BackPropagator
from lightning_proppo.propagators.base import ComboProp, Propagator
from lightning_proppo.propagators.baseline import mcgrad_temp
from lightning_proppo.propagators.distributions import (
    DistParams,
    make_distribution,
    require_rsample,
)
from lightning_proppo.propagators.normal import NOISES, check_noise, draw_normal
from lightning_proppo.propagators.plumbing import detached_output, gradient_message
from lightning_proppo.propagators.sampling import attached_sample, reparameterized_sample


class RPBase(Propagator):
    r"""Samples with a differentiable transformation of fixed noise (Eq. 3).

    .. math:: \frac{1}{P} \sum_i \nabla_\beta f(\mathcal{T}(\varepsilon_i; \beta))

    Unbiased where f is continuous and differentiable almost everywhere. Where it jumps, RP is
    wrong: it misses how the probability of the jump changes. Its variance grows with the
    derivatives of f, without bound on long chaotic rollouts.
    """

    uses_cost_gradient = True
    loss_baseline = False
    choices: ClassVar[Mapping[str, Sequence[str]]] = {"noise": NOISES}

    def forward_impl(
        self,
        x: Any,
        node: Any = None,
        dist: Any = None,
        dist_class: Any = None,
        dist_params: DistParams | None = None,
        detach: bool = True,
        noise: str = "independent",
    ) -> Any:
        """Draw a sample [P, ...].

        Args:
            x: the state to add noise to, or None with ``dist``.
            node: not used.
            dist: the distribution to draw from.
            dist_class: the noise's distribution, with ``dist_params``.
            dist_params: its arguments.
            detach: cut the graph here; False leaves it to PyTorch, its precision too, and makes no
                node.
            noise: ``"independent"`` or ``"quasi-random"``
                (:func:`~lightning_proppo.mathematics.quasi.quasi_random_normal`; for normal
                samples).

        Raises:
            TypeError: if the distribution has no ``rsample``, or is not described.
            ValueError: for an unknown noise.
        """
        del node
        dist = make_distribution(x, dist, dist_class, dist_params, "RP")
        require_rsample(dist, "RP")
        check_noise(noise, dist)
        if noise == "independent":
            # Left to PyTorch, it is to be what PyTorch does.
            sample = reparameterized_sample(dist, x) if detach else attached_sample(dist, x)
        else:
            normal = draw_normal(dist, x, noise)
            sample = normal.path().to(normal.sample.dtype)
        return detached_output(sample) if detach else {"output": sample, "register_node": False}

    def backward_impl(self, node: Any, message: Any) -> Any:
        """Send the cotangent that the sample has collected to what it was made from."""
        del message
        return gradient_message(node)


_ATTACHED = {"detach": False}


class RPProp(ComboProp, propagators=mcgrad_temp(backprop=True, base=RPBase)):
    """:class:`RPBase`, with back-propagation unless ``backprop=False``."""

    uses_cost_gradient = True
    loss_baseline = False

    def attached(self, dist: Any) -> Tensor | None:
        """Return what plain PyTorch draws, if that is all that is to be done."""
        plain = type(self) is RPProp and self.default_forward_kwargs == _ATTACHED
        if not plain or not self.is_made_of(BackPropagator, RPBase):
            return None
        dist = make_distribution(None, dist, None, None, "RP")
        require_rsample(dist, "RP")
        return attached_sample(dist, None)
