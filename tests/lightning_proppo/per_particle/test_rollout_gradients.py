"""Sketches of per-particle gradients over several segments, against gradients one by one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from lightning_proppo.engine.graph import vector_jacobian_product
from lightning_proppo.per_particle import Answers, find_parameter_uses
from lightning_proppo.per_particle import rollouts as module_of_rollouts
from lightning_proppo.per_particle import sketches as module_of_sketches
from lightning_proppo.per_particle.remembering import RememberingUses
from lightning_proppo.per_particle.rollouts import PullBack, RolloutGradients
from lightning_proppo.per_particle.sketches import Signs

from .one_by_one import gradients_one_by_one, summed_squares

P = 12


class Tied(nn.Module):
    """Uses one matrix as it is, and transposed."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(7, 7))

    def forward(self, x: Tensor) -> Tensor:
        return (x @ self.weight).tanh() @ self.weight.T + nn.functional.linear(x, self.weight)


class Words(nn.Module):
    """Looks rows of a table up, several for each particle."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(9, 7)

    def forward(self, x: Tensor) -> Tensor:
        rows = (x[:, :3].abs() * 10).long() % 9
        return x * self.table(rows).sum(1)


class Cubed(torch.autograd.Function):
    """An operation without a rule."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx: Any, b: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return 3 * x**2 * b


class Unruled(nn.Module):
    """Passes a shared vector through an operation without a rule."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(7, 7))
        self.scale = nn.Parameter(torch.randn(40))

    def forward(self, x: Tensor) -> Tensor:
        return Cubed.apply(x @ self.weight) * torch.stack([self.scale.sum(), x[0, 0] * 0]).sum()


class Small(nn.Module):
    """Has small parameters only, which enter as they are."""

    def __init__(self) -> None:
        super().__init__()
        self.scale, self.shift = (nn.Parameter(torch.randn(7)) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        return (x * self.scale + self.shift).tanh()


class Reshaped(nn.Module):
    """Multiplies by a matrix that was flattened, transposed and reshaped."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(14, 7))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight.T.reshape(14, 7)[:7] + x @ self.weight.view(7, 14)[:, :7]


class Own(nn.Module):
    """Has parameters of its own for each particle, and shared ones."""

    def __init__(self) -> None:
        super().__init__()
        self.rows = nn.Parameter(torch.randn(P, 7))
        self.weight = nn.Parameter(torch.randn(7, 7))

    def forward(self, x: Tensor) -> Tensor:
        return (x @ self.weight) * self.rows


class Sequence(nn.Module):
    """A linear layer and a convolution along a sequence."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 16)
        self.convolution = nn.Conv1d(16, 12, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        steps = torch.stack([x[:, k : k + 3] for k in range(5)], 1)
        found = self.convolution(self.linear(steps).tanh().mT)
        return x + found.mean((1, 2)).unsqueeze(1)


MODULES: dict[str, Callable[[], nn.Module]] = {
    "small": Small,
    "mlp": lambda: nn.Sequential(nn.Linear(7, 11), nn.Tanh(), nn.Linear(11, 7)),
    "wide": lambda: nn.Sequential(nn.Linear(7, 40), nn.Tanh(), nn.Linear(40, 7)),
    "norm": lambda: nn.Sequential(nn.Linear(7, 36), nn.LayerNorm(36), nn.Linear(36, 7)),
    "weight norm": lambda: weight_norm(nn.Linear(7, 7)),
    "tied": Tied,
    "embedding": Words,
    "reshaped": Reshaped,
    "own rows": Own,
    "sequence": Sequence,
    "no rule": Unruled,
}


def segments(module: nn.Module) -> list[tuple[Tensor, list[Tensor]]]:
    """Return the outputs of three segments, with two cotangents each."""
    found = []
    for _ in range(3):
        output = module(torch.randn(P, 7))
        found.append((output, [torch.randn_like(output) for _ in range(2)]))
    return found


def gather(module: nn.Module, made: Any, copies: int, seed: int = 0) -> RolloutGradients:
    """Gather two estimators: the first cotangent's, and a mixture."""
    parameters = list(module.parameters())
    gradients = RolloutGradients(2, P, copies, Signs(seed))
    for number, (output, cotangents) in enumerate(made):
        uses = RememberingUses(find_parameter_uses([output], parameters, P))
        pullbacks, arrived = [], []
        k = torch.tensor(0.25 * (number + 1), dtype=torch.float64)
        for name, cotangent, shares in (
            ("first", cotangents[0], [(0, None), (1, k)]),
            ("second", cotangents[1], [(1, 1 - k)]),
        ):
            edges = uses.edges
            answers = vector_jacobian_product([output], [cotangent], [*parameters, *edges])
            totals, found = answers[: len(parameters)], answers[len(parameters) :]
            pullbacks.append(PullBack(name, Answers(found, totals, [output], [cotangent]), shares))
            for place, weight in shares:
                scaled = [
                    None if t is None else t if weight is None else weight * t for t in totals
                ]
                arrived.append((place, scaled))
        with torch.no_grad():
            gradients.add(uses, pullbacks, sample=True)
        for place, scaled in arrived:
            gradients.add_totals(place, parameters, scaled)
    return gradients


def by_hand(module: nn.Module, made: Any) -> tuple[list[Tensor], list[Tensor]]:
    """Return both estimators' per-particle gradients [P, n], and the first's by segment."""
    parameters = list(module.parameters())
    steps = []
    for number, (output, cotangents) in enumerate(made):
        k = 0.25 * (number + 1)
        mixed = k * cotangents[0] + (1 - k) * cotangents[1]
        steps.append(
            [gradients_one_by_one([output], [b], parameters) for b in (cotangents[0], mixed)]
        )
    totals = [torch.stack([rows[k] for rows in steps]).sum(0) for k in range(2)]
    return totals, [rows[0] for rows in steps]


@pytest.fixture(autouse=True)
def in_64_bits() -> None:
    torch.set_default_dtype(torch.float64)


@pytest.mark.filterwarnings("ignore:there is no rule")
@pytest.mark.parametrize("name", MODULES)
def test_kept_as_they_are_they_are_exact(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (module_of_rollouts, module_of_sketches):
        monkeypatch.setattr(module, "EXACT", 10**6)
    module = MODULES[name]()
    made = segments(module)
    gradients = gather(module, made, copies=1)
    rows, steps = by_hand(module, made)
    for found, expected in zip(gradients.squares(), rows, strict=True):
        assert float(found) == pytest.approx(float(summed_squares(expected)), rel=1e-9)
    difference = rows[0] - rows[1]
    found = gradients.squares_of_difference(0, 1)
    assert float(found) == pytest.approx(float(summed_squares(difference)), rel=1e-9)
    total = torch.cat(list(gradients.difference(0, 1).values()))
    expected = difference.sum(0).square().sum()  # in another order
    torch.testing.assert_close(total.square().sum(), expected)
    by_sample = gradients.variances_by_sample()["first"]
    for found, expected in zip(by_sample, steps, strict=True):
        assert float(found) == pytest.approx(float(summed_squares(expected)), rel=1e-9)


@pytest.mark.filterwarnings("ignore:there is no rule")
@pytest.mark.parametrize("name", MODULES)
def test_sketches_are_right_on_average(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # What comes row by row is sketched too.
    for module in (module_of_rollouts, module_of_sketches):
        monkeypatch.setattr(module, "EXACT", 4)
    monkeypatch.setattr(module_of_sketches, "PORTION", 0)
    module = MODULES[name]()
    made = segments(module)
    rows, steps = by_hand(module, made)
    repetitions = [gather(module, made, copies=8, seed=seed) for seed in range(30)]
    for place, each in enumerate([*rows, rows[0] - rows[1]]):
        expected = float(summed_squares(each))
        found = torch.stack(
            [
                gradients.squares()[place]
                if place < len(rows)
                else gradients.squares_of_difference(0, 1)
                for gradients in repetitions
            ]
        )
        error = float(found.std()) / len(found) ** 0.5
        # Four standard errors: one in 15,000 by chance.
        assert abs(float(found.mean()) - expected) < 4 * error + 1e-9 * expected
    by_sample = repetitions[0].variances_by_sample()["first"]
    for found, expected in zip(by_sample, steps, strict=True):
        assert float(found) == pytest.approx(float(summed_squares(expected)), rel=1e-9)


def test_a_sketch_draws_from_a_generator_of_its_own() -> None:
    before = torch.get_rng_state()
    Signs(3).draw((4, 5), torch.zeros(1))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("known", [True, False])
def test_what_a_weight_of_zero_silences_may_be_infinite(
    known: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not known:  # as on a device whose numbers would have to be waited for
        monkeypatch.setattr(module_of_sketches, "_known", lambda weight: None)
    module = nn.Linear(3, 40)
    parameters = list(module.parameters())
    gradients = RolloutGradients(1, P, 1, Signs())
    output = module(torch.randn(P, 3))
    uses = RememberingUses(find_parameter_uses([output], parameters, P))
    zero = torch.zeros((), dtype=torch.float64)
    pullbacks = []
    for name, cotangent, weight in (
        ("LR", torch.randn(P, 40), 1 - zero),
        ("RP", torch.full((P, 40), torch.inf), zero),
    ):
        answers = vector_jacobian_product([output], [cotangent], [*parameters, *uses.edges])
        pullbacks.append(
            PullBack(name, Answers(answers[2:], answers[:2], [output], [cotangent]), [(0, weight)])
        )
    gradients.add_totals(0, parameters, pullbacks[0].answers.totals)
    with torch.no_grad():
        gradients.add(uses, pullbacks, sample=True)
    assert gradients.not_finite() == [0]
    assert torch.isfinite(gradients.squares()[0])
