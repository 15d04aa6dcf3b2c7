"""The models of dynamics that there are."""

from __future__ import annotations

from collections.abc import Sequence

from proppo_agents.dynamics.base import DynamicsModel
from proppo_agents.regression import Ensemble, ExactGP, Regressor, SparseGP
from proppo_agents.regression.gp_posterior import GPPosterior


class GPDynamics(DynamicsModel):
    """Exact Gaussian processes, for up to about 1,000 transitions. See :class:`ExactGP`.

    Args:
        steps: Adam's steps in fitting the hyperparameters.
        learning_rate: Adam's.

    Raises:
        ValueError: if an argument is not as said here.
    """

    regressor: ExactGP

    def __init__(self, steps: int = 150, learning_rate: float = 0.1) -> None:
        self.steps, self.learning_rate = steps, learning_rate
        super().__init__()

    def _make_regressor(self) -> Regressor:
        return ExactGP(self.steps, self.learning_rate)

    @property
    def posterior(self) -> GPPosterior:
        """What predictions are made from."""
        return self.regressor.posterior


class SparseGPDynamics(DynamicsModel):
    """Sparse variational Gaussian processes, for more than that. See :class:`SparseGP`.

    Args:
        inducing: points that each process learns of all data.
        steps: of the fit, with minibatches.
        learning_rate: Adam's.

    Raises:
        ValueError: if an argument is not as said here.
    """

    regressor: SparseGP

    def __init__(self, inducing: int = 150, steps: int = 200, learning_rate: float = 0.02) -> None:
        self.inducing, self.steps, self.learning_rate = inducing, steps, learning_rate
        super().__init__()

    def _make_regressor(self) -> Regressor:
        return SparseGP(self.inducing, self.steps, self.learning_rate)


class EnsembleDynamics(DynamicsModel):
    """An ensemble of probabilistic networks, for more than about 10,000. See :class:`Ensemble`.

    Args:
        members: how many networks.
        hidden: sizes of their hidden layers.
        steps: Adam's steps in a fit.
        learning_rate: Adam's.
        batch_size: of a member's minibatches.
        weight_decay: Adam's, of the weights.
        trajectories: ``"TS-inf"``: a particle goes by one member for the whole rollout; ``"TS-1"``:
            by another one at each step.

    Raises:
        ValueError: if an argument is not as said here.
    """

    regressor: Ensemble

    def __init__(
        self,
        members: int = 5,
        hidden: Sequence[int] = (200, 200, 200),
        steps: int = 1000,
        learning_rate: float = 1e-3,
        batch_size: int = 64,
        weight_decay: float = 1e-4,
        trajectories: str = "TS-inf",
    ) -> None:
        self.members, self.hidden, self.steps = members, tuple(hidden), steps
        self.learning_rate, self.batch_size = learning_rate, batch_size
        self.weight_decay, self.trajectories = weight_decay, trajectories
        super().__init__()

    def _make_regressor(self) -> Regressor:
        return Ensemble(
            self.members,
            self.hidden,
            self.steps,
            self.learning_rate,
            self.batch_size,
            self.weight_decay,
            self.trajectories,
        )
