"""Subtraction of a baseline from the losses (Appendix B.2)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from lightning_proppo.baselines import mean_baseline, no_baseline
from lightning_proppo.initializers import ChainInitTemplate, Init, Optional
from lightning_proppo.propagators.backprop import BackPropagator
from lightning_proppo.propagators.base import Propagator

BaselineFunction = Callable[[Tensor, Any], Tensor]

# Functions that look at nothing but the losses.
_OF_LOSSES_ALONE = (mean_baseline, no_baseline)


class BaselineProp(Propagator):
    """Adds ``'baselined_loss'`` to a message that has ``'local_loss'``.

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
        made_of = message.get("baselined")
        if (
            made_of is not None
            and made_of[0] is losses
            and made_of[1] == self._functions
            and "baselined_loss" in message
        ):
            return None  # no cost has come since a later node did the same
        for function in reversed(self._functions):
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


# The slots of a Monte Carlo gradient estimator, as templates (Appendix D, listing 4).
mcgrad_temp = ChainInitTemplate(
    backprop=Optional(Optional.init(BackPropagator, True), False),
    base=Init,
    baseline=Optional(Optional.init(BaselineProp, True), False),
)
