r"""Samples shared over a batch: each particle's sample is seen from the others' distributions too.

P particles with normal distributions :math:`p_i = \mathcal N(m_i, \mathrm{diag}(s_i^2))`, of which
particle i has drawn :math:`x_i`, all of D coordinates. Multiple importance sampling with the
balance heuristic uses every sample for every particle: for any function g,

.. math:: E_{p_i}[g(x)] = E\Big[\sum_j c_{ij}\, g(x_j)\Big], \qquad
          c_{ij} = \frac{p_i(x_j)}{\sum_k p_k(x_j)}

Likelihood-ratio gradients made so are PIPPS's batch importance weighted ones (Parmas et al. 2018,
Sec. 3.3); expectations of later costs made so are those of the stochastic mesh (Broadie and
Glasserman 2004). The sums may run over groups of neighbours instead of the whole batch, as long as
the groups are chosen before the samples are drawn: the price falls from P^2 to P K for groups of K,
and particles far apart have next to nothing to tell each other. Functions of tensors only.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_proppo.errors import MORE_PARTICLES


def principal_order(x: Tensor) -> Tensor:
    """Return the permutation [P] that sorts particles x [P, D] along their largest spread."""
    x = torch.nan_to_num(x.detach())
    if x.shape[1] == 1:
        return x[:, 0].argsort()
    centred = x - x.mean(0)
    # A few steps of the power method: any direction is right, a better one only helps.
    direction = centred.square().sum(0)
    for _ in range(3):
        direction = centred.mT @ (centred @ (direction / direction.norm().clamp_min(1e-30)))
    return (centred @ direction).argsort()


@dataclass(frozen=True, eq=False)
class SharedSamples:
    """The samples of a batch with their weights for each other's distributions.

    Made by :func:`share_samples`. G groups of at most K particles; where a group has fewer, its
    last place is void.

    Attributes:
        index: [G, K], particles by place; P in void places.
        samples: x, [G, K, D], less the mean of their group's locations.
        loc: m, [G, K, D], less the same.
        scale: s, [G, K, D].
        weights: c, [G, K, K]; rows belong to samples, columns to distributions.
        particles: P.
    """

    index: Tensor
    samples: Tensor
    loc: Tensor
    scale: Tensor
    weights: Tensor
    particles: int

    def lr_cotangents(self, deviations: Tensor, with_scale: bool = True) -> list[Tensor]:
        r"""Return the likelihood-ratio cotangents of the locations and the scales.

        .. math:: \frac1P \sum_j c_{ij} (L_j - b_j) \nabla_{m_i, s_i} \log p_i(x_j)

        Args:
            deviations: L - b, [G, K], of :meth:`deviations`.
            with_scale: False for the locations' alone.

        Returns:
            One or two tensors [P, D].
        """
        x, m, variance = self.samples, self.loc, self.scale.square()
        share = deviations.unsqueeze(2) / self.particles
        parts = [share, share * x, share * x.square()][: 3 if with_scale else 2]
        sums = self.weights.mT @ torch.cat(parts, 2)
        total, first, *second = sums.split([1] + [x.shape[2]] * (len(parts) - 1), 2)
        found = [(first - total * m) / variance]
        if with_scale:
            spread = second[0] - 2 * m * first + total * m.square()
            found.append((spread / variance - total) / self.scale)
        return [self._ungroup(cotangent) for cotangent in found]

    def lr_contributions(self, deviations: Tensor, with_scale: bool = True) -> list[Tensor]:
        r"""Return what each sample adds to :meth:`lr_cotangents`, over all distributions.

        .. math:: \frac1P (L_j - b_j) \sum_i c_{ij} \nabla_{m_i, s_i} \log p_i(x_j)

        The cotangents of neighbours are made of the same samples, so the spread between them says
        nothing about their sum's variance. These contributions are independent of each other, as
        the samples are.

        Args:
            deviations: L - b, [G, K], of :meth:`deviations`.
            with_scale: False for the locations' alone.

        Returns:
            One or two tensors [P, D].
        """
        x, m, precision = self.samples, self.loc, self.scale.square().reciprocal()
        parts = [precision, m * precision]
        if with_scale:
            cubed = precision / self.scale
            parts += [cubed, m * cubed, m.square() * cubed, 1 / self.scale]
        sums = (self.weights @ torch.cat(parts, 2)).split(x.shape[2], 2)
        found = [x * sums[0] - sums[1]]
        if with_scale:
            found.append(x.square() * sums[2] - 2 * x * sums[3] + sums[4] - sums[5])
        share = deviations.unsqueeze(2) / self.particles
        return [self._ungroup(share * part) for part in found]

    def expected(self, deviations: Tensor, baseline: Tensor) -> Tensor:
        r"""Return what each particle's loss is expected to be, before its sample is known.

        .. math:: b_i + \sum_j c_{ij} (L_j - b_j)

        Args:
            deviations: L - b, [G, K].
            baseline: b, [G, K].

        Returns:
            [P, 1].
        """
        return self._ungroup(self.weights.mT @ deviations.unsqueeze(2) + baseline.unsqueeze(2))

    def deviations(self, losses: Tensor) -> tuple[Tensor, Tensor]:
        """Return the losses less a baseline, and the baseline, [G, K] each.

        It is the mean loss of all other groups, which is independent of the group's samples and so
        adds no bias. With a single group it is the mean of all other particles; that is without
        bias where particles have equal distributions, or such that do not overlap, and has one of
        O(1/P) between.
        """
        grouped = self._group(losses.reshape(self.particles, 1)).squeeze(2)
        total = losses.double().sum()
        if self.index.shape[0] == 1:
            baseline = (total - grouped) / (self.particles - 1)
        else:
            sizes = (self.index < self.particles).sum(1, keepdim=True)
            baseline = (total - grouped.sum(1, keepdim=True)) / (self.particles - sizes)
        return grouped - baseline, baseline.expand_as(grouped)

    def _group(self, x: Tensor) -> Tensor:
        """Return x [P, D] by group, [G, K, D], zero in void places."""
        x = x.detach().double()
        return torch.cat([x, x.new_zeros(1, x.shape[1])])[self.index]

    def _ungroup(self, grouped: Tensor) -> Tensor:
        """Return [G, K, D] by particle, [P, D]."""
        found = grouped.new_empty(self.particles + 1, grouped.shape[2])
        found.index_copy_(0, self.index.flatten(), grouped.flatten(0, 1))
        return found[: self.particles]


def neighbours(loc: Tensor, group_size: int | None) -> Tensor:
    """Return groups of neighbours, [G, K], of particles at loc [P, D]; P where a place is void.

    Args:
        loc: locations.
        group_size: at most as many particles in a group; None: all in one.
    """
    particles = loc.shape[0]
    if group_size is None or group_size >= particles:
        return torch.arange(particles, device=loc.device).unsqueeze(0)
    groups = math.ceil(particles / group_size)
    size = math.ceil(particles / groups)
    short = groups * size - particles  # so many groups, the last ones, have one particle less
    order = principal_order(loc)
    if short == 0:
        return order.reshape(groups, size)
    full, rest = order.split([(groups - short) * size, short * (size - 1)])
    rest = torch.nn.functional.pad(rest.reshape(short, size - 1), (0, 1), value=particles)
    return torch.cat([full.reshape(-1, size), rest])


@torch.no_grad()
def share_samples(
    samples: Tensor, loc: Tensor, scale: Tensor, group_size: int | None = None
) -> SharedSamples:
    """Weigh the samples of a batch for each other's distributions.

    In 64 bits: the weights hang on small differences between large squares.

    Args:
        samples: x, [P, D].
        loc: m, [P, D].
        scale: s, [P, D].
        group_size: share within groups of at most as many neighbours; None: in the whole batch.

    Raises:
        ValueError: for a single particle or a group size below 2.
    """
    particles = loc.shape[0]
    if particles < 2:
        raise ValueError(f"samples are shared among at least 2 particles; got 1. {MORE_PARTICLES}.")
    if group_size is not None and group_size < 2:
        raise ValueError(f"group_size must be at least 2, or None; got {group_size}.")
    index = neighbours(loc, group_size)
    taken = index.clamp_max(particles - 1)
    x, m, s = (t.detach().double()[taken] for t in (samples, loc, scale))
    centre = m.mean(1, keepdim=True)
    x, m = x - centre, m - centre
    precision = s.square().reciprocal()
    # log p_i(x_j) up to a constant, in one product: no tensor of K x K x D is formed.
    own = -(0.5 * m.square() * precision + s.log()).sum(2, keepdim=True)
    void = None if index.numel() == particles else (index == particles).unsqueeze(2)
    if void is not None:
        own = own.masked_fill(void, -torch.inf)
    ones = torch.ones_like(own)
    samples = torch.cat([x.square(), x, ones], 2)
    weights = (samples @ torch.cat([-0.5 * precision, m * precision, own], 2).mT).softmax(2)
    if void is not None:
        weights = weights.masked_fill(void, 0.0)
    return SharedSamples(index, x, m, s, weights, particles)
