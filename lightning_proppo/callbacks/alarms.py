"""When a gradient is noise: warn, or stop the training."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Any

from lightning_proppo.errors import check_choice
from lightning_proppo.mathematics.accuracy import signal_to_noise


class Alarm:
    """Warns, or stops, where the signal stays under the noise or RP's variance explodes.

    One look says little of the signal, so that of the last ``patience`` looks is pooled: the sum of
    their squared signals is compared with the sum of their variances. Each of the two is said once.

    Args:
        action: None, ``"warn"`` or ``"stop"``.
        min_snr: the least signal-to-noise ratio.
        max_rp_ratio: how many times LR's variance RP's may be.
        patience: how many looks are pooled, and must find RP's variance too large.

    Raises:
        ValueError: for a number or name that cannot be.
    """

    def __init__(
        self, action: str | None, min_snr: float, max_rp_ratio: float, patience: int
    ) -> None:
        if action is not None:
            check_choice("alarm", action, ("warn", "stop"))
        for name, value in (("min_snr", min_snr), ("max_rp_ratio", max_rp_ratio)):
            if not isinstance(value, (int, float)) or not value >= 0:
                raise ValueError(f"{name} must be a number of 0 or more; got {value!r}.")
        if not isinstance(patience, int) or patience < 1:
            raise ValueError(f"patience must be an int of at least 1; got {patience!r}.")
        self.action = action
        self.min_snr = min_snr
        self.max_rp_ratio = max_rp_ratio
        self.patience = patience
        self.reset()

    def reset(self) -> None:
        """Forget earlier looks."""
        self._looks: deque[tuple[float, float]] = deque(maxlen=self.patience)
        self._exploded: deque[bool] = deque(maxlen=self.patience)
        self._said: set[str] = set()

    def state_dict(self) -> dict[str, Any]:
        """Return earlier looks, and what has been said, as plain values."""
        return {
            "looks": list(self._looks),
            "exploded": list(self._exploded),
            "said": sorted(self._said),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on after those looks."""
        self.reset()
        self._looks.extend((signal, variance) for signal, variance in state["looks"])
        self._exploded.extend(state["exploded"])
        self._said.update(state["said"])

    def check(
        self, signal: float, variance: float, rp_ratio: float | None = None
    ) -> tuple[str, ...]:
        """Look at what was found at a step.

        Args:
            signal: an unbiased estimate of the expected gradient's squared norm.
            variance: of the gradient.
            rp_ratio: RP's variance over LR's, where RP is in use.

        Returns:
            What there is to be said, as a rule nothing.
        """
        if self.action is None:
            return ()
        self._looks.append((signal, variance))
        self._exploded.append(
            rp_ratio is not None and not rp_ratio <= self.max_rp_ratio  # also if it is not finite
        )
        snr = self._pooled()
        looks = f"the last {self.patience} looks" if self.patience > 1 else "the last look"
        found = {
            "exploded": sum(self._exploded) == self.patience
            and f"RP's variance is {rp_ratio:.3g} times LR's, and has been more than "
            f"{self.max_rp_ratio:g} times in {looks}: back-propagation through this rollout gives "
            "noise. Use the estimator 'TP' or 'LR', or a shorter horizon.",
            "noisy": len(self._looks) == self.patience
            and not snr >= self.min_snr
            and f"the gradient's signal-to-noise ratio is {snr:.3g} over {looks}, under "
            f"{self.min_snr:g}: its direction is mostly chance. Use more particles, another "
            "estimator (particles_needed says which), or a shorter horizon. Near an optimum, where "
            "the gradient vanishes, this is as it should be.",
        }
        said = tuple(words for kind, words in found.items() if words and kind not in self._said)
        self._said |= {kind for kind, words in found.items() if words}
        return said

    def _pooled(self) -> float:
        """Return the signal-to-noise ratio of the last looks together; zero if not finite."""
        signal, variance = (sum(values) for values in zip(*self._looks, strict=True))
        return signal_to_noise(signal, variance)
