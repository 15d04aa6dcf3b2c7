"""N ranks of P particles give what one process with N P gives: to rounding, with the same noise."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from ..launching import run_on_ranks

pytestmark = pytest.mark.slow

RANKS, PARTICLES, HORIZON = 4, 6, 5
ROUNDING = {torch.float32: 1e-5, torch.float64: 1e-10}

# Estimates with a manager per rank, or in one process. Noise comes from one stream, of which each
# rank takes its particles' rows.
_ESTIMATES = f"""
from torch import nn
from torch.distributions import Gamma, Normal

from lightning_proppo import PropagationManager, expand
from lightning_proppo.propagators import BaselineProp

PARTICLES, HORIZON = {PARTICLES}, {HORIZON}
"""
_ESTIMATES += '''
class Noise:
    """Takes the place of PyTorch's normal numbers."""

    def __init__(self, rank, size):
        self.rank, self.size = rank, size
        self.generator = torch.Generator().manual_seed(7)

    def draw(self, particles, *shape):
        every = self.kept[1](
            particles * self.size, *shape, generator=self.generator, dtype=torch.float64
        )
        return every[self.rank * particles : (self.rank + 1) * particles]

    def __enter__(self):
        self.kept = torch.Tensor.normal_, torch.randn
        torch.Tensor.normal_ = lambda x: x.copy_(self.draw(*x.shape))
        torch.randn = lambda *shape, dtype, device: self.draw(*shape).to(dtype)

    def __exit__(self, *_):
        torch.Tensor.normal_, torch.randn = self.kept


class Collectives:
    """Counts collectives, and the largest one's bytes."""

    def __enter__(self):
        self.calls, self.largest = 0, 0
        self.kept = dist.all_reduce, dist.all_gather
        dist.all_reduce = lambda x: self.count(x, self.kept[0], x)
        dist.all_gather = lambda found, x: self.count(x, self.kept[1], found, x)
        return self

    def count(self, x, function, *arguments):
        self.calls += 1
        self.largest = max(self.largest, x.numel() * x.element_size())
        return function(*arguments)

    def __exit__(self, *_):
        dist.all_reduce, dist.all_gather = self.kept


class Chaos(nn.Module):
    """One parameter; a cost at the end."""

    every_step = False

    def __init__(self):
        super().__init__()
        self.beta = nn.Parameter(torch.tensor([3.0]))
        self.weight = torch.tensor([[2.0, -3.0], [3.0, 1.0]])

    def begin(self, particles):
        """Return options for samples."""
        self.used = self.beta
        return {}

    def step(self, x):
        mean = torch.sigmoid(self.used * (x @ self.weight.to(x)) / 2)
        return Normal(mean, torch.full_like(mean, 1e-2))

    def cost(self, x):
        return (1 - x).square().sum(1)


class Expanded(Chaos):
    """Compares variances at the parameter expanded over the particles, as the paper does."""

    def begin(self, particles):
        self.used = expand(self.beta, particles)
        return {"ivw_target": self.used}


class Policy(nn.Module):
    """A network, and a scale that is learnt; a cost at every step."""

    every_step = True

    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.net = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 2))
        self.log_scale = nn.Parameter(torch.tensor([-1.0, -1.5]))

    def begin(self, particles):
        return {}

    def step(self, x):
        return Normal(x + 0.5 * self.net(x), self.log_scale.exp().expand_as(x))

    def cost(self, x):
        return 1.0 - (-(x - 1.0).square().sum(1)).exp()


CASES = {
    "RP": ("RP", {}),
    "LR": ("LR", {}),
    "TP": ("TP", {}),
    "TPX": ("TPX", {}),
    "GR": ("GR", {}),
    "GS": ("GS", {}),
    "TP+GS": ("TP+GS", {}),
    "covariance": ("TP", {"weighting": "covariance"}),
    "TPX, covariance": ("TPX", {"weighting": "covariance"}),
    "cross-fitted": ("TP", {"weighting": "cross-fitted"}),
    "TPX, cross-fitted": ("TPX", {"weighting": "cross-fitted"}),
}
MODELS = {"chaos": Chaos, "expanded": Expanded, "policy": Policy}


def estimate(model, case, dtype, rank, size, sync=True, particles=PARTICLES):
    model = MODELS[model]().to(dtype)
    name, options = CASES[case]
    manager = PropagationManager(name, sync=sync, **options)
    x = torch.linspace(-1, 1, 2 * particles * size, dtype=dtype).reshape(-1, 2)
    x = x[rank * particles : (rank + 1) * particles]
    baselined = []
    whole = BaselineProp.backward_impl

    def spied(self, node, message):
        sent = whole(self, node, message)
        if isinstance(sent, dict) and "baselined_loss" in sent:
            baselined.append(sent["baselined_loss"])
        return sent

    BaselineProp.backward_impl = spied
    start = x
    for _ in range(2):  # the first gradient has no memory of RP's and LR's disagreement
        baselined.clear()
        model.zero_grad()
        x = start
        with Noise(rank, size), Collectives() as forward:
            options = model.begin(particles)
            for step in range(HORIZON):
                x = manager.sample(model.step(x), **options)
                if model.every_step or step == HORIZON - 1:
                    manager.append_loss(x, lossfunc=model.cost)
            loss = manager.loss()
        with Collectives() as backward:
            loss.backward()
    BaselineProp.backward_impl = whole
    return {
        "gradient": torch.cat([p.grad.flatten() for p in model.parameters()]),
        "weights": torch.stack(manager.statistics.get("lr_weight", [torch.zeros(())])),
        "baselined": baselined,
        "cost": loss.detach(),
        "forward": (forward.calls, forward.largest),
        "backward": (backward.calls, backward.largest),
    }


def every_case():
    for dtype in (torch.float32, torch.float64):
        for model in MODELS:
            for case in CASES:
                if model != "expanded" or case == "TP":
                    yield model, case, dtype


def message_of(function):
    try:
        function()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "nothing was raised"
'''

_SCRIPT = (
    _ESTIMATES
    + """
together = {key: estimate(*key, RANK, SIZE) for key in every_case()}
alone = {}
if RANK == 0:
    alone = {
        key: estimate(*key, 0, 1, sync=False, particles=PARTICLES * SIZE) for key in every_case()
    }
single = estimate("policy", "TP", torch.float64, RANK, SIZE, particles=1)
single_alone = estimate("policy", "TP", torch.float64, 0, 1, sync=False, particles=SIZE)
unsynchronized = estimate("policy", "TP", torch.float64, RANK, SIZE, sync=False)


def rollout(name, particles=PARTICLES, horizon=HORIZON, cost=1.0):
    model, manager = Policy(), PropagationManager(name)
    x = torch.zeros(particles, 2)
    for _ in range(horizon):
        x = manager.sample(model.step(x))
        manager.append_loss(x, lossfunc=lambda x: cost * model.cost(x))
    manager.loss().backward()


errors = {
    "particles": message_of(lambda: rollout("TP", particles=5 + (RANK == 2))),
    "particles, RP": message_of(lambda: rollout("RP", particles=5 + (RANK == 2))),
    "particles, GR": message_of(lambda: rollout("GR", particles=5 + (RANK == 2))),
    "steps": message_of(lambda: rollout("TP", horizon=3 + (RANK == 1))),
    "steps, GR": message_of(lambda: rollout("GR", horizon=3 + (RANK == 1))),
    "steps, GS": message_of(lambda: rollout("GS", horizon=3 + (RANK == 1))),
    "cost": message_of(lambda: rollout("TP", cost=float("nan") if RANK == 3 else 1.0)),
    "afterwards": message_of(lambda: rollout("TP")),
}
with torch.no_grad():
    manager = PropagationManager("GR")
    if RANK == 1:  # an evaluation of its own
        manager.sample(Normal(torch.zeros(4, 2), 1.0))
        errors["evaluation"] = float(manager.loss(torch.ones(4)))
result = {
    "together": together,
    "alone": alone,
    "single": single["gradient"],
    "single alone": single_alone["gradient"],
    "unsynchronized": unsynchronized,
    "errors": errors,
}
"""
)

_DEFINED: dict[str, Any] = {"torch": torch}
exec(_ESTIMATES, _DEFINED)
KEYS = list(_DEFINED["every_case"]())


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return run_on_ranks(_SCRIPT, RANKS, tmp_path_factory.mktemp("ranks"))


def _close(
    found: torch.Tensor, expected: torch.Tensor, dtype: torch.dtype, times: float = 1.0
) -> bool:
    difference = (found.double() - expected.double()).abs().max()
    return bool(difference <= times * ROUNDING[dtype] * expected.double().abs().max())


@pytest.mark.parametrize("key", KEYS, ids=lambda key: f"{key[0]}-{key[1]}-{str(key[2])[6:]}")
def test_many_ranks_are_one_process(key: Any, results: list[dict[str, Any]]) -> None:
    dtype = key[2]
    together = [result["together"][key] for result in results]
    alone = results[0]["alone"][key]
    # DistributedDataParallel takes the mean over the ranks.
    gradient = torch.stack([each["gradient"] for each in together]).mean(0)
    assert _close(gradient, alone["gradient"], dtype)
    assert _close(torch.stack([each["cost"] for each in together]).mean(), alone["cost"], dtype)
    # A half's variance is what is left of larger squares, made of sums in 32 bits.
    times = 10.0 if key[:2] == ("chaos", "cross-fitted") else 1.0
    for each in together:
        assert _close(each["weights"], alone["weights"], dtype, times)
    for parts in zip(*(each["baselined"] for each in together), strict=True):
        expected = alone["baselined"].pop(0)
        assert _close(torch.cat(parts), expected, dtype)
    assert not alone["baselined"]


@pytest.mark.parametrize("key", KEYS, ids=lambda key: f"{key[0]}-{key[1]}-{str(key[2])[6:]}")
def test_one_small_collective_a_node(key: Any, results: list[dict[str, Any]]) -> None:
    model, case, _ = key
    costs = HORIZON if model == "policy" else 1
    (forward, forward_bytes), (backward, backward_bytes) = (
        results[0]["together"][key][way] for way in ("forward", "backward")
    )
    shaped, resampled = "GS" in case, case == "GR"
    # The last loss: do the rollouts match, and what are the costs' means.
    fits = HORIZON * resampled + costs * shaped
    assert forward == fits + (1 if case == "RP" else 2)
    if case == "RP":
        assert backward == 0
    elif resampled:
        assert backward == HORIZON
    elif case == "LR":
        assert backward == 0
    else:
        nodes = HORIZON + costs
        # Each half's mean, and its variances; with expanded parameters, the guard's besides.
        per_sample = 3 if "cross-fitted" in case else 2 if model == "expanded" else 1
        # For the whole pass: what came before the samples, and the differences, of each kind.
        guard = 4
        assert backward <= per_sample * HORIZON + guard + shaped * nodes
    assert max(forward_bytes, backward_bytes) < 2000


def test_one_particle_on_each_rank(results: list[dict[str, Any]]) -> None:
    together = torch.stack([result["single"] for result in results]).mean(0)
    assert _close(together, results[0]["single alone"], torch.float64)


def test_without_synchronization_there_are_no_collectives(results: list[dict[str, Any]]) -> None:
    found = [result["unsynchronized"] for result in results]
    assert all(each["forward"][0] == each["backward"][0] == 0 for each in found)
    weights = [each["weights"] for each in found]
    assert not torch.equal(weights[0], weights[1])


def test_ranks_that_differ_are_refused_on_every_rank(results: list[dict[str, Any]]) -> None:
    for result in results:
        errors = result["errors"]
        assert "same number of particles; got 5 on rank 0, 5 on rank 1, 6" in errors["particles"]
        assert errors["particles, RP"] == errors["particles"]
        assert errors["particles, GR"] == errors["particles"]
        assert "samples and costs in a rollout; got 6 on rank 0, 8 on rank 1" in errors["steps"]
        for name in ("steps, GR", "steps, GS"):
            assert "rank 0 is at the end of its rollout where rank 1 is not" in errors[name]
        assert "ValueError" in errors["cost"]
        assert errors["afterwards"] == "nothing was raised"
    assert "those of rank 3" in results[0]["errors"]["cost"]
    assert "number 1 of 5 has the mean nan" in results[3]["errors"]["cost"]


def test_an_evaluation_asks_no_other_rank(results: list[dict[str, Any]]) -> None:
    assert results[1]["errors"]["evaluation"] == 1.0
