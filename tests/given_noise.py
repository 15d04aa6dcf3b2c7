"""Normal noise from outside: the same in every precision, thread and estimator."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.distributions import Normal


class Given(Normal):
    """A normal distribution that draws what it is told to.

    Args:
        loc: its mean.
        scale: its standard deviation.
        noise: what is drawn, in standard deviations; of any dtype.
    """

    def __init__(self, loc: Tensor, scale: float, noise: Tensor) -> None:
        super().__init__(loc, scale)
        self.noise = noise

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        return self.loc + self.scale * self.noise.to(self.loc)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        return self.rsample().detach()
