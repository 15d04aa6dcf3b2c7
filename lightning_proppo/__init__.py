"""Monte Carlo gradient estimation through stochastic rollouts, for PyTorch Lightning.

Record a rollout's samples with a :class:`PropagationManager`, return ``manager.loss(costs)``, and
``loss.backward()`` runs the propagators (RP, LR, TP, GR, GS) instead of plain back-propagation.
:class:`PropagationCallback` gives a LightningModule its manager, and :class:`VarianceMonitor` shows
how noisy its gradient is.
"""

from lightning_proppo.callbacks import PropagationCallback, VarianceMonitor
from lightning_proppo.errors import PropagationError
from lightning_proppo.manager import PropagationManager
from lightning_proppo.mathematics.baselines import mean_baseline, no_baseline
from lightning_proppo.mathematics.variances import expand, inverse_variance_weighting
from lightning_proppo.per_particle import per_particle_rule

__version__ = "0.1.0"

__all__ = [
    "PropagationCallback",
    "PropagationError",
    "PropagationManager",
    "VarianceMonitor",
    "expand",
    "inverse_variance_weighting",
    "mean_baseline",
    "no_baseline",
    "per_particle_rule",
]
