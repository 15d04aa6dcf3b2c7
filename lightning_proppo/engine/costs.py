"""The costs of one rollout, which its loss is the sum of."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lightning_proppo.containers import Node
from lightning_proppo.mathematics.precision import is_narrow
from lightning_proppo.pooling import check_same, gather_in_step
from lightning_proppo.ranks import ALONE, Ranks


def mean_cost(node: Node) -> Tensor:
    """Return the mean over particles [] of a loss node's costs, with its graph if they are plain.

    Plain are those whose mean's gradient is all that the node will send.
    """
    return _mean(node, _plain_costs(node))


def _plain_costs(node: Node) -> Tensor | None:
    return None if node.propagator is None else node.propagator.plain_costs(node)


def _mean(node: Node, plain: Tensor | None) -> Tensor:
    costs: Tensor = node["output"].detach() if plain is None else plain
    # A sum over particles is beyond what 16 bits hold.
    costs = costs.float() if is_narrow(costs) else costs
    return costs.sum() / costs.shape[0]


class RolloutCosts:
    """The costs of one rollout, step by step.

    Attributes:
        have_graph: whether a cost has one.
        only_plain: whether to differentiate their mean is all that loss nodes would do.
    """

    def __init__(self) -> None:
        self.have_graph = False
        self.only_plain = True
        self._means: list[Tensor] = []
        self._nodes: list[Node] = []
        self._particles: int | None = None  # of plain costs

    def __len__(self) -> int:
        return len(self._means)

    def add(self, node: Node) -> None:
        """Add the costs of a step, [P, 1], that a loss node holds.

        Raises:
            ValueError: if they are on another device than earlier ones; for plain costs, if there
                is another number of particles.
        """
        plain = _plain_costs(node)
        mean = _mean(node, plain)
        if self._means and self._means[0].device != mean.device:
            raise ValueError(
                "costs of one rollout must be on one device; got costs on "
                f"{self._means[0].device} and then on {mean.device}. Move them: "
                "costs.to(x.device)."
            )
        if plain is None:
            self.only_plain = False
        else:
            self._check_particles(plain.shape[0])
        before = node.get("pre_output")
        self.have_graph |= not isinstance(before, Tensor) or before.requires_grad
        self._means.append(mean)
        self._nodes.append(node)

    def total(self, name: str, calls: int, ranks: Ranks) -> Tensor:
        """Return the rollout's mean cost [], with its graph where costs are plain.

        Args:
            name: of the manager's method that asks, for error messages.
            calls: samples and costs in the rollout.
            ranks: whose particles make up its batch.

        Raises:
            ValueError: if a cost is not finite; on every rank, if the ranks' rollouts differ or one
                has costs that are not finite.
        """
        value = self._means[0] if len(self) == 1 else torch.stack(self._means).sum()
        finite = math.isfinite(value.detach().item())
        if ranks is not ALONE:
            self._agree(name, calls, ranks, value.device, finite)
        if not finite:
            self._refuse(name)
        return value

    def share_means(self, ranks: Ranks) -> None:
        """Tell loss nodes the means of their costs over all ranks, for baselines."""
        own = torch.stack([mean.detach().double() for mean in self._means])
        for node, mean in zip(self._nodes, ranks.sum(own) / ranks.size, strict=True):
            node["mean_cost"] = mean

    def _check_particles(self, particles: int) -> None:
        if self._particles not in (None, particles):
            raise ValueError(
                "costs of one rollout must have the same number of particles; got "
                f"{self._particles} and then {particles}. If an earlier rollout was abandoned, "
                "call manager.reset() after it."
            )
        self._particles = particles

    def _agree(
        self, name: str, calls: int, ranks: Ranks, device: torch.device, finite: bool
    ) -> None:
        """Raise on every rank if the ranks' rollouts differ, or one has costs that are not finite.

        What follows are collectives, in which ranks that do something else would wait for ever.
        """
        own = torch.tensor([calls, len(self), finite], dtype=torch.float64, device=device)
        particles = self._nodes[0]["output"].shape[0]
        every_particles, found = gather_in_step(own, particles, ranks, ends=True)
        every_calls, costs, all_finite = found.long().T.tolist()
        check_same("particles", every_particles)
        check_same("samples and costs in a rollout", every_calls)
        check_same("costs in a rollout", costs)
        if finite and not all(all_finite):
            raise ValueError(
                f"{name}: costs must be finite, or every particle's gradient would be lost; those "
                f"of rank {all_finite.index(False)} are not."
            )

    def _refuse(self, name: str) -> None:
        means = [mean.detach().item() for mean in self._means]
        wrong = [i for i, mean in enumerate(means) if not math.isfinite(mean)]
        came = "their sum overflows"
        if wrong:
            came = f"number {wrong[0] + 1} of {len(means)} has the mean {means[wrong[0]]}"
        raise ValueError(
            f"{name}: costs must be finite, or every particle's gradient would be lost; of the "
            f"costs of this rollout, {came}. Has the state diverged? To skip the batch, "
            "call manager.reset()."
        )
