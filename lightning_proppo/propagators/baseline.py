"""Subtraction of a baseline from the losses (Appendix B.2)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from lightning_proppo.initializers import ChainInitTemplate, Init, Optional
from lightning_proppo.mathematics.baselines import leave_one_out, mean_baseline, no_baseline
from lightning_proppo.propagators.backprop import BackPropagator
from lightning_proppo.propagators.base import Propagator
from lightning_proppo.ranks import Ranks, active_ranks

BaselineFunction = Callable[[Tensor, Any], Tensor]

# Functions that look at nothing but the losses.
_OF_LOSSES_ALONE = (mean_baseline, no_baseline)


class BaselineProp(Propagator):
    """Adds ``'baselined_loss'`` to a message that has ``'local_loss'``.

    With several ranks, :func:`~lightning_proppo.mathematics.baselines.mean_baseline` is over the
    particles of all; other functions see a rank's own losses.

    Args:
        baseline_func: a function ``(local_losses [P, 1], node) -> [P, 1]``, or several, applied
            from the last to the first.
        **kwargs: none are taken.

    Raises:
        TypeError: if ``baseline_func`` cannot be called.
    """

    def __init__(
        self,
        baseline_func: BaselineFunction | Sequence[BaselineFunction] = mean_baseline,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        functions = (
            list(baseline_func) if isinstance(baseline_func, (list, tuple)) else [baseline_func]
        )
        for function in functions:
            if not callable(function):
                raise TypeError(
                    "baseline_func must be a function (local_losses, node) -> losses, or a list "
                    f"of such; got {function!r}."
                )
        self.baseline_func = baseline_func
        self._functions = tuple(functions)
        self._lasting = all(function in _OF_LOSSES_ALONE for function in functions)

    def backward_impl(self, node: Any, message: Any) -> Any:
        """Apply the baseline; without a loss in the message there is nothing to do.

        Raises:
            ValueError: if a baseline function returns anything but one loss for each particle.
        """
        if "local_loss" not in message:
            return message
        losses = baselined = message["local_loss"]
        ranks = active_ranks()
        made_of = message.get("baselined")
        if (
            made_of is not None
            and made_of[0] is losses
            and made_of[1] == self._functions
            and "baselined_loss" in message
        ):
            return None  # no cost has come since a later node did the same
        for function in reversed(self._functions):
            if function is mean_baseline and ranks.size > 1:
                baselined = _leave_one_out(baselined, message.get("mean_loss"), ranks)
                continue
            baselined = function(baselined, node)
            if not isinstance(baselined, Tensor) or baselined.shape != losses.shape:
                came = (
                    f"shape {list(baselined.shape)}"
                    if isinstance(baselined, Tensor)
                    else repr(baselined)
                )
                raise ValueError(
                    "baseline_func must return the losses with the baseline subtracted, shape "
                    f"{list(losses.shape)}; {getattr(function, '__name__', function)} returned "
                    f"{came}."
                )
        sent: dict[str, Any] = {"baselined_loss": baselined}
        if self._lasting:
            sent["baselined"] = (losses, self._functions)
        return sent


def _leave_one_out(losses: Tensor, known: tuple[Tensor, Tensor] | None, ranks: Ranks) -> Tensor:
    """Subtract the mean of all other particles on all ranks.

    Args:
        losses: of this rank's particles, [P, 1].
        known: losses, and their mean over all ranks, which loss nodes have learnt together; of
            other losses than these, the mean is asked for here.
        ranks: the ranks.
    """
    particles = losses.shape[0] * ranks.size
    if known is not None and known[0] is losses:
        mean = known[1]
    else:
        mean = ranks.sum(losses.detach().double().sum()) / particles
    return leave_one_out(losses.detach(), mean.to(losses.dtype), particles)


# The slots of a Monte Carlo gradient estimator, as templates (Appendix D, listing 4).
mcgrad_temp = ChainInitTemplate(
    backprop=Optional(Optional.init(BackPropagator, True), False),
    base=Init,
    baseline=Optional(Optional.init(BaselineProp, True), False),
)
