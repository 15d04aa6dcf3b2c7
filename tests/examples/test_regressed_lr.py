"""The propagator that docs/writing-a-propagator.md builds does what the page says of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.distributions import Beta, Normal

from lightning_proppo import PropagationCallback, PropagationManager
from lightning_proppo.installed_lightning import pl
from proppo_envs import ChaoticRNN

from ..quiet import QUIET
from ..scripts import load_script

# f(x) = x², summed over coordinates, at x ~ N(MU, SIGMA²): A + B ε + C ε² in each of them.
MU, SIGMA = 0.7, 0.6
B, C = 2 * MU * SIGMA, SIGMA**2


example = load_script(Path(__file__).resolve().parents[2] / "examples" / "regressed_lr.py")


def gradient(
    particles: int, dimensions: int = 1, cost: Callable[[Tensor], Tensor] = torch.square
) -> Tensor:
    """Return the gradient with respect to the means and then the scales, [2D]."""
    mean = torch.full((dimensions,), MU, dtype=torch.float64, requires_grad=True)
    scale = torch.full((dimensions,), SIGMA, dtype=torch.float64, requires_grad=True)
    manager = PropagationManager(example.RegressedLRProp())
    x = manager.sample(Normal(mean.expand(particles, -1), scale.expand(particles, -1)))
    loss = manager.loss(cost(x).sum(1))
    return torch.cat(torch.autograd.grad(loss, [mean, scale]))


def test_the_fit_is_that_of_the_other_particles() -> None:
    losses, noise = torch.randn(9, 1).double(), torch.randn(9, 3).double()
    left_out, slopes = example.fit_without_each(losses, noise)
    for i in range(9):
        others = [j for j in range(9) if j != i]
        design = torch.cat([torch.ones(8, 1).double(), noise[others]], dim=1)
        fit = torch.linalg.lstsq(design, losses[others]).solution[:, 0]
        torch.testing.assert_close(left_out[i, 0], losses[i, 0] - fit[0] - noise[i] @ fit[1:])
        torch.testing.assert_close(slopes[i], fit[1:])


@pytest.mark.parametrize("dimensions", [1, 4])
def test_it_is_exact_for_linear_costs(dimensions: int) -> None:
    found = gradient(dimensions + 3, dimensions, lambda x: 3 * x - 1)
    expected = torch.tensor([3.0] * dimensions + [0.0] * dimensions).double()
    torch.testing.assert_close(found, expected, atol=1e-10, rtol=0)


@pytest.mark.parametrize("particles", [6, 30])
def test_it_is_unbiased_for_few_particles_too(particles: int) -> None:
    found = torch.stack([gradient(particles) for _ in range(1500)])
    errors = found.mean(0) - torch.tensor([2 * MU, 2 * SIGMA]).double()
    z = errors / (found.std(0) / len(found) ** 0.5)
    # Four numbers in all: a false alarm once in 4,000.
    assert z.abs().max() < 4


@pytest.mark.parametrize("dimensions", [1, 5])
def test_its_variance_has_no_part_of_the_costs_slope(dimensions: int) -> None:
    found = torch.stack([gradient(400, dimensions) for _ in range(1500)])
    variances = 400 * found.var(0)[:dimensions]
    expected = (10 * C**2 + (dimensions - 1) * 2 * C**2) / SIGMA**2
    # A variance of 1500 normal numbers is off by 3.7 % (one standard deviation); the fit adds
    # about (D + 1) / P to it.
    assert (variances / expected - 1).abs().max() < 4 * 0.037 + (dimensions + 1) / 400


def test_it_reaches_all_steps_of_a_rollout() -> None:
    # x' = a x + σ ε from 1, cost x_H² / 2: its mean is a^{2H} / 2 + σ² Σ a^{2j} / 2.
    steps, std, value = 4, 0.3, 0.9
    found = []
    for _ in range(500):
        a = torch.tensor(value, dtype=torch.float64, requires_grad=True)
        manager = PropagationManager(example.RegressedLRProp())
        x = torch.ones(50, 1, dtype=torch.float64)
        for _ in range(steps):
            x = manager.sample(Normal(a * x, std))
        (g,) = torch.autograd.grad(manager.loss(x.square() / 2), [a])
        found.append(g)
    true = steps * value ** (2 * steps - 1)
    true += std**2 * sum(j * value ** (2 * j - 1) for j in range(steps))
    mean, error = torch.stack(found).mean(), torch.stack(found).std() / len(found) ** 0.5
    assert abs(mean - true) < 4 * error  # a false alarm once in 16,000


def test_it_takes_the_callbacks_place_for_an_estimator() -> None:
    class Network(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.system = ChaoticRNN(horizon=3)
            self.beta = torch.nn.Parameter(torch.tensor([2.0]))

        def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
            x = self.system.initial_state(20)
            for _ in range(self.system.horizon):
                x = self.manager.sample(self.system.transition(x, self.beta))
            return self.manager.loss(self.system.cost(x))

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    module = Network()
    callbacks = [PropagationCallback(example.RegressedLRProp())]
    pl.Trainer(**QUIET, max_steps=2, callbacks=callbacks).fit(
        module, torch.utils.data.DataLoader(torch.zeros(2, 1))
    )
    assert module.beta.item() != 2.0


def test_it_refuses_too_few_particles() -> None:
    with pytest.raises(ValueError, match=r"at least D \+ 3 particles; got 6 for D = 4"):
        gradient(6, 4)


def test_it_refuses_other_distributions() -> None:
    manager = PropagationManager(example.RegressedLRProp())
    one = torch.ones(5, 1)
    with pytest.raises(TypeError, match="must be a Normal; got Beta"):
        manager.sample(Beta(one, one))
