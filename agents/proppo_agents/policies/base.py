"""What every policy does."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor
from typing_extensions import Self

from lightning_proppo.errors import check_choice
from proppo_agents.encodings import check_angles, encode_angles
from proppo_agents.parts import Part, Spaces
from proppo_agents.policies.squashing import SQUASHINGS


class Policy(Part):
    r"""A deterministic policy with actions in [-1, 1].

    .. math:: u = \mathrm{squash}(f(x))

    with x the observation [P, I], its angles as sines and cosines. It has parameters once it has
    been built for an environment; :meth:`reset` draws new ones.

    A final class says what f is, and how its parameters are drawn.

    Args:
        squash: ``"sine"``, PILCO's :func:`~proppo_agents.policies.squashing.squash`, or ``"tanh"``.

    Raises:
        ValueError: for another one.
    """

    def __init__(self, squash: str = "sine") -> None:
        super().__init__()
        check_choice("squash", squash, SQUASHINGS)
        self.squash = squash
        self.angles: tuple[int, ...] = ()
        self._size = 0  # of an observation, once built

    # -- for a final class -------------------------------------------------------------------

    @abstractmethod
    def _build(self, inputs: int, actions: int) -> None:
        """Make the parameters, of any values, for I inputs and A actions."""

    @abstractmethod
    def _reset(self, centre: Tensor, spread: Tensor) -> None:
        """Draw the parameters for observations [D] around ``centre``, under ``no_grad``."""

    @abstractmethod
    def _unsquashed(self, x: Tensor) -> Tensor:
        """Return f [P, A] at inputs [P, I]."""

    # -- for everybody -----------------------------------------------------------------------

    def build(self, spaces: Spaces) -> Self:
        """Make the parameters for an environment, draw them, and return itself.

        Raises:
            ValueError: if the angles are no coordinates of an observation.
        """
        self.angles = check_angles(spaces.angles, spaces.observation_size)
        self._size = spaces.observation_size
        self._build(spaces.encoded_size, spaces.action_size)
        self.reset(torch.zeros(spaces.observation_size), torch.ones(spaces.observation_size))
        return self

    @torch.no_grad()
    def reset(self, centre: Tensor, spread: Tensor) -> None:
        """Draw new parameters in place of the present ones.

        Args:
            centre: [D], where observations are expected.
            spread: [D], their typical deviation from there, positive; ignored for angles, which
                may be anywhere on the circle.
        """
        like = next(self.parameters())
        self._reset(centre.to(like), spread.to(like))

    def forward(self, observation: Tensor) -> Tensor:
        """Return the actions [P, A] at observations [P, D] (any leading axes).

        Raises:
            ValueError: if the policy was built for observations of another size.
        """
        if observation.shape[-1:] != (self._size,):
            raise ValueError(
                f"observation must be [P, {self._size}], as the environment's that the policy was "
                f"built for; got {list(observation.shape)}."
            )
        x = encode_angles(observation, self.angles)
        actions = SQUASHINGS[self.squash](self._unsquashed(x.reshape(-1, x.shape[-1])))
        return actions if x.dim() == 2 else actions.reshape(*x.shape[:-1], -1)

    def _encoded_standardization(self, centre: Tensor, spread: Tensor) -> tuple[Tensor, Tensor]:
        """Return what to subtract from inputs and to divide them by [I]; sines are left alone."""
        others = [i for i in range(len(centre)) if i not in self.angles]
        count = 2 * len(self.angles)
        return (
            torch.cat([centre[others], centre.new_zeros(count)]),
            torch.cat([spread[others], spread.new_ones(count)]),
        )
