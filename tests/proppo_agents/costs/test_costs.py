"""Costs: one contract for all, and each one's formula."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from typing import Any

import gymnasium
import pytest
import torch
from torch import Tensor

from proppo_agents.costs import Cost, EnvironmentCost, LearnedReward, QuadraticCost, SaturatingCost
from proppo_agents.experience.episodes import Episode, collect_episode
from proppo_agents.parts import Spaces, make_part
from proppo_agents.regression import ExactGP
from proppo_agents.worlds import World, make_world

SPACES = Spaces(observation_size=3, action_size=2, angles=(1,))


def world(spaces: Spaces = SPACES) -> World:
    known = make_world("proppo_envs:CartPoleSwingUp-v0")
    return replace(known, spaces=spaces, task=None, env=gymnasium.Env())


def steps(count: int = 6) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    sizes = (3, 2, 3)
    found = [torch.randn(count, n, dtype=torch.float64, generator=generator) for n in sizes]
    return found[0], found[1].tanh(), found[2]


class CostContract:
    """What every cost must do, whose class is made by ``new`` and built by ``cost``."""

    def new(self) -> Cost:
        raise NotImplementedError

    def world(self) -> World:
        return world()

    def cost(self) -> Cost:
        return self.new().build(self.world()).double()

    def steps(self) -> tuple[Tensor, Tensor, Tensor]:
        return steps()

    def test_it_gives_one_cost_for_each_particle(self) -> None:
        cost, given = self.cost(), self.steps()
        found = cost(**cost.arguments(*given))
        assert found.shape == (len(given[0]),)
        assert found.dtype == torch.float64
        one = cost(**cost.arguments(*(v[2:3] for v in given)))
        torch.testing.assert_close(one[0], found[2])

    def test_it_depends_on_what_it_uses_and_is_differentiable_by_it(self) -> None:
        cost, given = self.cost(), self.steps()
        arguments = cost.arguments(*(v.clone().requires_grad_() for v in given))
        names = list(arguments)
        assert torch.autograd.gradcheck(
            lambda *values: cost(**dict(zip(names, values, strict=True))),
            tuple(arguments.values()),
        )
        gradients = torch.autograd.grad(cost(**arguments).sum(), list(arguments.values()))
        assert all(bool((g != 0).any()) for g in gradients)

    def test_it_comes_back_from_its_state_and_its_description(self) -> None:
        cost, given = self.cost(), self.steps()
        other = make_part("cost", cost.description(), Cost)  # type: ignore[type-abstract]
        other = other.build(self.world()).double()
        other.load_state_dict(cost.state_dict())
        arguments = cost.arguments(*given)
        assert torch.equal(other(**arguments), cost(**arguments))
        assert other.reward_offset == cost.reward_offset
        assert other.uses == cost.uses


class TestQuadratic(CostContract):
    def new(self) -> Cost:
        return QuadraticCost((1.0, 0.5, -1.0), weights=(1.0, 2.0, 0.5), action_weight=(0.1, 0.2))

    def test_it_is_its_formula(self) -> None:
        _, u, x = steps()
        chord = 2 * torch.sin(0.5 * (x[:, 1] - 0.5))
        expected = (x[:, 0] - 1).square() + 2 * chord.square() + 0.5 * (x[:, 2] + 1).square()
        expected = expected + 0.1 * u[:, 0].square() + 0.2 * u[:, 1].square()
        torch.testing.assert_close(self.cost()(action=u, next_observation=x), expected)

    def test_an_angle_differs_as_points_on_the_circle_do(self) -> None:
        cost = QuadraticCost((0.0, 0.5, 0.0)).build(world()).double()
        x = torch.tensor([[0.0, 0.5 + 2 * math.pi, 0.0], [0.0, 0.5 + math.pi, 0.0]]).double()
        found = cost(next_observation=x)
        torch.testing.assert_close(found, torch.tensor([0.0, 4.0]).double(), rtol=0, atol=1e-6)

    def test_without_a_weight_of_the_action_it_needs_none(self) -> None:
        cost = QuadraticCost((0.0, 0.0, 0.0)).build(world())
        assert cost.uses == ("next_observation",)

    @pytest.mark.parametrize(
        ("options", "told"),
        [
            ({"target": (0.0,)}, "target must be 3 numbers"),
            ({"weights": (1.0, 2.0)}, "weights must be a number or 3 numbers"),
            ({"weights": -1.0}, "weights must be finite numbers, 0 or more; got -1.0"),
            ({"action_weight": (1.0, 1.0, 1.0)}, "action_weight must be a number or 2 numbers"),
        ],
    )
    def test_wrong_arguments_are_refused(self, options: dict[str, Any], told: str) -> None:
        with pytest.raises(ValueError, match=told):
            QuadraticCost(**({"target": (0.0, 0.0, 0.0)} | options)).build(world())


class TestSaturating(CostContract):
    def new(self) -> Cost:
        return SaturatingCost((1.0, 0.5, -1.0), width=(0.5, 2.0, 1.0), action_weight=0.1)

    def test_it_is_its_formula(self) -> None:
        _, u, x = steps()
        chord = 2 * torch.sin(0.5 * (x[:, 1] - 0.5))
        squares = ((x[:, 0] - 1) / 0.5).square() + (chord / 2).square() + (x[:, 2] + 1).square()
        expected = 1 - torch.exp(-0.5 * squares) + 0.1 * u.square().sum(1)
        torch.testing.assert_close(self.cost()(action=u, next_observation=x), expected)

    def test_a_coordinate_of_infinite_width_does_not_matter(self) -> None:
        cost = SaturatingCost((0.0, 0.0, 0.0), width=(1.0, math.inf, math.inf)).build(world())
        found = cost(next_observation=torch.tensor([[0.0, 2.0, 50.0]]))
        assert found.tolist() == [0.0]

    def test_an_infinite_width_may_be_a_word(self) -> None:
        cost = SaturatingCost((0.0, 0.0, 0.0), width=(1.0, "inf", math.inf))
        assert cost.width == (1.0, math.inf, math.inf)

    @pytest.mark.parametrize("width", [0, -1.0, math.nan, (), (1.0, "wide"), "wide", None])
    def test_what_is_no_width_is_refused(self, width: Any) -> None:
        told = re.escape(f"width must be positive numbers, or inf; got {width!r}")
        with pytest.raises(ValueError, match=told):
            SaturatingCost((0.0,), width=width)


class TestLearned(CostContract):
    """Of rewards r(x, u, x') that are known here, learned from 120 steps."""

    def new(self) -> Cost:
        return LearnedReward(ExactGP(steps=60))

    def cost(self) -> Cost:
        cost = self.new().build(world()).double()
        cost.fit([self.episode(0)])
        return cost

    def reward(self, x: Tensor, u: Tensor, after: Tensor) -> Tensor:
        return 20 + x[:, 0] + u[:, 0].square() + after[:, 1].cos()

    def episode(self, seed: int, length: int = 120) -> Episode:
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(length + 1, 3, dtype=torch.float64, generator=generator)
        u = 2 * torch.rand(length, 2, dtype=torch.float64, generator=generator) - 1
        return Episode(x, u, self.reward(x[:-1], u, x[1:]), success=False)

    def test_it_learns_the_reward(self) -> None:
        cost, new = self.cost(), self.episode(1)
        x, u, after = new.observations[:-1], new.actions, new.observations[1:]
        error = cost.reward_offset - cost(x, u, after) - new.rewards
        assert float(error.square().mean()) < 0.1 * float(new.rewards.var())

    def test_without_data_it_says_what_to_do(self) -> None:
        cost = self.new().build(world())
        with pytest.raises(RuntimeError, match="has not been fitted"):
            cost(*steps())


class TestEnvironment(CostContract):
    def world(self) -> World:
        return make_world("Pendulum-v1")

    def new(self) -> Cost:
        return EnvironmentCost()

    def steps(self) -> tuple[Tensor, Tensor, Tensor]:
        x, u, after = steps()
        return x, u[:, :1], after

    @pytest.mark.parametrize(
        "name", ["Pendulum-v1", "proppo_envs:CartPoleSwingUp-v0", "CartDoublePoleSwingUp-v0"]
    )
    def test_it_is_one_minus_what_the_environment_gave(self, name: str) -> None:
        quiet = {} if name == "Pendulum-v1" else {"observation_noise_std": 0.0}
        made = make_world(name, quiet)
        cost = EnvironmentCost().build(made)
        episode = collect_episode(made.env, None, seed=3)
        x, u = episode.observations, episode.actions
        assert float(u.abs().max()) <= 1.0  # whatever the environment's own units are
        rewards = cost.reward_offset - cost(x[:-1], u, x[1:])
        # The environments observe in float32.
        torch.testing.assert_close(rewards, episode.rewards, rtol=1e-4, atol=1e-4)

    def test_a_method_of_the_environments_own_will_do(self) -> None:
        class Own(gymnasium.Env[Any, Any]):
            def cost(self, observation: Tensor, action: Tensor) -> Tensor:
                return observation[:, 0] + action[:, 1]

        cost = EnvironmentCost().build(replace(world(), env=Own()))
        x, u, after = steps()
        torch.testing.assert_close(cost(x, u, after), after[:, 0] + u[:, 1])
        assert cost.uses == ("action", "next_observation")
        assert cost.reward_offset == 1.0

    def test_without_a_known_reward_it_says_what_to_do(self) -> None:
        assert not EnvironmentCost.is_known(world())
        with pytest.raises(ValueError, match="LearnedReward"):
            EnvironmentCost().build(world())
