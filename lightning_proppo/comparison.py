"""What RP, LR and TP would each make of one rollout, gathered while one of them is computed."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from lightning_proppo.disagreement import DisagreementMemory, signs
from lightning_proppo.engine.backward_pass import BackwardPass
from lightning_proppo.engine.cuts import is_cut
from lightning_proppo.mathematics.accuracy import (
    squared_norm,
    squared_signal,
    standard_errors,
    trace_of_covariance,
)
from lightning_proppo.mathematics.disagreement import fold
from lightning_proppo.per_particle import Answers, ParameterUses, find_parameter_uses
from lightning_proppo.per_particle.plans import Graph, Plan
from lightning_proppo.per_particle.remembering import RememberingUses
from lightning_proppo.per_particle.rollouts import PullBack, RolloutGradients
from lightning_proppo.per_particle.sketches import Signs

COMPARABLE = ("RP", "LR", "TP")


@dataclass(frozen=True, eq=False)
class Estimate:
    r"""What a rollout says of one estimator's batch-mean gradient.

    Attributes:
        variance: :math:`\mathrm{tr}\, \mathrm{Cov}[\hat g]`.
        squared_norm: :math:`|\hat g|^2`.
        not_finite: how many particles have a gradient that is not finite.
    """

    variance: float
    squared_norm: float
    not_finite: int


@dataclass(frozen=True, eq=False)
class Difference:
    r"""RP's batch-mean gradient less LR's, whose expectation is RP's bias.

    Attributes:
        vector: :math:`\hat d`, over the chosen parameters, flat, in float64.
        variance: :math:`\mathrm{tr}\, \mathrm{Cov}[\hat d]`.
    """

    vector: Tensor
    variance: float

    @property
    def squared_norm(self) -> float:
        r""":math:`|\hat d|^2`."""
        return squared_norm([self.vector])

    @property
    def bias(self) -> float:
        r"""RP's, :math:`\sqrt{\max(|\hat d|^2 - V, 0)}`."""
        return math.sqrt(max(squared_signal(self.squared_norm, self.variance), 0.0))

    @property
    def standard_errors(self) -> float:
        r""":math:`z = |\hat d| / \sqrt{V}`."""
        return standard_errors(self.squared_norm, self.variance)

    def folded(self) -> Difference:
        """Return few numbers on the CPU, [SKETCH], of the same length on average."""
        size, device = len(self.vector), self.vector.device
        return Difference(fold(self.vector, signs(size, device)).cpu(), self.variance)


@dataclass(frozen=True, eq=False)
class Findings:
    """What was found in one rollout.

    Attributes:
        particles: P.
        estimates: by the estimator's name.
        variances: by the estimator's name (RP, LR), the variance of what each time step contributes
            to the batch-mean gradient, summed over its samples, in the order of the rollout, [H].
        lr_weight: TP's weight on LR, the mean over each time step's samples, [H]; empty without TP.
        rows: what H counts: ``"time step"``, or ``"sample"`` where samples do not tell.
        missing: why there is nothing of an estimator, by its name.
        difference: None without RP, LR, or parameters.
        guarded: whether TP tested its samples' differences of RP and LR.
        disagreement: their lengths in standard errors, averaged over gradients, the largest among
            each time step's samples, [H]; empty where they are not known.
    """

    particles: int
    estimates: dict[str, Estimate]
    variances: dict[str, Tensor]
    lr_weight: Tensor
    rows: str
    missing: dict[str, str]
    difference: Difference | None
    guarded: bool
    disagreement: Tensor


@dataclass(frozen=True)
class Kind:
    """What tells an action from a state.

    Attributes:
        shape: the sample's.
        parameters: by ``id``, those that its distribution is computed with.
    """

    shape: tuple[int, ...]
    parameters: frozenset[int]

    def is_like(self, other: Kind) -> bool:
        """Return whether both are, say, actions, of which the first may have an encoder's part."""
        if self.shape != other.shape or bool(self.parameters) != bool(other.parameters):
            return False
        return self.parameters <= other.parameters or self.parameters >= other.parameters


@dataclass(eq=False)
class Comparison:
    """Gathers RP's, LR's and TP's gradients of one rollout.

    Its propagators (:mod:`lightning_proppo.propagators.comparing`) carry the cotangents of the
    estimator in use as always; those of the others are kept here.

    Args:
        used: the estimator in use.
        names: the estimators that are compared.
        chosen: which parameters variances are of; None: all that the rollout reaches.
        copies: sketches of each parameter that is not small.
        seed: of the sketches' signs.
    """

    used: str
    names: Sequence[str] = COMPARABLE
    chosen: Callable[[Tensor], bool] | None = None
    copies: int = 1
    seed: int = 0
    missing: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.names = [name for name in COMPARABLE if name in self.names or name == self.used]
        self._numbers = {name: number for number, name in enumerate(self.names)}
        self.differentiable = False  # whether a cost has had a gradient
        self._pass: BackwardPass | None = None
        self._cuts: set[int] = set()
        self._cotangents: dict[str, dict[int, Tensor]] = {name: {} for name in COMPARABLE}
        self._gradients: RolloutGradients | None = None
        self._lr_weight: list[Tensor] = []
        self._kinds: list[Kind] = []
        self._asked: list[int] = []  # how many samples had asked the guard, up to each
        # Parameters at which TP, the estimator in use, compares variances for want of a target.
        self.weighed: dict[int, Tensor] = {}

    # -- which estimators --------------------------------------------------------------------

    def recording(self, running: BackwardPass | None, particles: int) -> bool:
        """Return whether a pass is the first, which is looked at.

        Args:
            running: the pass.
            particles: P.
        """
        if self._pass is None and running is not None and particles > 1:
            self._pass = running
            self._gradients = RolloutGradients(
                len(self.names), particles, self.copies, Signs(self.seed)
            )
        return running is not None and self._pass is running

    def wants(self, name: str) -> bool:
        """Return whether an estimator's gradient is to be had."""
        return name in self.names and name not in self.missing

    def wanted(self, recording: bool) -> list[str]:
        """Return the estimators to compute in a pass."""
        return [
            name for name in self.names if name == self.used or (recording and self.wants(name))
        ]

    def leave_out(self, names: Sequence[str], reason: str) -> None:
        """Say why estimators cannot be looked at."""
        for name in names:
            if name in self.names:
                self.missing.setdefault(name, reason)

    # -- cotangents --------------------------------------------------------------------------

    def own(self, sample: Tensor) -> None:
        """Take note of a sample whose cotangents are kept here."""
        self._cuts.add(id(sample))

    def find_out(self, leaves: Sequence[Tensor]) -> None:
        """Leave all estimators out if gradients flow to samples that are not known here."""
        if any(is_cut(leaf) and id(leaf) not in self._cuts for leaf in leaves):
            self.leave_out(self.names, "another propagator has a node in the rollout")

    def sends(self, name: str, leaf: Tensor) -> bool:
        """Return whether a gradient is to be sent on in messages."""
        if name != self.used:
            return False
        return name != "LR" or not is_cut(leaf)  # LR's samples take no cotangent

    def keep(self, name: str, leaf: Tensor, gradient: Tensor) -> None:
        """Add to an estimator's cotangent at a sample; at a parameter nothing needs to be kept."""
        if name == "LR" or not is_cut(leaf):
            return
        kept = self._cotangents[name]
        kept[id(leaf)] = kept[id(leaf)] + gradient if id(leaf) in kept else gradient

    def cotangent(self, name: str, sample: Tensor) -> Tensor:
        """Return an estimator's cotangent at a sample."""
        kept = self._cotangents[name].pop(id(sample), None)
        found = sample.grad if name == self.used else kept
        return torch.zeros_like(sample) if found is None else found

    # -- parameters --------------------------------------------------------------------------

    def uses(
        self, outputs: Sequence[Tensor], leaves: Sequence[Tensor], particles: int
    ) -> ParameterUses:
        """Find where the parameters that variances are of enter a segment."""
        chosen = [leaf for leaf in leaves if self._is_chosen(leaf)]
        if not chosen:  # a cost of a state alone, say: nothing to look for
            return RememberingUses(ParameterUses(particles, [], Graph([], (), ()), Plan()))
        return RememberingUses(find_parameter_uses(outputs, chosen, particles))

    def _is_chosen(self, leaf: Tensor) -> bool:
        return not is_cut(leaf) and (self.chosen is None or self.chosen(leaf))

    def add(
        self,
        uses: ParameterUses,
        pullbacks: Sequence[tuple[str, Answers, Mapping[str, Tensor | None]]],
        leaves: Sequence[Tensor],
        found: Mapping[str, Sequence[Any]],
        lr_weight: Tensor | None = None,
        sample: Tensor | None = None,
    ) -> None:
        """Add what a segment contributes.

        Args:
            uses: how the chosen parameters enter it.
            pullbacks: names, what autograd gave, and which estimators take a share of that.
            leaves: what the segment reaches.
            found: by estimator, what arrived there.
            lr_weight: TP's, at a sample.
            sample: what was drawn; None for costs.
        """
        gradients = self._gradients
        if gradients is None:
            return
        numbers = self._numbers
        gradients.add(
            uses,
            [
                PullBack(
                    name, answers, [(numbers[n], w) for n, w in shares.items() if n in numbers]
                )
                for name, answers, shares in pullbacks
            ],
            sample is not None,
        )
        if sample is not None:
            parameters = frozenset(id(leaf) for leaf in leaves if not is_cut(leaf))
            self._kinds.append(Kind(sample.shape, parameters))
            look = None if self._pass is None else self._pass.look
            self._asked.append(0 if look is None else look.asked)
        places = [k for k, leaf in enumerate(leaves) if self._is_chosen(leaf)]
        chosen = [leaves[k] for k in places]
        for name, arrived in found.items():
            gradients.add_totals(numbers[name], chosen, [arrived[k] for k in places])
        if lr_weight is not None:
            self._lr_weight.append(lr_weight)

    def weigh_at(self, leaves: Sequence[Tensor]) -> None:
        """Take note of the parameters among the leaves at which TP compares variances."""
        if self.used == "TP":
            self.weighed.update((id(leaf), leaf) for leaf in leaves if not is_cut(leaf))

    def findings(self, memory: DisagreementMemory | None = None) -> Findings | None:
        """Return what was found; None if no pass has been looked at.

        Args:
            memory: what the guard has found in this gradient and earlier ones.
        """
        gradients = self._gradients
        if gradients is None:
            return None
        if not self.differentiable:
            self.leave_out(("RP", "TP"), "the costs have no gradient")
        estimates: dict[str, Estimate] = {}
        wrong = gradients.not_finite()
        for number, (name, squares, not_finite) in enumerate(
            zip(self.names, gradients.squares(), wrong, strict=True)
        ):
            if name in self.missing:
                continue
            norm = squared_norm(list(gradients.totals(number).values()))
            estimates[name] = Estimate(
                float(trace_of_covariance(squares, gradients.particles)), norm, not_finite
            )
        lengths = time_steps(self._kinds[::-1])
        rows = "time step"
        if len(lengths) == 1:  # no sample comes again: they may be time steps, or parts of one
            lengths, rows = [1] * len(self._kinds), "sample"
        return Findings(
            gradients.particles,
            estimates,
            {
                name: _reduce(trace_of_covariance(found, gradients.particles), lengths, torch.sum)
                for name, found in gradients.variances_by_sample().items()
                if name in ("RP", "LR") and name not in self.missing
            },
            _reduce(torch.stack(self._lr_weight).double().cpu(), lengths, torch.mean)
            if self._lr_weight
            else torch.zeros(0, dtype=torch.float64),
            rows,
            dict(self.missing),
            self._difference(gradients) if {"RP", "LR"} <= set(estimates) else None,
            bool(self._asked and self._asked[-1]),
            self._disagreement(memory, lengths),
        )

    def _disagreement(self, memory: DisagreementMemory | None, lengths: list[int]) -> Tensor:
        """Return what the guard's memory says of each time step."""
        found = torch.zeros(0) if memory is None else memory.standard_errors().cpu()
        asked = torch.tensor([0, *self._asked])
        # That of another rollout's samples says nothing of these.
        if not len(found) or len(found) != asked[-1]:
            return torch.zeros(0, dtype=torch.float64)
        by_sample = torch.zeros(len(self._kinds), dtype=torch.float64)
        by_sample[asked.diff() > 0] = found.flip(0)  # the others have nothing to disagree on
        return _reduce(by_sample, lengths, torch.max)

    def _difference(self, gradients: RolloutGradients) -> Difference | None:
        numbers = self._numbers["RP"], self._numbers["LR"]
        parts = [part.double() for part in gradients.difference(*numbers).values()]
        if not parts:
            return None
        squares = gradients.squares_of_difference(*numbers)
        variance = float(trace_of_covariance(squares, gradients.particles))
        return Difference(torch.cat(parts), variance)


def time_steps(kinds: Sequence[Kind]) -> list[int]:
    """Return how many samples each time step has.

    A time step ends where a kind of sample comes that it has already, an action, say. Costs would
    not tell: they come before or after the state, several in a step, or only at the end.

    Args:
        kinds: of the rollout's samples.
    """
    lengths: list[int] = []
    step: list[Kind] = []
    for kind in kinds:
        if not lengths or any(kind.is_like(other) for other in step):
            lengths.append(0)
            step = []
        lengths[-1] += 1
        step.append(kind)
    return lengths


def _reduce(values: Tensor, lengths: list[int], reduction: Callable[[Tensor], Tensor]) -> Tensor:
    """Return what values of samples, the last first, come to in each time step."""
    return torch.stack([reduction(part) for part in values.flip(0).split(lengths)])
