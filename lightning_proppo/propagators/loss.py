"""Loss nodes (Appendix B.2)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from lightning_proppo.containers import Listed
from lightning_proppo.initializers import ChainInit, Optional
from lightning_proppo.mathematics.baselines import mean_baseline
from lightning_proppo.propagators.backprop import BackPropagator
from lightning_proppo.propagators.base import ComboProp, Propagator
from lightning_proppo.propagators.baseline import BaselineProp


def check_costs(costs: Any) -> Tensor:
    """Return costs as a column, one for each particle.

    Args:
        costs: [P] or [P, 1], floating point.

    Returns:
        [P, 1].

    Raises:
        TypeError: if ``costs`` is no floating point tensor.
        ValueError: if it has not one value for each particle.
    """
    if not isinstance(costs, Tensor):
        raise TypeError(
            "costs must be a tensor with one cost for each particle, [P] or [P, 1]; got "
            f"{type(costs).__name__}. Where the state itself is given, pass lossfunc too."
        )
    if not costs.is_floating_point():
        raise TypeError(
            f"costs must be floating point; got dtype {costs.dtype}. Convert them: costs.float()."
        )
    column: Tensor = costs.unsqueeze(1) if costs.dim() == 1 else costs
    if column.dim() != 2 or column.shape[1] != 1 or column.shape[0] == 0:
        raise ValueError(
            "costs must hold one cost for each particle, shape [P] or [P, 1] with P > 0; got "
            f"shape {list(column.shape)}. Do not average over particles: the manager does."
        )
    return column


class LossBase(Propagator):
    """Takes the particles' costs, sums them with the later ones, and starts their gradient.

    Args:
        loss_name: the name of the running sum in messages.
        **kwargs: default forward options.
    """

    def __init__(self, loss_name: str = "local_loss", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.loss_name = loss_name

    def forward_impl(
        self,
        x: Any,
        node: Any = None,
        lossfunc: Callable[..., Tensor] | None = None,
        lossgrad: bool = True,
        sum_loss: bool = True,
    ) -> Any:
        """Record costs.

        Args:
            x: the costs, [P] or [P, 1]; or, with ``lossfunc``, its argument (a dict gives keyword
                arguments).
            node: not used.
            lossfunc: computes the costs.
            lossgrad: whether the costs' gradient is back-propagated.
            sum_loss: whether later costs are added to what is sent back.
        """
        del node
        if lossfunc is not None:
            if not callable(lossfunc):
                raise TypeError(f"lossfunc must be callable; got {lossfunc!r}.")
            x = lossfunc(**x) if isinstance(x, Mapping) else lossfunc(x)
        costs = check_costs(x)
        return {
            "output": costs.detach(),
            "pre_output": costs,
            "lossgrad": lossgrad,
            "sum_loss": sum_loss,
            "register_node": True,
        }

    def backward_impl(self, node: Any, message: Any) -> Any:
        """Send back the sum of this and the later costs, and the mean's gradient."""
        total = node["output"]
        # Over all ranks; the manager has written it into the node.
        mean = node.get("mean_cost")
        if node["sum_loss"] and self.loss_name in message:
            later = message[self.loss_name]
            if later.shape != total.shape:
                raise ValueError(
                    f"costs of one rollout must have the same number of particles; got "
                    f"{total.shape[0]} and then {later.shape[0]}. If an earlier rollout was "
                    "abandoned, call manager.reset() after it."
                )
            if mean is not None:
                known = message.get("mean_loss")
                mean = known[1] + mean if known is not None and known[0] is later else None
            # Never in place: the node's own cost must survive another pass.
            total = total + later
        # What a later node's baseline was subtracted from is no longer the sum.
        message.pop("baselined_loss", None)
        sent: dict[str, Any] = {self.loss_name: total}
        if mean is not None:
            sent["mean_loss"] = (total, mean)
        costs = node["pre_output"]
        if node["lossgrad"] and costs.requires_grad:
            sent["outputs"] = Listed(costs)
            sent["grads"] = Listed(torch.full_like(costs, 1.0 / costs.shape[0]))
        return sent


class LossProp(
    ComboProp,
    propagators=ChainInit(
        backprop=Optional(BackPropagator, True),
        baseline=Optional(BaselineProp, True, baseline_func=mean_baseline),
        base=LossBase,
    ),
):
    """:class:`LossBase`, then a baseline, then back-propagation; each may be switched off."""

    def plain_costs(self, node: Any) -> Tensor | None:
        """Return the costs [P, 1] with their graph, if nothing but a baseline is added to them."""
        plain = type(self) is LossProp and type(self.propagators[0]) is BackPropagator
        if plain and self.is_made_of(BackPropagator, BaselineProp, LossBase) and node["lossgrad"]:
            costs: Tensor = node["pre_output"]
            return costs
        return None


class GSLossBase(
    ComboProp,
    propagators=ChainInit(backprop=Optional(BackPropagator, True), base=LossBase),
):
    """The loss inside :class:`~lightning_proppo.propagators.shaping.GSLoss`."""
