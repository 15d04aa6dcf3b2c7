"""Models of dynamics: one contract for all of them."""

from __future__ import annotations

import math
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal

from lightning_proppo import PropagationManager
from proppo_agents.dynamics import DynamicsModel, EnsembleDynamics, GPDynamics, SparseGPDynamics
from proppo_agents.experience.episodes import Episode
from proppo_agents.parts import Spaces, make_part
from proppo_agents.policies import LinearPolicy

SPACES = Spaces(observation_size=2, action_size=1, angles=(0,))
NOISE = 0.02


def step(x: Tensor, u: Tensor) -> Tensor:
    """A pendulum's angle and velocity, 0.1 s later but for noise."""
    velocity = x[:, 1] + 0.3 * x[:, 0].sin() + 0.5 * u[:, 0]
    return torch.stack([x[:, 0] + 0.1 * velocity, velocity], 1)


def episode(seed: int = 0, length: int = 150, turned: bool = False) -> Episode:
    generator = torch.Generator().manual_seed(seed)
    u = 2 * torch.rand(length, 1, dtype=torch.float64, generator=generator) - 1
    states = [torch.tensor([3.0, 0.0], dtype=torch.float64)]
    for t in range(length):
        noise = NOISE * torch.randn(2, dtype=torch.float64, generator=generator)
        states.append(step(states[-1][None], u[t : t + 1])[0] + noise)
    x = torch.stack(states)
    if turned:
        x[:, 0] = torch.remainder(x[:, 0] + math.pi, 2 * math.pi) - math.pi
    return Episode(x, u, torch.zeros(length, dtype=torch.float64), success=False)


class DynamicsContract:
    """What every model of dynamics must do."""

    def new(self) -> DynamicsModel:
        raise NotImplementedError

    def fitted(self, *episodes: Episode) -> DynamicsModel:
        torch.manual_seed(0)
        return self.new().build(SPACES).double().fit(episodes)

    @pytest.fixture(scope="class")
    @classmethod
    def model(cls) -> DynamicsModel:
        return cls().fitted(episode(0), episode(1))

    def test_it_gives_a_distribution_of_the_change_and_of_what_comes_after(
        self, model: DynamicsModel
    ) -> None:
        new = episode(2)
        x, u = new.observations[:-1], new.actions
        change, after = model.change(x, u), model(x, u)
        assert isinstance(change, Normal)
        assert change.mean.shape == change.stddev.shape == x.shape
        assert change.mean.dtype == torch.float64
        assert change.has_rsample
        torch.testing.assert_close(after.mean, x + change.mean)
        torch.testing.assert_close(after.stddev, change.stddev)

    def test_it_predicts_an_episode_that_it_has_not_seen(self, model: DynamicsModel) -> None:
        new = episode(2)
        assert bool((model.r_squared(new) > 0.8).all())
        mean, variance = model.expected_change(new.observations[:-1], new.actions)
        residual = new.observations[1:] - new.observations[:-1] - mean
        # Of 150 normal residuals 95.4 % lie within 2 sigma, +- 1.7 %; the rest is for the fit.
        inside = (residual.abs() < 2 * variance.sqrt()).double().mean(0)
        assert bool((inside > 0.85).all())

    def test_a_turn_of_the_circle_changes_nothing_else(self, model: DynamicsModel) -> None:
        new = episode(2)
        turn = torch.tensor([2 * math.pi, 0.0], dtype=torch.float64)
        before = model.change(new.observations[:-1], new.actions)
        after = model.change(new.observations[:-1] + turn, new.actions)
        torch.testing.assert_close(after.mean, before.mean)
        torch.testing.assert_close(after.stddev, before.stddev)

    def test_it_does_not_matter_whether_the_environment_wraps_its_angles(
        self, model: DynamicsModel
    ) -> None:
        wrapped = [episode(seed, turned=True) for seed in (0, 1, 2)]
        jumps = (wrapped[0].observations[1:, 0] - wrapped[0].observations[:-1, 0]).abs().max()
        assert float(jumps) > 6
        torch.testing.assert_close(model.r_squared(wrapped[2]), model.r_squared(episode(2)))

    def test_it_is_differentiable_with_respect_to_state_and_action(
        self, model: DynamicsModel
    ) -> None:
        x = episode(2).observations[:4].clone().requires_grad_()
        u = episode(2).actions[:4].clone().requires_grad_()

        def both(x: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
            found = model.change(x, u)
            return found.mean, found.stddev

        assert torch.autograd.gradcheck(both, (x, u))

    def test_it_comes_back_from_its_state_and_its_description(self, model: DynamicsModel) -> None:
        other = make_part("dynamics", model.description(), DynamicsModel)  # type: ignore[type-abstract]
        other = other.build(SPACES).double()
        other.load_state_dict(model.state_dict())
        new = episode(2)
        x, u = new.observations[:-1], new.actions
        assert torch.equal(other.change(x, u).mean, model.change(x, u).mean)
        assert torch.equal(other.change(x, u).stddev, model.change(x, u).stddev)

    def test_a_fit_takes_the_place_of_the_one_before(self) -> None:
        twice = self.fitted(episode(0, length=5))
        torch.manual_seed(0)
        twice.fit([episode(1, length=20)])
        once = self.fitted(episode(1, length=20))
        x, u = episode(2).observations[:-1], episode(2).actions
        torch.testing.assert_close(twice.change(x, u).mean, once.change(x, u).mean)

    def test_one_transition_is_enough(self) -> None:
        model = self.fitted(episode(0, length=1))
        x, u = episode(2).observations[:-1], episode(2).actions
        assert bool(torch.isfinite(model.change(x, u).mean).all())

    @pytest.mark.parametrize("estimator", ["RP", "TP"])
    def test_estimators_follow_particles_through_it(
        self, model: DynamicsModel, estimator: str
    ) -> None:
        """Without falling back to each particle's own backward pass, of which TP would warn."""
        torch.manual_seed(0)
        policy = LinearPolicy().build(SPACES).double()
        manager = PropagationManager(estimator)
        x = torch.randn(11, 2, dtype=torch.float64)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            for _ in range(3):
                x = manager.sample(model(x, policy(x)))
                manager.append_loss(x[:, 0].cos())
            manager.loss().backward()
        assert all(bool((p.grad != 0).any()) for p in policy.parameters() if p.grad is not None)

    def test_without_an_episode_it_says_so(self) -> None:
        with pytest.raises(ValueError, match="episodes must hold at least one"):
            self.new().build(SPACES).fit([])


class TestGP(DynamicsContract):
    def new(self) -> DynamicsModel:
        return GPDynamics(steps=40)


class TestSparseGP(DynamicsContract):
    def new(self) -> DynamicsModel:
        return SparseGPDynamics(inducing=60, steps=20)


class TestEnsemble(DynamicsContract):
    def new(self, **options: Any) -> DynamicsModel:
        return EnsembleDynamics(
            **({"members": 3, "hidden": (32, 32), "steps": 500, "batch_size": 128} | options)
        )

    def test_with_ts_inf_a_particle_keeps_its_member(self, model: DynamicsModel) -> None:
        x, u = torch.zeros(6, 2).double() + 1.0, torch.zeros(6, 1).double()
        first, second = model.change(x, u).mean, model.change(x, u).mean
        assert torch.equal(first, second)
        assert len(first[:, 1].unique()) == 3
