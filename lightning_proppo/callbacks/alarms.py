"""When a gradient is noise: warn, or stop the training."""

from __future__ import annotations

import math
from typing import Any

from pytorch_lightning.utilities import rank_zero_warn

from lightning_proppo.errors import check_choice


class Alarm:
    """Warns, or stops, where the signal stays under the noise or RP's variance explodes.

    Args:
        action: None, ``"warn"`` or ``"stop"``.
        min_snr: the least signal-to-noise ratio.
        max_rp_ratio: how many times LR's variance RP's may be.
        patience: how many looks in a row must find it so.

    Raises:
        ValueError: for a number or name that cannot be.
    """

    def __init__(
        self, action: str | None, min_snr: float, max_rp_ratio: float, patience: int
    ) -> None:
        if action is not None:
            check_choice("alarm", action, ("warn", "stop"))
        if not min_snr >= 0:
            raise ValueError(f"min_snr must be 0 or more; got {min_snr!r}.")
        if not max_rp_ratio > 0:
            raise ValueError(f"max_rp_ratio must be more than 0; got {max_rp_ratio!r}.")
        if not isinstance(patience, int) or patience < 1:
            raise ValueError(f"patience must be an int of at least 1; got {patience!r}.")
        self.action = action
        self.min_snr = min_snr
        self.max_rp_ratio = max_rp_ratio
        self.patience = patience
        self._noisy = 0
        self._exploded = 0

    def check(
        self, trainer: Any, step: int, found: dict[str, float], variances: dict[str, float]
    ) -> None:
        """Look at what was found at a step.

        Args:
            trainer: which is stopped.
            step: the number of optimizer steps so far.
            found: ``gradient/...`` of the estimator in use.
            variances: by estimator, where RP is in use.
        """
        if self.action is None:
            return
        snr = found["gradient/snr"]
        self._noisy = self._noisy + 1 if not snr >= self.min_snr else 0
        rp, lr = variances.get("RP", 0.0), variances.get("LR", math.inf)
        exploded = not math.isfinite(rp) or rp > self.max_rp_ratio * lr
        self._exploded = self._exploded + 1 if exploded else 0
        if self._exploded >= self.patience:
            self._raise(
                trainer,
                f"RP's variance is {rp:.3g}, {rp / lr:.3g} times LR's, at step {step} and for "
                f"{self.patience} looks: back-propagation through this rollout gives noise. Use "
                "the estimator 'TP' (or 'LR'), or a shorter horizon.",
            )
        elif self._noisy >= self.patience:
            needed = self.min_snr / snr if snr > 0 else math.inf
            more = f"about {needed:.3g} times as many" if math.isfinite(needed) else "more"
            self._raise(
                trainer,
                f"the gradient's signal-to-noise ratio is {snr:.3g} at step {step} and has been "
                f"under {self.min_snr:g} for {self.patience} looks: its direction is mostly "
                f"chance. Use {more} particles, another estimator (see particles_needed), or a "
                "shorter horizon; near an optimum, where the gradient vanishes, this is as it "
                "should be.",
            )

    def _raise(self, trainer: Any, message: str) -> None:
        self._noisy = self._exploded = 0
        if self.action == "stop":
            trainer.should_stop = True
            rank_zero_warn(f"VarianceMonitor stops the training: {message}")
        else:
            rank_zero_warn(f"VarianceMonitor: {message}")
