"""Exact Gaussian processes."""

from __future__ import annotations

import warnings

from torch import Tensor

from proppo_agents.arguments import check_fit
from proppo_agents.regression.base import Regressor
from proppo_agents.regression.gp_fit import fit_hyperparameters
from proppo_agents.regression.gp_posterior import GPPosterior, Hyperparameters, condition

# Beyond, a fit takes minutes, and a prediction longer than the sparse approximation's.
_MANY = 1000


class ExactGP(Regressor):
    """Independent Gaussian processes with ARD squared exponential kernels, one for each output.

    The best there is for up to about 1,000 data; a fit costs their number cubed, a prediction its
    square. Hyperparameters start at lengthscales of the inputs' full spread, and maximize the
    marginal likelihood. As in PILCO, a signal far above the noise is penalized.

    Args:
        steps: Adam's steps in fitting the hyperparameters.
        learning_rate: Adam's.

    Raises:
        ValueError: if an argument is not as said here.
    """

    posterior: GPPosterior

    def __init__(self, steps: int = 150, learning_rate: float = 0.1) -> None:
        super().__init__()
        check_fit(steps, learning_rate)
        self.steps, self.learning_rate = steps, learning_rate

    def _fit(self, inputs: Tensor, outputs: Tensor) -> dict[str, Tensor]:
        if len(inputs) > _MANY:
            # Warned of once for each place; the number would make each text another one.
            warnings.warn(
                f"an exact Gaussian process is fitted to more than {_MANY} data, which is slow; "
                "take the sparse one (proppo_agents.SparseGPDynamics).",
                stacklevel=2,
            )
        found = fit_hyperparameters(inputs, outputs, self.steps, self.learning_rate)
        return {"inputs": inputs, "outputs": outputs, **vars(found)}

    def _prepare(self, state: dict[str, Tensor], like: Tensor) -> None:
        named = dict(state)
        inputs, outputs = named.pop("inputs"), named.pop("outputs")
        self.posterior = condition(inputs, outputs, Hyperparameters(**named)).to(like)

    def _predict(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        return self.posterior.predict(inputs)

    def _noise_std(self) -> Tensor:
        return self.posterior.noise_std.detach()
