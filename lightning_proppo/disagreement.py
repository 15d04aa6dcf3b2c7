"""What successive gradients, and neighbouring time steps, say about RP's bias."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

from lightning_proppo.mathematics.disagreement import (
    SKETCH,
    differences_by_feature,
    doubt,
    fold,
    limit,
    squared_error,
)
from lightning_proppo.ranks import Ranks, sum_together

# Gradients after which evidence has faded.
GRADIENTS = 30
# Time steps on either side whose evidence is pooled.
NEIGHBOURS = 2
# Numbers that may wait to be reduced, all at once.
WAITING = 1 << 22


@dataclass(frozen=True, eq=False)
class AtParameters:
    """LR's and RP's gradient with respect to parameters, by way of one sample.

    Attributes:
        difference: LR's less RP's on this rank, [n].
        squares: the sum of their squared deviations over all ranks' particles, [].
        lr_weight: LR's weight by variance alone, [].
        particles: P, of all ranks.
        ranks: whose particles make up the batch.
    """

    difference: Tensor
    squares: Tensor
    lr_weight: Tensor
    particles: int
    ranks: Ranks

    @property
    def kind(self) -> tuple[int, ...]:
        """What samples whose evidence is pooled have in common."""
        return (len(self.difference),)

    def numbers(self) -> int:
        """Return how many numbers wait."""
        return self.difference.numel()


@dataclass(frozen=True, eq=False)
class AtSamples:
    """LR's and RP's gradient with respect to one or more samples, for each particle.

    Attributes:
        rows: LR's less RP's, [P, n].
        past: what was drawn before the sample, [P, F].
        lr_weight: LR's weight by variance alone, [1] or [n].
        ranks: whose particles make up the batch.
    """

    rows: Tensor
    past: Tensor
    lr_weight: Tensor
    ranks: Ranks

    @property
    def kind(self) -> tuple[int, ...]:
        """What samples whose evidence is pooled have in common."""
        return (self.rows.shape[1], self.past.shape[1])

    @property
    def particles(self) -> int:
        """P, of all ranks."""
        return self.rows.shape[0] * self.ranks.size

    def numbers(self) -> int:
        """Return how many numbers wait."""
        return self.rows.numel() + self.past.numel()


Evidence: TypeAlias = AtParameters | AtSamples


class Differences(NamedTuple):
    """Differences of T samples of one kind in units of their standard error.

    Attributes:
        units: u, [T, G, m].
        lr_weight: LR's weight by variance alone, [T, G].
    """

    units: Tensor
    lr_weight: Tensor


class _Averages(NamedTuple):
    """Averages over gradients.

    Attributes:
        units: [T, G, m].
        lr_weight: [T, G].
        squares: of the squared length of neighbours' sums, [T, G].
    """

    units: Tensor
    lr_weight: Tensor
    squares: Tensor


class DisagreementMemory:
    r"""Remembers at which samples of a rollout RP and LR have disagreed.

    Each sample's difference (:mod:`~.mathematics.disagreement`) is averaged over gradients: over
    all of them at first, with a memory of about ``GRADIENTS`` later. An average is tested by
    itself, and together with those of neighbouring time steps that are not significant by
    themselves.

    Samples are numbered from the end of the rollout, as a backward pass meets them. A rollout of
    another structure (other samples, or parameters of another size) begins with an empty memory.

    Attributes:
        gradients: how many were averaged.
    """

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """Begin with an empty memory."""
        self.gradients = 0
        self._noise = 0.0  # the variance of an average in units of a single difference's
        self._nodes = 0  # of the rollout
        self._kinds: list[tuple[int, ...]] = []  # of each sample
        self._averages: dict[tuple[int, ...], _Averages] = {}

    def begin(self, nodes: int) -> Look:
        """Return what a backward pass over a rollout of so many nodes asks, and adds to."""
        known = self.gradients > 0 and nodes == self._nodes
        return Look(nodes, self._doubts() if known else None)

    @torch.no_grad()
    def keep(self, look: Look) -> None:
        """Add what a pass has found."""
        kinds, found = look.finish()
        if not kinds:  # no estimator that mixes has run
            return
        if kinds != self._kinds or look.nodes != self._nodes:
            self.forget()
            self._kinds, self._nodes = kinds, look.nodes
        self.gradients += 1
        share = max(1 / self.gradients, 2 / (GRADIENTS + 1))
        self._noise = (1 - share) ** 2 * self._noise + share**2
        for kind, now in found.items():
            before = self._averages.get(kind)
            alone = None if before is None else self._alone(before).to(now.units.device)
            sums, _ = _neighbours(now.units, alone)
            new = _Averages(*now, sums.square().sum(-1))
            if before is not None:
                # A checkpoint's are on the CPU.
                pairs = zip(before, new, strict=True)
                new = _Averages(*[x.to(y.device).lerp(y, share) for x, y in pairs])
            self._averages[kind] = new

    def _alone(self, average: _Averages) -> Tensor:
        """Return which samples are significant by themselves, [T, G]."""
        least = limit(average.lr_weight, average.units.shape[1])
        return average.units.square().sum(-1) > least * self._noise

    def _doubts(self) -> list[tuple[tuple[int, ...], Tensor]]:
        """Return each sample's kind, and the doubt in RP there, [n]."""
        found = {}
        for kind, average in self._averages.items():
            alone = self._alone(average)
            own = average.units.square().sum(-1) - self._noise
            sums, members = _neighbours(average.units, alone)
            squares = sums.square().sum(-1)
            # The samples of one rollout are not independent: what sums scatter by is measured.
            scatter = (average.squares - squares) / max(1 - self._noise, 0.5)
            noise = scatter.clamp_min(1.0) * self._noise
            beyond = squares > limit(average.lr_weight, alone.shape[1]) * noise
            pooled = (squares - noise) / members.clamp_min(1.0) * beyond
            doubts = _of_coordinates(torch.where(alone, own, pooled), kind)
            found[kind] = iter(doubts.unbind())
        return [(kind, next(found[kind])) for kind in self._kinds]

    @torch.no_grad()
    def standard_errors(self) -> Tensor:
        """Return the length of each sample's average difference in standard errors, [T].

        The first sample of the rollout comes first. Of a sample's groups the largest counts.
        Nothing is waited for: the values may still be on their way from a GPU.
        """
        found = {}
        for kind, average in self._averages.items():
            squares = average.units.square().sum(-1).amax(1) / self._noise
            found[kind] = iter(squares.sqrt().flip(0).unbind())
        errors = [next(found[kind]) for kind in reversed(self._kinds)]
        return torch.stack(errors) if errors else torch.zeros(0, dtype=torch.float64)

    def state_dict(self) -> dict[str, Any]:
        """Return the memory as tensors and plain values."""
        return {
            "gradients": self.gradients,
            "noise": self._noise,
            "nodes": self._nodes,
            "kinds": [list(kind) for kind in self._kinds],
            "averages": [list(self._averages[kind]) for kind in dict.fromkeys(self._kinds)],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on with that memory."""
        self.gradients, self._noise = state["gradients"], state["noise"]
        self._nodes = state["nodes"]
        self._kinds = [tuple(kind) for kind in state["kinds"]]
        averages = [_Averages(*average) for average in state["averages"]]
        self._averages = dict(zip(dict.fromkeys(self._kinds), averages, strict=True))


class Look:
    """One backward pass's questions to the memory, and its evidence.

    A pass with a memory uses only the memory, so that its weights do not depend on its own noise.
    A pass without one uses its own evidence, and that of the time steps that follow.

    Args:
        nodes: of the rollout.
        remembered: each sample's kind, and the doubt in RP there, from the end of the rollout; None
            without a memory.
    """

    def __init__(
        self, nodes: int = 0, remembered: Sequence[tuple[tuple[int, ...], Tensor]] | None = None
    ) -> None:
        self.nodes = nodes
        self._remembered = remembered
        self._kinds: list[tuple[int, ...]] = []
        self._waiting: dict[tuple[int, ...], list[Evidence]] = {}
        self._numbers = 0
        self._found: dict[tuple[int, ...], list[Differences]] = {}
        self._recent: list[tuple[tuple[int, ...], Tensor]] = []
        self._latest: Tensor | None = None

    @property
    def asked(self) -> int:
        """How many samples have asked."""
        return len(self._kinds)

    def again(self) -> Look:
        """Return the same for another pass over the rollout, which finds the same weights."""
        return Look(self.nodes, self._remembered)

    def doubt(self, evidence: Evidence) -> Tensor | None:
        """Return the share of RP's weight to hand to LR at the next sample.

        Returns:
            [1], or [n] for each coordinate of a sample; None for zero.
        """
        number = len(self._kinds)
        self._kinds.append(evidence.kind)
        self._waiting.setdefault(evidence.kind, []).append(evidence)
        self._numbers += evidence.numbers()
        if self._remembered is None:
            self._latest = self._doubt_alone(evidence)
            return self._latest
        if self._numbers > WAITING:
            self._reduce()
        if number >= len(self._remembered):
            return None
        kind, doubt = self._remembered[number]
        return doubt if kind == evidence.kind else None

    def doubt_between(self) -> Tensor | None:
        """Return the doubt at a sample without evidence: the larger one of its neighbours'.

        Without a memory, the sample before it in time has not been seen yet.
        """
        if self._remembered is None or not self._kinds:
            return self._latest
        number = len(self._kinds)
        neighbours = self._remembered[max(number - 1, 0) : number + 1]
        doubts = [doubt for kind, doubt in neighbours if kind == self._kinds[-1]]
        return torch.stack(doubts).amax(0) if doubts else None

    def finish(self) -> tuple[list[tuple[int, ...]], dict[tuple[int, ...], Differences]]:
        """Return each sample's kind, and the differences of all samples of each kind."""
        self._reduce()
        return self._kinds, {
            kind: Differences(*[torch.cat(parts) for parts in zip(*found, strict=True)])
            for kind, found in self._found.items()
        }

    def _reduce(self) -> None:
        """Turn what waits into differences."""
        for kind, waiting in self._waiting.items():
            self._found.setdefault(kind, []).append(_differences(waiting))
        self._waiting, self._numbers = {}, 0

    def _doubt_alone(self, evidence: Evidence) -> Tensor:
        """Return the doubt that this pass raises at its latest sample."""
        self._reduce()
        latest = self._found[evidence.kind][-1]
        unit = latest.units[0]
        least = limit(latest.lr_weight[0], len(unit), evidence.particles)
        square = unit.square().sum(-1)
        found = torch.where(square > least, square, 0.0)
        together = [unit, *(u for kind, u in self._recent if kind == evidence.kind)]
        square = torch.stack(together).sum(0).square().sum(-1) / len(together)
        # Samples of one rollout are not independent; their sums scatter by up to half as much more.
        pooled = torch.where(square > 1.5 * least, square / len(together), 0.0)
        alone = unit.where(found.unsqueeze(-1) == 0, 0.0)
        self._recent = [(evidence.kind, alone), *self._recent][:NEIGHBOURS]
        return _of_coordinates(torch.maximum(found, pooled).unsqueeze(0), evidence.kind)[0]


def _of_coordinates(bias: Tensor, kind: tuple[int, ...]) -> Tensor:
    """Return the doubt that biases [T, G] raise, [T, 1] at parameters and [T, n] at samples.

    Of a coordinate's features the most biased one counts.
    """
    if len(kind) > 1:
        bias = bias.unflatten(1, (kind[0], -1)).amax(-1)
    return doubt(bias, GRADIENTS)


def _differences(evidence: Sequence[Evidence]) -> Differences:
    """Return the differences that evidence of one kind shows."""
    first = evidence[0]
    if isinstance(first, AtParameters):
        own = torch.stack([e.difference for e in evidence]).double()  # type: ignore[union-attr]
        values = first.ranks.sum(own)
        squares = torch.stack([e.squares for e in evidence])  # type: ignore[union-attr]
        units = values * squared_error(values, squares, first.particles).rsqrt().unsqueeze(1)
        weight = torch.stack([e.lr_weight for e in evidence]).double().unsqueeze(1)
        return Differences(_folded(units.nan_to_num(0.0, 0.0, 0.0)).unsqueeze(1), weight)
    rows = torch.stack([e.rows for e in evidence])  # type: ignore[union-attr]
    past = torch.stack([e.past for e in evidence])  # type: ignore[union-attr]
    (mean,) = sum_together([past.mean(1)], first.ranks)
    found = differences_by_feature(rows, past, mean / first.ranks.size)
    values, scales = (x.double() for x in sum_together([*found], first.ranks))
    units = (values * scales.rsqrt()).nan_to_num(0.0, 0.0, 0.0)
    weight = torch.stack([e.lr_weight for e in evidence]).double().unsqueeze(2)
    return Differences(units.reshape(len(evidence), -1, 1), weight.expand(units.shape).flatten(1))


def _folded(units: Tensor) -> Tensor:
    """Return units [T, n] as few numbers, [T, m], always by the same random signs."""
    size = units.shape[-1]
    return units if size <= SKETCH else fold(units, signs(size, units.device))


@functools.lru_cache(8)
def signs(size: int, device: torch.device) -> Tensor:
    """Return random signs, [n], on a device to which nothing is copied after the first time."""
    generator = torch.Generator("cpu").manual_seed(size)
    drawn = torch.randint(0, 2, (size,), generator=generator, device="cpu")
    return (2.0 * drawn - 1.0).to(device)


def _neighbours(values: Tensor, left_out: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return sums over neighbouring time steps, divided by the root of their number, and that.

    Args:
        values: [T, G, m].
        left_out: samples that are not added, [T, G], or None.

    Returns:
        [T, G, m] and [T, G].
    """
    counted = torch.ones_like(values[..., :1])
    if left_out is not None:
        counted = counted.masked_fill(left_out.unsqueeze(-1), 0.0)
        values = values * counted
    size = NEIGHBOURS
    sums, members = (
        torch.nn.functional.pad(x, (0, 0, 0, 0, size, size)).unfold(0, 2 * size + 1, 1).sum(-1)
        for x in (values, counted)
    )
    return sums / members.clamp_min(1.0).sqrt(), members.squeeze(-1)
