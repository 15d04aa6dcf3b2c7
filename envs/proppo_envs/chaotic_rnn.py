"""The chaotic recurrent network, the toy system of the Proppo paper: no agent, no Lightning."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributions import Normal

from proppo_envs.checks import check_coordinates, check_floating, check_positive


@dataclass(frozen=True)
class ChaoticRNN:
    r"""A sigmoid network of two neurons whose rollouts turn chaotic near beta = 2.5.

    .. math::
        x_{t+1} &= \sigma(\beta\, x_t W) + \varepsilon_t, \qquad
        \varepsilon_t \sim \mathcal N(0, s^2 I) \\
        L &= \tfrac12 |1 - x_H|^2

    with the row vector x. The inverse temperature beta is the parameter to differentiate by. The
    network is of Wang (1991, "Period-doublings to chaos in a simple neural network"), with these
    constants in the Proppo paper, Sec. 4.1. As the defaults are theirs, ``ChaoticRNN()`` is the
    published system.

    Args:
        weight: W, two rows of two columns.
        start: x_0, the same for every particle.
        noise_std: s, 0 excluded because :meth:`transition` would have no density.
        horizon: H, the number of transitions before the cost.

    Raises:
        ValueError: an argument is not as said here.
    """

    weight: tuple[tuple[float, float], tuple[float, float]] = ((-5.0, -25.0), (5.0, 25.0))
    start: tuple[float, float] = (0.35, 0.55)
    noise_std: float = 1e-3
    horizon: int = 100

    def __post_init__(self) -> None:
        if len(self.weight) != 2 or any(len(row) != 2 for row in self.weight):
            raise ValueError(f"weight: expected two rows of two numbers, got {self.weight!r}")
        if len(self.start) != 2:
            raise ValueError(f"start: expected two numbers, got {self.start!r}")
        check_positive("noise_std", self.noise_std)
        if self.horizon < 1:
            raise ValueError(f"horizon: expected at least 1, got {self.horizon!r}")

    def initial_state(
        self,
        particles: int,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> Tensor:
        """x_0 for every particle.

        Args:
            particles: P, at least 1.
            dtype: of the result; torch's default where ``None``.
            device: of the result; torch's default where ``None``.

        Returns:
            ``[P, 2]``, memory of its own for each particle.

        Raises:
            ValueError: ``particles`` is less than 1.
        """
        if particles < 1:
            raise ValueError(f"particles: expected at least 1, got {particles!r}")
        return torch.tensor(self.start, dtype=dtype, device=device).repeat(particles, 1)

    def mean(self, x: Tensor, beta: Tensor) -> Tensor:
        r"""The next state without its noise, :math:`\sigma(\beta\, x W)`.

        Args:
            x: ``[P, 2]`` (any leading axes).
            beta: ``[]``, ``[1]``, or ``[P, 1]`` with a value for each particle.

        Returns:
            ``[P, 2]``.

        Raises:
            TypeError: an argument is not a floating-point tensor.
            ValueError: an argument's shape is not as said here.
        """
        check_coordinates("x", x, 2, leading="P")
        _check_beta(beta, x)
        return torch.sigmoid(beta * (x @ x.new_tensor(self.weight)))

    def transition(self, x: Tensor, beta: Tensor) -> Normal:
        """Distribution of the next state: :meth:`mean` with independent noise on each neuron.

        Args:
            x: ``[P, 2]`` (any leading axes).
            beta: ``[]``, ``[1]``, or ``[P, 1]`` with a value for each particle.

        Returns:
            A normal distribution of batch shape ``[P, 2]``.

        Raises:
            TypeError: an argument is not a floating-point tensor.
            ValueError: an argument's shape is not as said here.
        """
        return Normal(self.mean(x, beta), self.noise_std)

    def cost(self, x: Tensor) -> Tensor:
        r"""The loss of each particle at the horizon, :math:`\tfrac12 |1 - x|^2`.

        Args:
            x: ``[P, 2]`` (any leading axes).

        Returns:
            ``[P]``.

        Raises:
            TypeError: ``x`` is not a floating-point tensor.
            ValueError: its last axis does not have size 2.
        """
        check_coordinates("x", x, 2, leading="P")
        return 0.5 * (1.0 - x).square().sum(dim=-1)


def _check_beta(beta: Tensor, x: Tensor) -> None:
    check_floating("beta", beta)
    if beta.dim() == 0:
        return
    # A beta of shape [2] would be broadcast over the neurons and pass for a parameter of each.
    fits = beta.shape[-1] == 1 and beta.dim() <= x.dim()
    leading = zip(reversed(beta.shape[:-1]), reversed(x.shape[:-1]), strict=False)
    if not (fits and all(size in (1, particles) for size, particles in leading)):
        raise ValueError(
            f"beta: expected shape [], [1] or {[*x.shape[:-1], 1]}, got {list(beta.shape)}"
        )
