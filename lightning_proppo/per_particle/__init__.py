r"""Variances of per-particle gradients at parameters, without a copy of them for each particle.

A parameter's gradient is a sum over particles, and autograd returns only the sum. What each
particle contributes can be read off where the parameter, which has no particle axis, meets tensors
that have one (an *entry*): with the cotangent b of the entry's result,

- a linear layer, ``a @ W``: the contribution is the outer product :math:`a_i b_i^T`, so that the
  sum of squares is :math:`\sum_i |a_i|^2 |b_i|^2` and no contribution is ever formed;
- a linear layer on a sequence, a convolution, a layer used several times: a sum of outer products
  over positions, whose norm comes from products of pairs of positions or from the sum, whichever
  is cheaper, for a portion of the particles at a time;
- an embedding: rows of the table, as above where one row is looked up several times;
- ``x + w``, ``x * w``, the weights of a normalization and other operations element by element: it
  has the size of the result for one particle.

Before its entry a parameter may pass through any operations (transposes, ``exp``, weight
normalization); contributions are pulled through those. Where a graph has an operation without a
rule, each particle's cotangent is pulled back on its own, with one warning: exact too, at the
price of one pull-back for each particle. :func:`per_particle_rule` adds a rule.

With rules: ``Linear`` (any number of axes), ``RNNCell``, ``GRUCell``, ``LSTMCell``, ``LayerNorm``,
``RMSNorm``, ``GroupNorm``, ``BatchNorm`` (in evaluation), ``Embedding``, ``Conv`` and
``ConvTranspose`` (1d, 2d, 3d), ``PReLU``, ``MultiheadAttention``, ensembles of linear layers by
``bmm`` or ``baddbmm`` (a particle's member by ``gather``, or as ``out[member, arange(P)]``),
multivariate normal densities, and what is made of these and of operations on single elements or
along axes. Without: ``Bilinear``, ``EmbeddingBag``, the fused ``LSTM`` and ``GRU``, CUDA's fused
cells, batch statistics of ``BatchNorm`` (which couple particles) before other parameters, and
indices that do not count the particles but shuffle them.

Shapes alone do not tell particles from something else of the same number (features, inducing
points). So the particles are followed from the outputs, which have them first, operation by
operation; an operation without a rule is tested with cotangents of some of the particles.
"""

from lightning_proppo.per_particle import layers
from lightning_proppo.per_particle.contributions import EmbeddingRows, OuterProducts
from lightning_proppo.per_particle.registry import per_particle_rule
from lightning_proppo.per_particle.uses import (
    Answers,
    Moments,
    ParameterUses,
    find_parameter_uses,
    per_particle_variance,
)

__all__ = [
    "Answers",
    "EmbeddingRows",
    "Moments",
    "OuterProducts",
    "ParameterUses",
    "find_parameter_uses",
    "layers",
    "per_particle_rule",
    "per_particle_variance",
]
