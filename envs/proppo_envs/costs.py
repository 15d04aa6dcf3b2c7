"""Costs of the environments: differentiable, batched, each written once.

An environment computes its reward from the function here that its agents differentiate, so the
two cannot drift apart.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from proppo_envs.checks import check_coordinates, check_positive


def tip_distance_squared(observation: Tensor, *, pole_length: float | Sequence[float]) -> Tensor:
    r"""Squared distance of the pole's tip from where it stands when balanced over the origin.

    .. math:: d^2 = (x - l \sin\theta)^2 + (l \cos\theta - l)^2

    The angle is 0 upright and grows counter-clockwise, so a positive angle leans left and the tip
    is at :math:`(x - l \sin\theta,\; l \cos\theta)`, in metres from the pivot's height over the
    origin. The angle enters by sine and cosine only: the distance has its period of 2 pi.

    With several poles, each on the end of the one before, sums over them take the place of the
    terms with l, each angle being measured from the vertical; the tip is that of the last.

    Args:
        observation: ``[..., 4]``, cart position (m), cart velocity (m/s), pole angle (rad), pole
            angular velocity (rad/s); for each further pole two coordinates more. A true state
            serves as well.
        pole_length: length l of the pole (m), positive; with several, one for each, outwards.

    Returns:
        ``[...]``, in square metres, of the observation's dtype.

    Raises:
        TypeError: ``observation`` is not a floating-point tensor.
        ValueError: its last axis does not have size 4 (2 + 2 N with N poles), or a length is not
            positive and finite.
    """
    lengths = _several("pole_length", pole_length)
    check_coordinates("observation", observation, 2 + 2 * len(lengths))
    horizontal = observation[..., 0]
    vertical = torch.zeros_like(horizontal)
    for length, angle in zip(lengths, observation[..., 2::2].unbind(-1), strict=True):
        horizontal = horizontal - length * torch.sin(angle)
        # 1 - cos(angle), without its cancellation near upright, where the agent shall end up.
        vertical = vertical + 2.0 * length * torch.sin(0.5 * angle).square()
    return horizontal.square() + vertical.square()


def tip_distance_cost(
    observation: Tensor,
    *,
    pole_length: float | Sequence[float],
    width: float | Sequence[float],
) -> Tensor:
    r"""Saturating cost of the distance of the pole's tip from balance over the origin.

    .. math:: c = 1 - \exp\left(-\frac{d^2}{2 w^2}\right) \in [0, 1]

    with the distance d of :func:`tip_distance_squared`. The form is PILCO's (Deisenroth and
    Rasmussen, 2011); PILCO takes w = 0.25 m, PIPPS (Parmas et al., 2018) 0.5 m. With several
    widths it is the mean of their costs: a narrow one asks for an upright pole, where a wide one
    is content with a leaning pole over a cart beside the origin, but only a wide one has a
    gradient far from the goal.

    Args:
        observation: ``[..., 4]``, cart position (m), cart velocity (m/s), pole angle (rad), pole
            angular velocity (rad/s), the angle 0 upright and growing counter-clockwise; for each
            further pole two coordinates more.
        pole_length: length of the pole (m), positive; with several, one for each, outwards.
        width: width w of the cost (m), positive; or several.

    Returns:
        ``[...]``, dimensionless, of the observation's dtype. It can be differentiated everywhere,
        at the target too.

    Raises:
        TypeError: ``observation`` is not a floating-point tensor.
        ValueError: its last axis does not have size 4 (2 + 2 N with N poles), or a length or a
            width is not positive and finite.
    """
    widths = _several("width", width)
    squared = tip_distance_squared(observation, pole_length=pole_length)
    # expm1: near the target 1 - exp(-small) would lose every digit in float32.
    costs = [-torch.expm1(squared * (-0.5 / one**2)) for one in widths]
    return costs[0] if len(costs) == 1 else torch.stack(costs).mean(dim=0)


def _several(name: str, value: float | Sequence[float]) -> tuple[float, ...]:
    values = tuple(value) if isinstance(value, Sequence) else (value,)
    if not values:
        raise ValueError(f"{name}: expected at least one positive finite number, got none")
    for one in values:
        check_positive(name, one)
    return values
