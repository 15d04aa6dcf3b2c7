"""Cholesky factors of matrices that are positive definite but for rounding."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import gpytorch
import torch
from linear_operator.utils.errors import NanError, NotPSDError
from linear_operator.utils.warnings import NumericalWarning
from torch import Tensor

# What is tried, relative to the mean of the diagonal.
_JITTERS = tuple(10.0**k for k in range(-10, -1))
_CURE = (
    "Predictions are as of data with that much more noise. It comes of many data that are all but "
    "the same: leave some of them out, or take sparse processes (SparseGP) with fewer inducing "
    "points."
)


def cholesky(matrix: Tensor, name: str) -> Tensor:
    """Return lower triangular factors; where there is none, the diagonal is raised, with a warning.

    By 1e-10 of the diagonal's mean first, ten times as much at each further try, in those of the
    batch that need it.

    Args:
        matrix: [..., N, N], symmetric.
        name: what it is, for the messages.

    Returns:
        [..., N, N].

    Raises:
        ValueError: if the matrix is not finite, or 1e-2 is too little.
    """
    if not bool(matrix.isfinite().all()):
        raise ValueError(
            f"{name} must be finite; got {int((~matrix.isfinite()).sum())} NaN or inf."
        )
    factor: Tensor
    factor, failed = torch.linalg.cholesky_ex(matrix)
    if not bool(failed.any()):
        return factor
    mean = matrix.diagonal(dim1=-2, dim2=-1).mean(-1)
    for jitter in _JITTERS:
        added = torch.where(failed > 0, jitter * mean, 0.0)[..., None]
        raised = matrix + torch.diag_embed(added.expand(matrix.shape[:-1]))
        factor, still = torch.linalg.cholesky_ex(raised)
        if not bool(still.any()):
            warnings.warn(
                f"{name} is not positive definite in {matrix.dtype}, so its diagonal was raised "
                f"by {jitter:.0e} of its mean. {_CURE}",
                stacklevel=2,
            )
            return factor
    raise ValueError(
        f"{name} is not positive definite, even with {_JITTERS[-1]:.0e} of its diagonal's mean "
        "added to its diagonal."
    )


@contextmanager
def jitter_of_gpytorch() -> Iterator[None]:
    """Let GPyTorch raise diagonals as :func:`cholesky` does, up to 0.1; warn once, not each time.

    Raises:
        ValueError: if that is too little, or a matrix is not finite.
    """
    told: list[warnings.WarningMessage] = []
    try:
        with (
            gpytorch.settings.cholesky_max_tries(8),
            warnings.catch_warnings(record=True) as told,
        ):
            yield
    except (NanError, NotPSDError) as error:
        raise ValueError(
            f"the fit of a Gaussian process went astray ({error}); take a smaller learning_rate."
        ) from error
    finally:
        jitters = []
        for each in told:
            if issubclass(each.category, NumericalWarning):
                jitters.append(str(each.message))
            else:
                warnings.warn_explicit(each.message, each.category, each.filename, each.lineno)
        if jitters:
            warnings.warn(
                "a kernel matrix was not positive definite in the fit of a Gaussian process, and "
                f"its diagonal was raised ({jitters[-1]}). {_CURE}",
                stacklevel=3,
            )
