"""A slow, obvious reference for the gradients of rollouts: loops over steps and over particles.

It knows nothing of tapes, nodes and messages. It plays a rollout again from a list of what was
done, with the same noise, and applies each estimator's formula to one particle after the other.
P particles, D = 2 coordinates of the state.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributions import Normal

P = 4
START = torch.tensor([[0.3, -0.2], [0.1, 0.5], [-0.4, 0.2], [0.6, -0.7]], dtype=torch.float64)
# Of the noise in a chain.
CHAIN_SCALE = 0.2

Parameters = Mapping[str, Tensor]


@dataclass(frozen=True)
class Sample:
    """A state drawn from a normal distribution.

    Attributes:
        ways: the estimator of the sample, ``"RP"``, ``"LR"``, ``"TP"``, ``"TPX"`` or ``"attached"``
            (RP without a node); several are a chain, where each adds noise to what the one before
            gave.
        loc: which function of the past the mean is; see :func:`mean`.
        scale: ``"fixed"`` or ``"learnt"``; see :func:`deviation`.
        seed: of the noise.
    """

    ways: tuple[str, ...]
    loc: str
    scale: str
    seed: int


@dataclass(frozen=True)
class Cost:
    """The particles' costs at the present state; see :func:`costs`."""

    kind: str


@dataclass
class Past:
    """What has been computed so far.

    Attributes:
        states: [P, D] each, the start first.
        locs: the means that samples were drawn around.
    """

    states: list[Tensor]
    locs: list[Tensor]

    @classmethod
    def new(cls) -> Past:
        return cls([START], [])


def mean(kind: str, past: Past, parameters: Parameters) -> Tensor:
    """Return the mean [P, D] of the next state."""
    x, shift = past.states[-1], parameters["shift"]
    if kind == "again" and past.locs:
        return past.locs[-1]  # a second sample of the same distribution
    if kind == "matrix":
        return torch.tanh(x @ parameters["matrix"])
    if kind == "both":
        return torch.tanh(x @ parameters["matrix"]) + shift
    if kind == "plain":
        return 0.9 * torch.sin(x)  # no parameter enters here
    if kind == "skip" and len(past.states) > 1:
        return torch.sin(x + shift) + 0.5 * past.states[-2]
    return torch.sin(x + shift)


def deviation(step: Sample, parameters: Parameters) -> Tensor:
    """Return the standard deviation of a step's noise, [D]."""
    if step.scale == "learnt":
        return parameters["log_scale"].exp()
    scale = 0.3 if len(step.ways) == 1 else CHAIN_SCALE
    return torch.full((2,), scale, dtype=torch.float64)


def costs(kind: str, past: Past, parameters: Parameters) -> Tensor:
    """Return the particles' costs [P]."""
    x = past.states[-1]
    if kind == "priced":  # depends on a parameter directly, too
        return x.square().sum(1) + (x * parameters["shift"]).sum(1)
    if kind == "looks back" and len(past.states) > 1:
        return (x * past.states[-2]).sum(1).cos()
    if kind == "indifferent":  # to all samples
        return parameters["shift"].square().sum().expand(P)
    return x.square().sum(1)


def noises(seed: int, count: int) -> list[Tensor]:
    """Return standard normal noise, ``count`` times [P, D]."""
    torch.manual_seed(seed)
    return [torch.empty(P, 2, dtype=torch.float64).normal_() for _ in range(count)]


@dataclass(frozen=True)
class _Drawn:
    way: str
    loc: Tensor
    scale: Tensor
    noise: Tensor
    path: Tensor
    x: Tensor


def reference(
    steps: Sequence[Sample | Cost], parameters: Parameters
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the mean cost [] of a rollout, and each parameter's gradient.

    Args:
        steps: what was done, in order.
        parameters: ``"matrix"`` [D, D], ``"shift"`` [D], ``"log_scale"`` [D].
    """
    parameters = {name: p.detach().clone().requires_grad_() for name, p in parameters.items()}
    events = _play(steps, parameters)
    totals = [event.detach() for event in events if isinstance(event, Tensor)]
    leaves = list(parameters.values())
    arrived = {id(leaf): torch.zeros_like(leaf) for leaf in leaves}
    for event in events:
        if isinstance(event, _Drawn) and event.x.requires_grad:
            leaves.append(event.x)
            arrived[id(event.x)] = torch.zeros_like(event.x)
    later: Tensor | None = None
    for event in reversed(events):
        if isinstance(event, Tensor):
            later = event.detach() if later is None else later + event.detach()
            sent = _by_particle(event, torch.full_like(event, 1 / P), leaves)
        elif later is None:
            continue  # no cost follows this sample
        else:
            others = (later.sum() - later) / (P - 1)
            sent = _of_sample(event, later - others, arrived, leaves, list(parameters.values()))
        for leaf, rows in zip(leaves, sent, strict=True):
            arrived[id(leaf)] = arrived[id(leaf)] + rows.sum(0)
    gradients = {name: arrived[id(p)] for name, p in parameters.items()}
    return torch.stack(totals).sum(0).mean(), gradients


def _play(steps: Sequence[Sample | Cost], parameters: Parameters) -> list[_Drawn | Tensor]:
    """Return the samples and the costs, each with the graph back to where it is cut."""
    past, events = Past.new(), []
    for step in steps:
        if isinstance(step, Cost):
            events.append(costs(step.kind, past, parameters))
            continue
        loc, scale = mean(step.loc, past, parameters), deviation(step, parameters)
        past.locs.append(loc)
        for way, noise in zip(step.ways, noises(step.seed, len(step.ways)), strict=True):
            x = path = loc + scale * noise
            if way != "attached":
                x = path.detach().clone().requires_grad_(way != "LR")
                events.append(_Drawn(way, loc, scale, noise, path, x))
            loc = x
        past.states.append(x)
    return events


def _by_particle(output: Tensor, cotangent: Tensor, leaves: Sequence[Tensor]) -> list[Tensor]:
    """Return what each particle's row of ``output`` [P, ...] sends to the leaves: [P, ...] each."""
    found = [torch.zeros(P, *leaf.shape, dtype=leaf.dtype) for leaf in leaves]
    if not output.requires_grad:
        return found
    for i in range(P):
        gradients = torch.autograd.grad(
            output[i], leaves, cotangent[i], retain_graph=True, allow_unused=True
        )
        for rows, gradient in zip(found, gradients, strict=True):
            if gradient is not None:
                rows[i] = gradient
    return found


def _of_sample(
    drawn: _Drawn,
    advantage: Tensor,
    arrived: Mapping[int, Tensor],
    leaves: Sequence[Tensor],
    parameters: Sequence[Tensor],
) -> list[Tensor]:
    """Return what a sample sends to the leaves, particle by particle.

    Args:
        drawn: the sample.
        advantage: the later costs less the mean of the other particles', [P].
        arrived: by ``id``, the cotangents of the samples.
        leaves: samples and parameters.
        parameters: the latter.
    """
    log_prob = Normal(drawn.loc, drawn.scale).log_prob(drawn.x.detach()).sum(1)
    of_lr = _by_particle(log_prob, advantage / P, leaves)
    if drawn.way == "LR":
        return of_lr
    cotangent = arrived[id(drawn.x)]
    of_rp = _by_particle(drawn.path, cotangent, leaves)
    if drawn.way == "RP":
        return of_rp
    if drawn.way == "TPX":
        return _mixed_by_coordinate(drawn, advantage, cotangent, leaves)
    reached = [_reaches(drawn, leaf) for leaf in leaves]
    known = {id(p) for p in parameters}
    compared = [i for i, leaf in enumerate(leaves) if reached[i] and id(leaf) in known]
    if compared:
        lr, rp = ([sent[i] for i in compared] for sent in (of_lr, of_rp))
    else:  # each particle's own row, of the samples that it was made of
        compared = [i for i, yes in enumerate(reached) if yes]
        own = torch.arange(P)
        lr, rp = ([sent[i][own, own] for i in compared] for sent in (of_lr, of_rp))
    k = _weight(sum(map(_variance, lr)), sum(map(_variance, rp)))
    return [k * a + (1 - k) * b for a, b in zip(of_lr, of_rp, strict=True)]


def _mixed_by_coordinate(
    drawn: _Drawn, advantage: Tensor, cotangent: Tensor, leaves: Sequence[Tensor]
) -> list[Tensor]:
    """Weigh at the sample itself, coordinate by coordinate."""
    scale, noise = drawn.scale.detach(), drawn.noise
    of_lr = advantage[:, None] / P * noise / scale
    of_rp = cotangent
    k = torch.tensor(
        [_weight(_variance(of_lr[:, d]), _variance(of_rp[:, d])) for d in range(2)],
        dtype=torch.float64,
    )
    at_loc = k * of_lr + (1 - k) * of_rp
    of_lr = advantage[:, None] / P * (noise.square() - 1) / scale
    at_scale = k * of_lr + (1 - k) * cotangent * noise
    pairs = (drawn.loc.expand(P, 2), at_loc), (drawn.scale.expand(P, 2), at_scale)
    sent = [_by_particle(output, rows, leaves) for output, rows in pairs]
    return [a + b for a, b in zip(*sent, strict=True)]


def _reaches(drawn: _Drawn, leaf: Tensor) -> bool:
    if not drawn.path.requires_grad:
        return False
    (found,) = torch.autograd.grad(drawn.path.sum(), leaf, retain_graph=True, allow_unused=True)
    return found is not None


def _variance(rows: Tensor) -> float:
    return float((rows - rows.mean(0)).square().sum())


def _weight(lr: float, rp: float) -> float:
    return 0.5 if lr + rp == 0 else rp / (lr + rp)
