"""Ensembles of probabilistic networks, as in PETS (Chua et al. 2018).

N data, B members, I inputs, E outputs, P particles.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lightning_proppo.errors import check_choice
from proppo_agents.arguments import check_count, check_fit
from proppo_agents.regression.base import Regressor
from proppo_agents.regression.data import standardize
from proppo_agents.regression.member_prediction import Members, evaluate, predict_all, predict_own

TRAJECTORIES = ("TS-inf", "TS-1")

_EVERY = 50  # steps between looks at the data that a member does not learn from
_LOG_VARIANCES = (-12.0, 1.0)  # their bounds at the start, of standardized outputs
_BOUNDS_WEIGHT = 0.01


class Ensemble(Regressor):
    r"""Networks that predict mean and variance, each fitted to a resample of the data.

    For more than about 10,000 data, or where the function is not smooth. Each member is fitted by
    likelihood to N draws from the N data with replacement, and kept as it was when the data that
    it did not draw were likeliest. The prediction is the mixture's mean and variance:

    .. math:: m = \frac1B \sum_b m_b, \qquad v = \frac1B \sum_b (v_b + m_b^2) - m^2

    A particle of a rollout goes by one member (trajectory sampling). With ``"TS-inf"`` it keeps it
    for the whole rollout; particles are shared out evenly, in their order. With ``"TS-1"`` it gets
    another one at each step at random; estimators that exchange particles' samples (BIW, MESH, GR)
    assume that what comes after depends on the sample alone, and need this one.

    Args:
        members: B.
        hidden: sizes of the hidden layers; their activation is the SiLU ("swish").
        steps: Adam's steps in a fit.
        learning_rate: Adam's.
        batch_size: of a member's minibatches.
        weight_decay: Adam's, of the weights.
        trajectories: ``"TS-inf"`` or ``"TS-1"``.

    Raises:
        ValueError: if an argument is not as said here.
    """

    def __init__(
        self,
        members: int = 5,
        hidden: Sequence[int] = (200, 200, 200),
        steps: int = 1000,
        learning_rate: float = 1e-3,
        batch_size: int = 64,
        weight_decay: float = 1e-4,
        trajectories: str = "TS-inf",
    ) -> None:
        super().__init__()
        check_fit(steps, learning_rate)
        for name, value in (
            ("members", members),
            ("batch_size", batch_size),
            *(("hidden", size) for size in hidden),
        ):
            check_count(name, value)
        check_choice("trajectories", trajectories, TRAJECTORIES)
        self.members, self.hidden = members, tuple(hidden)
        self.steps, self.learning_rate, self.batch_size = steps, learning_rate, batch_size
        self.weight_decay, self.trajectories = weight_decay, trajectories

    def _fit(self, inputs: Tensor, outputs: Tensor) -> dict[str, Tensor]:
        x, input_mean, input_std = standardize(inputs)
        y, output_mean, output_std = standardize(outputs)
        # Nothing here needs more digits, and the processor does twice as many.
        x, y = x.float(), y.float()
        network = _Networks(self.members, [x.shape[1], *self.hidden], y.shape[1])
        _train(network, x, y, self.steps, self.learning_rate, self.batch_size, self.weight_decay)
        with torch.no_grad():
            noise = network(x.expand(self.members, -1, -1))[1].exp().mean((0, 1)).sqrt()
        return {
            "input_mean": input_mean,
            "input_std": input_std,
            "output_mean": output_mean,
            "output_std": output_std,
            "noise": noise * output_std,
            **{f"network.{name}": value for name, value in network.state_dict().items()},
        }

    def _prepare(self, state: dict[str, Tensor], like: Tensor) -> None:
        given = {name: value.to(like) for name, value in state.items()}
        depth = sum(name.startswith("network.weights.") for name in state)
        self._members = Members(
            input_mean=given["input_mean"],
            input_std=given["input_std"],
            output_mean=given["output_mean"],
            output_std=given["output_std"],
            weights=[given[f"network.weights.{k}"] for k in range(depth)],
            biases=[given[f"network.biases.{k}"] for k in range(depth)],
            lowest=given["network.lowest"],
            highest=given["network.highest"],
        )
        self._noise = given["noise"]

    def _predict(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        means, variances = predict_all(self._members, inputs)
        mean = means.mean(0)
        return mean, variances.mean(0) + (means - mean).square().mean(0)

    def _predict_particles(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        order = None
        if self.trajectories == "TS-1":
            order = torch.randperm(len(inputs), device=inputs.device)
        return predict_own(self._members, inputs, order)

    def _noise_std(self) -> Tensor:
        return self._noise


class _Networks(nn.Module):
    """B networks side by side, from inputs [B, N, I] to means and log-variances [B, N, E]."""

    def __init__(self, members: int, sizes: Sequence[int], outputs: int) -> None:
        super().__init__()
        self.weights, self.biases = nn.ParameterList(), nn.ParameterList()
        for before, after in zip(sizes, [*sizes[1:], 2 * outputs], strict=True):
            bound = before**-0.5
            self.weights.append(bound * (2 * torch.rand(members, before, after) - 1))
            self.biases.append(bound * (2 * torch.rand(members, 1, after) - 1))
        low, high = _LOG_VARIANCES
        self.lowest = nn.Parameter(torch.full((members, 1, outputs), low))
        self.highest = nn.Parameter(torch.full((members, 1, outputs), high))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return means and log-variances."""
        mean, log, _ = evaluate(self, x)
        return mean, log


def _negative_likelihood(network: _Networks, x: Tensor, y: Tensor) -> Tensor:
    """Return it [B, N] for inputs [B, N, I] and outputs [B, N, E], but for a constant."""
    mean: Tensor
    log: Tensor
    mean, log = network(x)
    return 0.5 * (log + (y - mean).square() * (-log).exp()).sum(-1)


def _train(
    network: _Networks,
    x: Tensor,
    y: Tensor,
    steps: int,
    learning_rate: float,
    batch_size: int,
    weight_decay: float,
) -> None:
    """Fit each member to a resample, and leave it as it was best on the rest of the data."""
    members, count = network.weights[0].shape[0], len(x)
    drawn = torch.randint(count, (members, count))
    left_out = torch.ones(members, count).scatter_(1, drawn, 0.0)
    # Of few data a resample may hold all: the last step's networks are kept then.
    judged = bool((left_out.sum(1) > 0).all())
    best = torch.full((members,), torch.inf)
    kept = copy.deepcopy(network.state_dict())
    everything = x.expand(members, -1, -1), y.expand(members, -1, -1)
    groups: list[dict[str, Any]] = [
        {"params": list(network.weights), "weight_decay": weight_decay},
        {"params": [*network.biases, network.lowest, network.highest]},
    ]
    optimizer = torch.optim.Adam(groups, lr=learning_rate)
    for step in range(1, steps + 1):
        rows = drawn.gather(1, torch.randint(count, (members, min(batch_size, count))))
        optimizer.zero_grad()
        loss = _negative_likelihood(network, x[rows], y[rows]).mean(1).sum()
        bounds = (network.highest - network.lowest).sum()
        (loss + _BOUNDS_WEIGHT * bounds).backward()
        optimizer.step()
        if judged and (step % _EVERY == 0 or step == steps):
            with torch.no_grad():
                rest = _negative_likelihood(network, *everything) * left_out
            rest = rest.sum(1) / left_out.sum(1)
            better = rest < best
            best = torch.where(better, rest, best)
            for name, value in network.state_dict().items():
                kept[name][better] = value[better]
    if judged:
        network.load_state_dict(kept)
