"""Policies: one contract for all, and each one's formula."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from proppo_agents.encodings import encode_angles
from proppo_agents.parts import Spaces, make_part
from proppo_agents.policies import LinearPolicy, MLPPolicy, Policy, RBFPolicy, squash

SPACES = Spaces(observation_size=3, action_size=2, angles=(1,))
CENTRE = torch.tensor([0.5, 9.0, -2.0])
SPREAD = torch.tensor([1.0, 3.0, 2.0])


class PolicyContract:
    """What every policy must do."""

    def new(self, **options: Any) -> Policy:
        raise NotImplementedError

    def policy(self, **options: Any) -> Policy:
        torch.manual_seed(0)
        built = self.new(**options).build(SPACES).double()
        built.reset(CENTRE, SPREAD)
        return built

    def test_it_gives_one_action_for_each_observation(self) -> None:
        policy = self.policy()
        x = torch.randn(5, 3, dtype=torch.float64)
        found = policy(x)
        assert found.shape == (5, 2)
        assert found.dtype == torch.float64
        torch.testing.assert_close(policy(x[2:3])[0], found[2])
        torch.testing.assert_close(policy(x.reshape(5, 1, 3)), found.reshape(5, 1, 2))
        torch.testing.assert_close(policy(x[0]), found[0])

    @pytest.mark.parametrize("squashing", ["sine", "tanh"])
    def test_actions_are_bounded(self, squashing: str) -> None:
        policy = self.policy(squash=squashing)
        with torch.no_grad():
            # The last one that was made weighs the outputs.
            [parameter for parameter in policy.parameters() if parameter.dim() == 2][-1].mul_(30)
            actions = policy(CENTRE + SPREAD * torch.randn(200, 3, dtype=torch.float64))
        assert float(actions.abs().max()) <= 1 + 1e-12
        assert float(actions.abs().max()) > 0.9

    def test_a_turn_of_the_circle_changes_nothing(self) -> None:
        policy = self.policy()
        x = torch.randn(5, 3, dtype=torch.float64)
        turned = x + torch.tensor([0.0, 2 * math.pi, 0.0], dtype=torch.float64)
        torch.testing.assert_close(policy(x), policy(turned))

    def test_it_is_differentiable_with_respect_to_observation_and_parameters(self) -> None:
        policy = self.policy()
        x = torch.randn(3, 3, dtype=torch.float64, requires_grad=True)
        names = [name for name, _ in policy.named_parameters()]
        values = [p.detach().clone().requires_grad_() for p in policy.parameters()]

        def act(x: Tensor, *values: Tensor) -> Tensor:
            given = dict(zip(names, values, strict=True))
            acted: Tensor = torch.func.functional_call(policy, given, (x,))
            return acted

        assert torch.autograd.gradcheck(act, (x, *values))

    def test_each_reset_draws_another_one_in_place(self) -> None:
        policy = self.policy()
        parameters = list(policy.parameters())
        before = [p.detach().clone() for p in parameters]
        policy.reset(CENTRE, SPREAD)
        assert all(a is b for a, b in zip(parameters, policy.parameters(), strict=True))
        assert any(not torch.equal(a, b) for a, b in zip(before, parameters, strict=True))

    def test_it_comes_back_from_its_state_and_its_description(self) -> None:
        policy = self.policy()
        other = make_part("policy", policy.description(), Policy)  # type: ignore[type-abstract]
        other = other.build(SPACES).double()
        other.load_state_dict(policy.state_dict())
        x = torch.randn(5, 3, dtype=torch.float64)
        assert torch.equal(other(x), policy(x))
        assert other.description() == policy.description()

    def test_units_do_not_matter(self) -> None:
        """What it draws fits the observation's centre and spread."""
        policy = self.policy()
        units = torch.tensor([100.0, 1.0, 1e-3], dtype=torch.float64)
        torch.manual_seed(0)
        other = self.new().build(SPACES).double()
        other.reset(CENTRE * units, SPREAD * units)
        x = torch.randn(5, 3, dtype=torch.float64)
        torch.testing.assert_close(other(x * units), policy(x))

    def test_an_unknown_squashing_is_refused_with_a_suggestion(self) -> None:
        with pytest.raises(ValueError, match=r"squash must be one of sine, tanh.*'tanh'"):
            self.new(squash="tnah")


class TestRBF(PolicyContract):
    def new(self, **options: Any) -> Policy:
        return RBFPolicy(**({"basis_functions": 7} | options))

    def test_it_is_its_formula(self) -> None:
        network = self.policy()
        assert isinstance(network, RBFPolicy)
        x = torch.randn(5, 3, dtype=torch.float64)
        encoded = encode_angles(x, (1,))
        for p in range(5):
            for a in range(2):
                z = torch.zeros((), dtype=torch.float64)
                for i in range(7):
                    scaled = (encoded[p] - network.centres[i]) / network.log_lengthscales.exp()
                    z = z + network.weights[i, a] * torch.exp(-0.5 * scaled.square().sum())
                expected = (9 * torch.sin(z) + torch.sin(3 * z)) / 8
                torch.testing.assert_close(network(x)[p, a], expected)

    def test_lengthscales_start_at_the_spread_and_centres_cover_the_circle(self) -> None:
        network = self.policy(basis_functions=2000)
        assert isinstance(network, RBFPolicy)
        assert network.log_lengthscales.exp()[:2].tolist() == pytest.approx([1.0, 2.0])
        # 2000 draws: a mean or deviation is off by 2 % of the spread; 5 of these.
        mean, std = network.centres.detach().mean(0), network.centres.detach().std(0)
        expected = torch.tensor([0.5, -2.0, 0.0, 0.0], dtype=torch.float64)
        torch.testing.assert_close(mean, expected, rtol=0.0, atol=0.2)
        expected = torch.tensor([1.0, 2.0, 0.5**0.5, 0.5**0.5], dtype=torch.float64)
        torch.testing.assert_close(std, expected, rtol=0.1, atol=0.0)

    def test_no_basis_functions_are_refused(self) -> None:
        with pytest.raises(ValueError, match="basis_functions must be at least 1; got 0"):
            RBFPolicy(basis_functions=0)


class TestLinear(PolicyContract):
    def new(self, **options: Any) -> Policy:
        return LinearPolicy(**options)

    def test_it_is_its_formula(self) -> None:
        policy = self.policy()
        assert isinstance(policy, LinearPolicy)
        x = torch.tensor([1.5, 0.3, -2.0], dtype=torch.float64)
        inputs = torch.tensor([1.0, 0.0, math.sin(0.3), math.cos(0.3)], dtype=torch.float64)
        torch.testing.assert_close(policy(x), squash(policy.layer.weight @ inputs))


class TestMLP(PolicyContract):
    def new(self, **options: Any) -> Policy:
        return MLPPolicy(**({"hidden": (5, 4)} | options))

    def test_it_is_its_formula(self) -> None:
        policy = self.policy()
        assert isinstance(policy, MLPPolicy)
        x = torch.tensor([1.5, 0.3, -2.0], dtype=torch.float64)
        h = torch.tensor([1.0, 0.0, math.sin(0.3), math.cos(0.3)], dtype=torch.float64)
        first, second, last = policy.network[0], policy.network[2], policy.network[4]
        h = torch.tanh(second.weight @ torch.tanh(first.weight @ h + first.bias) + second.bias)
        torch.testing.assert_close(policy(x), torch.tanh(last.weight @ h + last.bias))

    @pytest.mark.parametrize(
        ("options", "told"),
        [
            ({"hidden": ()}, "hidden must be the sizes of the hidden layers"),
            ({"hidden": (3, 0)}, "hidden must be"),
            ({"activation": "rleu"}, "Did you mean 'relu'"),
        ],
    )
    def test_wrong_arguments_are_refused(self, options: dict[str, Any], told: str) -> None:
        with pytest.raises(ValueError, match=told):
            MLPPolicy(**options)


def test_squashing_reaches_its_bounds() -> None:
    z = torch.linspace(-20, 20, 4001, dtype=torch.float64)
    assert float(squash(z).abs().max()) <= 1 + 1e-12
    torch.testing.assert_close(squash(torch.tensor(math.pi / 2)), torch.tensor(1.0))


def test_angles_that_are_none_of_the_observation_are_refused() -> None:
    with pytest.raises(ValueError, match="angles must be distinct coordinates"):
        RBFPolicy().build(Spaces(3, 2, angles=(3,)))
