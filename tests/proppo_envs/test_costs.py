"""The cost of the tip's distance: values, symmetries, derivatives, refusals."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from proppo_envs import tip_distance_cost
from proppo_envs.cartpole_physics import CartPoleParameters
from proppo_envs.costs import tip_distance_squared

from .cartpole_mechanics import tip_position


def cost(observation: Tensor) -> Tensor:
    return tip_distance_cost(observation, pole_length=0.5, width=0.5)


def observations(count: int, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    scale = torch.tensor([0.5, 2.0, 3.0, 5.0], dtype=dtype)
    return torch.randn(count, 4, generator=generator, dtype=dtype) * scale


def test_known_values() -> None:
    states = torch.tensor(
        [
            [0.0, 3.0, 0.0, -2.0],  # the target; the velocities do not count
            [0.0, 0.0, math.pi, 0.0],  # hanging: 1 m away
            [0.3, 0.0, 0.0, 0.0],  # upright, 0.3 m aside
            [0.5, 0.0, math.pi / 2, 0.0],  # lying to the left with the tip at the origin
            [-0.5, 0.0, -math.pi / 2, 0.0],  # lying to the right with the tip at the origin
            [-0.5, 0.0, math.pi / 2, 0.0],  # lying to the left, away from the origin
        ],
        dtype=torch.float64,
    )
    squared = torch.tensor([0.0, 1.0, 0.09, 0.25, 0.25, 1.25], dtype=torch.float64)
    expected = 1.0 - torch.exp(-squared / (2 * 0.5**2))
    torch.testing.assert_close(tip_distance_squared(states, pole_length=0.5), squared)
    torch.testing.assert_close(cost(states), expected)


def test_the_tip_is_where_the_physics_has_it() -> None:
    states = observations(100)
    parameters = CartPoleParameters()
    tip = tip_position(states.numpy(), parameters)
    expected = ((tip - np.array([0.0, parameters.pole_length])) ** 2).sum(-1)
    actual = tip_distance_squared(states, pole_length=parameters.pole_length)
    np.testing.assert_allclose(actual.numpy(), expected, rtol=1e-12, atol=1e-14)


def test_the_cost_has_the_angles_period() -> None:
    states = observations(50)
    for turns in (-3, 1, 10):
        turned = states.clone()
        turned[:, 2] += 2 * math.pi * turns
        torch.testing.assert_close(cost(turned), cost(states))


def test_the_cost_has_the_systems_mirror_symmetry() -> None:
    states = observations(50)
    torch.testing.assert_close(cost(-states), cost(states))


def test_range_and_width() -> None:
    states = observations(500)
    values = cost(states)
    assert bool(((values >= 0.0) & (values <= 1.0)).all())
    narrow = tip_distance_cost(states, pole_length=0.5, width=0.25)
    assert bool((narrow >= values).all())
    far = torch.tensor([1e6, 0.0, 0.0, 0.0])
    assert cost(far).item() == 1.0


def test_gradients() -> None:
    states = observations(8).requires_grad_()
    assert torch.autograd.gradcheck(cost, (states,))
    assert torch.autograd.gradgradcheck(cost, (states,))


def test_the_gradient_at_the_target_is_zero_and_its_curvature_is_not() -> None:
    target = torch.zeros(4, dtype=torch.float64)
    torch.testing.assert_close(torch.func.grad(cost)(target), torch.zeros(4, dtype=torch.float64))
    curvature = torch.autograd.functional.hessian(cost, target)  # type: ignore[no-untyped-call]
    # d^2 is (x - l theta)^2 near the target, so that the cost is that over 2 w^2.
    assert curvature[0, 0].item() == pytest.approx(1 / 0.5**2)
    assert curvature[0, 2].item() == pytest.approx(-0.5 / 0.5**2)
    assert curvature[2, 2].item() == pytest.approx(0.25 / 0.5**2)


def test_small_costs_keep_their_digits_in_float32() -> None:
    state = torch.tensor([1e-5, 0.0, 1e-5, 0.0])
    assert cost(state).item() == pytest.approx(cost(state.double()).item(), rel=1e-5, abs=0.0)
    assert cost(state).item() > 0.0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_dtype_and_leading_axes_are_kept(dtype: torch.dtype) -> None:
    states = observations(30).to(dtype).reshape(5, 3, 2, 4)
    values = cost(states)
    assert values.dtype == dtype
    assert values.shape == (5, 3, 2)
    assert cost(states[0, 0, 0]).shape == ()
    torch.testing.assert_close(values.double(), cost(states.double()), atol=1e-2, rtol=1e-2)


def test_vmap() -> None:
    states = observations(6)
    torch.testing.assert_close(torch.func.vmap(cost)(states), cost(states))


@pytest.mark.parametrize("shape", [(), (3,), (4, 3), (4, 5)])
def test_wrong_shapes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"observation: expected shape \[\.\.\., 4\], got"):
        cost(torch.zeros(shape))


def test_wrong_types_are_refused() -> None:
    with pytest.raises(TypeError, match=r"observation: expected a torch\.Tensor, got ndarray"):
        cost(np.zeros(4))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="observation: expected a floating-point tensor"):
        cost(torch.zeros(4, dtype=torch.int64))


@pytest.mark.parametrize("value", [0.0, -1.0, math.inf, math.nan])
def test_wrong_lengths_and_widths_are_refused(value: float) -> None:
    state = torch.zeros(4)
    with pytest.raises(ValueError, match="pole_length: expected a positive finite number, got"):
        tip_distance_cost(state, pole_length=value, width=0.5)
    with pytest.raises(ValueError, match="width: expected a positive finite number, got"):
        tip_distance_cost(state, pole_length=0.5, width=value)


def test_several_widths_give_the_mean_of_their_costs() -> None:
    observation = torch.randn(7, 4, dtype=torch.float64)
    each = [tip_distance_cost(observation, pole_length=0.5, width=w) for w in (0.1, 0.3)]
    found = tip_distance_cost(observation, pole_length=0.5, width=(0.1, 0.3))
    torch.testing.assert_close(found, (each[0] + each[1]) / 2)
    with pytest.raises(ValueError, match="width"):
        tip_distance_cost(observation, pole_length=0.5, width=())
