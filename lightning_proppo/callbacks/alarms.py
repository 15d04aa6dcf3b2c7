"""When a gradient is noise, or wrong: warn, or stop the training."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lightning_proppo.comparison import Difference
from lightning_proppo.errors import check_choice
from lightning_proppo.mathematics.accuracy import signal_to_noise, standard_errors
from lightning_proppo.mathematics.disagreement import squared_error

# Standard errors beyond which RP and LR disagree: by chance in 2 of 1e9 tests. A look makes one for
# each coordinate of each sample.
SIGNIFICANT = 6.0


class Disagreement(NamedTuple):
    """What a look says of RP's and LR's difference.

    Attributes:
        used: the estimator in use.
        guarded: whether TP tests samples, and relies on LR where it disagrees with RP.
        difference: of the rollout's gradients, as few numbers; None if it is not known.
        particles: P, of all ranks.
        by_row: the lengths of time steps' differences in standard errors, averaged over gradients,
            [H]; empty where they are not known.
        rows: what H counts.
    """

    used: str
    guarded: bool
    difference: Difference | None
    particles: int
    by_row: Tensor
    rows: str

    @property
    def misleads(self) -> bool:
        """Whether the gradient in use is wrong where RP's is."""
        return self.used == "RP" or (self.used == "TP" and not self.guarded)


class Words(NamedTuple):
    """Something to be said.

    Attributes:
        text: the words.
        harmless: whether the gradient in use is right nevertheless.
    """

    text: str
    harmless: bool = False


class Alarm:
    """Warns, or stops, where a gradient is noise or wrong.

    That is where the signal stays under the noise, where RP's variance explodes, and where RP and
    LR disagree. One look says little, so that of the last ``patience`` looks is pooled: the sum of
    their squared signals is compared with the sum of their variances, and the sum of their
    differences with its standard error. Each is said once.

    Args:
        action: None, ``"warn"`` or ``"stop"``.
        min_snr: the least signal-to-noise ratio.
        max_rp_ratio: how many times LR's variance RP's may be.
        patience: how many looks are pooled, and must find RP's variance too large. Nothing is said
            before there are so many.

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
        self._differences: deque[Difference] = deque(maxlen=self.patience)
        self._said: set[str] = set()

    def state_dict(self) -> dict[str, Any]:
        """Return earlier looks, and what has been said, as tensors and plain values."""
        return {
            "looks": list(self._looks),
            "exploded": list(self._exploded),
            "differences": [[each.vector, each.variance] for each in self._differences],
            "said": sorted(self._said),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on after those looks."""
        self.reset()
        self._looks.extend((signal, variance) for signal, variance in state["looks"])
        self._exploded.extend(state["exploded"])
        # Older states have none.
        self._differences.extend(Difference(*each) for each in state.get("differences", ()))
        self._said.update(state["said"])

    def check(
        self,
        signal: float,
        variance: float,
        rp_ratio: float | None = None,
        disagreement: Disagreement | None = None,
    ) -> tuple[Words, ...]:
        """Look at what was found at a step.

        Args:
            signal: an unbiased estimate of the expected gradient's squared norm.
            variance: of the gradient.
            rp_ratio: RP's variance over LR's, where RP is in use.
            disagreement: RP's and LR's, where it is known.

        Returns:
            What there is to be said, as a rule nothing.
        """
        if self.action is None:
            return ()
        self._looks.append((signal, variance))
        self._exploded.append(
            rp_ratio is not None and not rp_ratio <= self.max_rp_ratio  # also if it is not finite
        )
        difference = None if disagreement is None else disagreement.difference
        if difference is not None and math.isfinite(difference.squared_norm + difference.variance):
            self._differences.append(difference)
        if len(self._looks) < self.patience:
            return ()
        snr = self._pooled()
        looks = f"the last {self.patience} looks" if self.patience > 1 else "the last look"
        found: dict[str, Words] = {}
        if all(self._exploded):
            found["exploded"] = Words(
                f"RP's variance is {rp_ratio:.3g} times LR's, and has been more than "
                f"{self.max_rp_ratio:g} times in {looks}: back-propagation through this rollout "
                "gives noise. Use the estimator 'TP' or 'LR', or a shorter horizon."
            )
        if not snr >= self.min_snr:
            found["noisy"] = Words(
                f"the gradient's signal-to-noise ratio is {snr:.3g} over {looks}, under "
                f"{self.min_snr:g}: its direction is mostly chance. Use more particles, another "
                "estimator (particles_needed says which), or a shorter horizon. Near an optimum, "
                "where the gradient vanishes, this is as it should be."
            )
        if disagreement is not None and self._z(disagreement) > SIGNIFICANT:
            kind = "wrong" if disagreement.misleads else "disagreeing"
            found[kind] = _on_disagreement(disagreement, self._z(disagreement))
        said = tuple(words for kind, words in found.items() if kind not in self._said)
        self._said |= set(found)
        return said

    def _z(self, latest: Disagreement) -> float:
        """Return the largest difference, of the rollout over the last looks or of a time step."""
        found = latest.by_row.tolist()
        if self._differences:
            total = torch.stack([each.vector for each in self._differences]).sum(0)
            variance = torch.tensor(sum(each.variance for each in self._differences)).double()
            # As a time step's, it is at most the root of the particles: few prove little.
            particles = latest.particles * len(self._differences)
            variance = squared_error(total.unsqueeze(0), variance, particles)
            found.append(standard_errors(float(total.square().sum()), float(variance)))
        return max(found, default=0.0)

    def _pooled(self) -> float:
        """Return the signal-to-noise ratio of the last looks together; zero if not finite."""
        signal, variance = (sum(values) for values in zip(*self._looks, strict=True))
        return signal_to_noise(signal, variance)


def _on_disagreement(found: Disagreement, z: float) -> Words:
    """Say that RP is wrong, where, and what that means for the estimator in use."""
    significant = [row for row, value in enumerate(found.by_row.tolist()) if value > SIGNIFICANT]
    at = f" at {_ranges(significant, found.rows)}" if significant else ""
    by = f" by {'up to ' if len(significant) > 1 else ''}{z:.0f} standard errors"
    begin = (
        f"RP and LR disagree{at}{by}: the cost or the dynamics jump"
        f"{' after what is drawn there' if at else ''}, or a derivative is missing "
        "(detach(), rounding). "
    )
    if not found.misleads:
        right = "TP, in use, relies on LR there" if found.used == "TP" else "LR, in use, does not"
        return Words(f"{begin}RP misses that; {right}.", harmless=True)
    used, use = "RP", "Use the estimator 'TP' or 'LR'"
    if found.used == "TP":
        used, use = "TP without its guard", "Use guard=True, or the estimator 'LR'"
    return Words(
        f"{begin}{used}, in use, misses that: its gradient is wrong, however high its "
        f"signal-to-noise ratio. {use}. Where a parameter enters a jump directly, draw a sample "
        "before the jump: without noise LR misses it too."
    )


def _ranges(numbers: Sequence[int], rows: str) -> str:
    """Return numbers in words, such as "time steps 3 and 7 to 9"."""
    ends: list[list[int]] = []
    for number in numbers:
        if ends and number == ends[-1][1] + 1:
            ends[-1][1] = number
        else:
            ends.append([number, number])
    parts = [f"{a}" if a == b else f"{a} to {b}" for a, b in ends]
    words = " and ".join([*filter(None, [", ".join(parts[:-1])]), parts[-1]])
    return f"{rows}{'s' if len(numbers) > 1 else ''} {words}"
