"""What every regressor does: it is fitted, predicts, moves between devices, and is saved.

N data, I inputs, E outputs, P particles.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from proppo_agents.parts import Part
from proppo_agents.regression.data import check_data, check_fits_in


class Regressor(Part):
    """A distribution of outputs [E] for inputs [I], normal and independent between outputs.

    What was fitted is a dict of tensors, its *state*, which ``state_dict`` holds in the precision
    that it was fitted in (as extra state: its sizes are the data's). What predictions are made
    from is prepared of it, in the module's dtype and on its device.

    A fit changes nothing but the state; predictions are differentiable with respect to inputs, not
    to the state.
    """

    def __init__(self) -> None:
        super().__init__()
        self._state: dict[str, Tensor] = {}
        # Follows the module's dtype and device. No buffer: those are sent between ranks.
        self._like = torch.empty(0)

    # -- for a final class -------------------------------------------------------------------

    @abstractmethod
    def _fit(self, inputs: Tensor, outputs: Tensor) -> dict[str, Tensor]:
        """Return the state for inputs [N, I] and outputs [N, E], both float64 and on the CPU."""

    @abstractmethod
    def _prepare(self, state: dict[str, Tensor], like: Tensor) -> None:
        """Prepare predictions from a state, in the dtype and on the device of ``like``."""

    @abstractmethod
    def _predict(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and variance [P, E] at inputs [P, I]."""

    @abstractmethod
    def _noise_std(self) -> Tensor:
        """Return the outputs' mean noise, as a standard deviation [E]."""

    def _predict_particles(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and standard deviation [P, E] that each particle goes by."""
        mean, variance = self._predict(inputs)
        return mean, variance.sqrt()

    # -- for everybody -----------------------------------------------------------------------

    @property
    def fitted(self) -> bool:
        """Whether there is something to predict from."""
        return bool(self._state)

    @property
    def noise_std(self) -> Tensor:
        """The outputs' noise [E], a standard deviation in their units: a mean over the data."""
        self._check_fitted()
        return self._noise_std()

    def fit(self, inputs: Tensor, outputs: Tensor) -> None:
        """Fit to data, in place of all before.

        Args:
            inputs: [N, I], N at least 1.
            outputs: [N, E].

        Raises:
            TypeError: if the data are no tensors of real numbers.
            ValueError: if the shapes do not fit together, not all values are finite, or they are
                too large for the module's precision.
        """
        check_data(inputs, outputs)
        with torch.inference_mode(False), torch.enable_grad():
            # A clone: what was made in inference mode cannot be differentiated.
            x, y = (v.detach().cpu().double().clone() for v in (inputs, outputs))
            for name, value in (("inputs", x), ("outputs", y)):
                check_fits_in(name, value, self._like.dtype)
            self._take({name: value.detach() for name, value in self._fit(x, y).items()})

    def predict(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and variance [P, E] of the outputs at inputs [P, I], noise included.

        Raises:
            RuntimeError: if it has not been fitted.
            TypeError: if the inputs are of a wider precision than the module.
            ValueError: if they have another shape.
        """
        self._check_fitted()
        self._check_query(inputs)
        return self._predict(inputs)

    def predict_particles(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and standard deviation [P, E] that each particle of a rollout goes by.

        For Gaussian processes that is the prediction; a particle of an ensemble goes by one member.

        Raises:
            RuntimeError: if it has not been fitted.
            TypeError: if the inputs are of a wider precision than the module.
            ValueError: if they have another shape.
        """
        self._check_fitted()
        self._check_query(inputs)
        return self._predict_particles(inputs)

    # -- torch.nn ----------------------------------------------------------------------------

    def get_extra_state(self) -> dict[str, Tensor]:
        """Return the state."""
        return dict(self._state)

    def set_extra_state(self, state: dict[str, Tensor]) -> None:
        """Take a state, and prepare predictions from it."""
        self._take({name: value.detach().cpu() for name, value in state.items()})

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        like = fn(self._like)
        for name, value in self._state.items():
            check_fits_in(f"{name} of {type(self).__name__}", value, like.dtype)
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]  # PyTorch's
        before, self._like = self._like, like
        moved = (self._like.dtype, self._like.device) != (before.dtype, before.device)
        if self.fitted and moved:
            self._prepare(self._state, self._like)
        return self

    def _take(self, state: dict[str, Tensor]) -> None:
        self._state = state
        if state:
            with torch.no_grad():
                self._prepare(state, self._like)

    def _check_query(self, inputs: Tensor) -> None:
        size = self._state["input_mean" if "input_mean" in self._state else "inputs"].shape[-1]
        if inputs.dim() != 2 or inputs.shape[1] != size:
            raise ValueError(
                f"inputs must be [P, {size}], as in the fit of {type(self).__name__}; got "
                f"{list(inputs.shape)}."
            )
        kind = self._like.dtype
        if torch.promote_types(inputs.dtype, kind) != kind:
            raise TypeError(
                f"inputs must be {kind}, as the module {type(self).__name__} is; got "
                f"{inputs.dtype}. Convert one of them: inputs.to({kind}), or module.double()."
            )

    def _check_fitted(self) -> None:
        if not self._state:
            raise RuntimeError(
                f"{type(self).__name__} has not been fitted, so there is nothing to predict from; "
                "call fit(...), or load a state_dict, first."
            )
