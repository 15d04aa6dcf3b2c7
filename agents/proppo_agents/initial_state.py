"""Where episodes start: a distribution fitted to the first observations of those so far."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from typing_extensions import Self

from proppo_agents.arguments import check_each
from proppo_agents.encodings import angle_changes, onto_circles
from proppo_agents.experience.episodes import Episode
from proppo_agents.parts import Part, Spaces


class InitialState(Part):
    r"""A normal distribution of an episode's first observation, independent between coordinates.

    With n first observations :math:`x_i`, their mean :math:`\bar x`, and a prior standard deviation
    :math:`s_0` that counts as :math:`\nu` observations:

    .. math::
        m = \bar x, \qquad
        s^2 = \frac{\nu s_0^2 + \sum_i (x_i - \bar x)^2}{\nu + n - 1}

    so a deviation is not 0 after the first episode. Where the mean is known, it stands for
    :math:`\bar x`, and -1 falls away. Angles are averaged as points on the circle. Sines and
    cosines that the environment observes are put back onto the circle when they have been drawn.

    Args:
        mean: [D], where it is known; None: fitted.
        std: a number or [D], where it is known; None: fitted.
        prior_std: s_0, a number or [D], in the coordinates' units; None: a tenth of the deviation
            of all observations so far from there, or the root mean square of their change in a
            step, whichever is smaller.
        prior_weight: nu, more than 0.

    Raises:
        ValueError: if an argument is not as said here.
    """

    mean_value: Tensor
    std_value: Tensor

    def __init__(
        self,
        mean: Sequence[float] | None = None,
        std: float | Sequence[float] | None = None,
        prior_std: float | Sequence[float] | None = None,
        prior_weight: float = 1.0,
    ) -> None:
        super().__init__()
        if not prior_weight > 0:
            raise ValueError(f"prior_weight must be positive; got {prior_weight!r}.")
        self.mean = None if mean is None else tuple(float(value) for value in mean)
        self.std, self.prior_std, self.prior_weight = std, prior_std, prior_weight

    def build(self, spaces: Spaces) -> Self:
        """Prepare for an environment, and return itself.

        Raises:
            ValueError: if a mean or deviation does not have the size of an observation.
        """
        size = spaces.observation_size
        if self.mean is not None and len(self.mean) != size:
            raise ValueError(
                f"mean must be {size} numbers, one for each coordinate of the observation; got "
                f"{list(self.mean)}."
            )
        self._spaces = spaces
        mean = torch.zeros(size) if self.mean is None else torch.tensor(self.mean)
        std = torch.ones(size)
        if self.std is not None:
            std = check_each("std", self.std, size)
        if self.prior_std is not None:
            check_each("prior_std", self.prior_std, size)
        self.register_buffer("mean_value", mean.to(torch.get_default_dtype()))
        self.register_buffer("std_value", std.to(torch.get_default_dtype()))
        return self

    def fit(self, episodes: Sequence[Episode]) -> None:
        """Fit what is not known to the episodes, at least one."""
        angles = self._spaces.angles
        first = torch.stack([episode.observations[0] for episode in episodes])
        if self.mean is None:
            centre = first.mean(0)
            for i in angles:
                centre[i] = torch.atan2(first[:, i].sin().mean(), first[:, i].cos().mean())
            self.mean_value.copy_(centre)
        else:
            centre = torch.tensor(self.mean, dtype=first.dtype)
        if self.std is not None:
            return
        deviations = angle_changes(first - centre, angles)
        if self.prior_std is None:
            away = torch.cat([e.observations - centre for e in episodes])
            changes = torch.cat([e.observations[1:] - e.observations[:-1] for e in episodes])
            away, changes = (
                angle_changes(v, angles).square().mean(0).sqrt() for v in (away, changes)
            )
            prior = torch.minimum(0.1 * away, changes)
        else:
            prior = check_each("prior_std", self.prior_std, len(centre))
        weight = self.prior_weight
        count = len(first) - (self.mean is None)  # a fitted mean takes one of them
        variance = (weight * prior.square() + deviations.square().sum(0)) / (weight + count)
        self.std_value.copy_(variance.sqrt())

    def sample(self, particles: int) -> Tensor:
        """Return first observations [P, D]."""
        noise = torch.randn(
            (particles, len(self.mean_value)),
            dtype=self.mean_value.dtype,
            device=self.mean_value.device,
        )
        return onto_circles(self.mean_value + self.std_value * noise, self._spaces.encoded_angles)
