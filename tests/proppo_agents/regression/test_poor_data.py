"""Data that a model can learn little from, or badly: fits survive them, and say what they did."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from proppo_agents.regression import Ensemble, ExactGP, Regressor, SparseGP
from proppo_agents.regression.data import standardize
from proppo_agents.regression.factorization import cholesky
from proppo_agents.regression.gp_posterior import Hyperparameters, condition
from proppo_agents.regression.gp_prediction import predict_plainly

from .gp_reference import fit_gaussian_process

F = torch.float64
REGRESSORS: dict[str, Callable[[], Regressor]] = {
    "ExactGP": lambda: ExactGP(steps=40),
    "SparseGP": lambda: SparseGP(inducing=15, steps=3),
    "Ensemble": lambda: Ensemble(members=2, hidden=(16,), steps=20),
}


def truth(x: Tensor) -> Tensor:
    return torch.stack([torch.sin(2 * x[:, 0]) + x[:, 1], 10 * (x[:, 0] * x[:, 1]).tanh()], 1)


def data(count: int = 40) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = 4 * torch.rand(count, 2, dtype=F, generator=generator) - 2
    return x, truth(x)


def changed(value: Tensor, row: int, column: int, to: float) -> Tensor:
    value = value.clone()
    value[row, column] = to
    return value


def noise(count: int) -> Tensor:
    return torch.randn(count, 2, dtype=F, generator=torch.Generator().manual_seed(1))


X, Y = data()
POOR = {
    "one": (X[:1], Y[:1]),
    "one, twice": (X[:1].repeat(2, 1), Y[:1].repeat(2, 1)),
    "two": (X[:2], Y[:2]),
    "all twice": (X.repeat(2, 1), Y.repeat(2, 1)),
    "all but twice": (torch.cat([X, X + 1e-9 * noise(40)]), Y.repeat(2, 1)),
    "one that is never the same": (X[:1].repeat(40, 1), noise(40)),
    "outputs that never move": (X, torch.full_like(Y, 3e8) / 7),
    "an input that never moves": (torch.stack([X[:, 0], torch.full((40,), 0.1, dtype=F)], 1), Y),
    "inputs that never move": (torch.full_like(X, 1e6 / 7), Y),
    "nothing that moves": (torch.full_like(X, 2.0), torch.full_like(Y, -1.0)),
    "noise far below the outputs": (X, 1e6 + 1e-6 * noise(40)),
    "an input far off": (changed(X, 3, 0, 1e6), Y),
    "an output far off": (X, changed(Y, 3, 0, 1e8)),
    "a datum far off": (changed(X, 3, 0, -1e6), changed(Y, 3, 0, 1e8)),
    "tiny": (1e-200 * X, 1e-200 * Y),
}


@pytest.mark.parametrize("dtype", [F, torch.float32], ids=str)
@pytest.mark.parametrize("name", REGRESSORS)
@pytest.mark.parametrize("poor", POOR)
def test_predictions_and_gradients_are_finite(poor: str, name: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x, y = POOR[poor]
    regressor = REGRESSORS[name]().to(dtype)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # none of them is poor enough to be told of
        regressor.fit(x, y)
    query = torch.cat([x[:10], 1.1 * x[:3], x[:2] + 1e5]).to(dtype).requires_grad_()
    for outputs in (regressor.predict(query), regressor.predict_particles(query)):
        assert all(bool(value.isfinite().all()) for value in outputs)
        assert bool((outputs[1] > 0).all())
        for value in outputs:
            (gradient,) = torch.autograd.grad(value.sum(), query, retain_graph=True)
            assert bool(gradient.isfinite().all())


@pytest.mark.parametrize("name", ["ExactGP", "SparseGP"])
def test_what_contradicts_itself_is_averaged_and_called_noise(name: str) -> None:
    x, y = POOR["one that is never the same"]
    torch.manual_seed(0)
    regressor = {"ExactGP": ExactGP, "SparseGP": SparseGP}[name]().double()
    regressor.fit(x, y)
    mean, variance = regressor.predict(x[:1])
    # The average's own standard deviation is 0.16.
    torch.testing.assert_close(mean[0], y.mean(0), rtol=0.0, atol=0.1)
    # The noise starts at a hundredth of the outputs' variance; the fit ends on its way up.
    assert bool((variance[0] < 1.5 * y.var(0)).all())
    assert bool((variance[0] > y.var(0) / 3).all())


@pytest.mark.parametrize("offset", [0.1, 3e8 / 7, -1e12 / 3])
def test_what_varies_by_rounding_alone_is_constant(offset: float) -> None:
    x = torch.full((30, 2), offset, dtype=F)
    x[:, 1] = x[:, 1] * (1 + 1e-16 * torch.arange(30, dtype=F))
    found, mean, std = standardize(x)
    assert std.tolist() == [1.0, 1.0]
    torch.testing.assert_close(mean, torch.full_like(mean, offset), rtol=1e-14, atol=0.0)
    assert float(found.abs().max()) <= 1e-14 * abs(offset)


# -- far from the middle -------------------------------------------------------------------------


def test_distances_are_exact_where_their_squares_would_not_be() -> None:
    """With lengthscales far below the spread, in 32 bits."""
    x, y = POOR["an input far off"]
    found = Hyperparameters(
        torch.full((2, 2), 1e-5, dtype=F), torch.ones(2, dtype=F), torch.full((2,), 1e-3, dtype=F)
    )
    found.lengthscales[:, 1] = 1.0
    exact = condition(x, y, found)
    torch.testing.assert_close(exact.input_mean, x.median(0).values)
    single = exact.to(torch.empty(0))
    assert single.factors.scattered
    assert not exact.factors.scattered
    # Not the one far off, at which 32 bits do not tell x from x + 0.1.
    query = torch.cat([x[4:14], x[4:14] + 0.1])
    values = query.float().requires_grad_()
    double = query.requires_grad_()
    for one, other, scale in zip(
        single.predict(values), exact.predict(double), (y.std(0), y.var(0)), strict=True
    ):
        assert bool(((one.double() - other).abs() < 1e-3 * scale).all())
        plain = torch.autograd.grad(other.sum(), double, retain_graph=True)[0]
        (slope,) = torch.autograd.grad(one.sum(), values, retain_graph=True)
        assert bool(slope.isfinite().all())
        assert bool(((slope.double() - plain).abs() < 1e-3 * plain.abs().max()).all())


def test_scattered_data_give_the_same_the_slow_way() -> None:
    posterior = fit_gaussian_process(X, Y, steps=5)
    query = (1.1 * X[:5]).requires_grad_()
    fast = posterior.predict(query)
    object.__setattr__(posterior.factors, "scattered", True)
    slow = posterior.predict(query)
    plain = predict_plainly(posterior.factors, query)
    for one, other, third in zip(fast, slow, plain, strict=True):
        torch.testing.assert_close(other, one)
        torch.testing.assert_close(third, one)
        (expected,) = torch.autograd.grad(one.sum(), query, retain_graph=True)
        for value in (other, third):
            (slope,) = torch.autograd.grad(value.sum(), query, retain_graph=True)
            torch.testing.assert_close(slope, expected)


# -- too large -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", REGRESSORS)
def test_what_cannot_be_squared_is_refused(name: str) -> None:
    regressor = REGRESSORS[name]()
    for x, y, told in (
        (1e200 * X, Y, r"inputs must be below 1e\+150.*got 1.99e\+200.*other units"),
        (X, changed(Y, 3, 0, -1e200), r"outputs must be below 1e\+150.*got 1e\+200"),
        (X, 1e30 * Y, r"outputs must be below 2e\+15 in size .*torch.float32; got 9.*e\+30"),
    ):
        with pytest.raises(ValueError, match=told):
            regressor.fit(x, y)
    regressor.double().fit(X, 1e30 * Y)
    before = torch.stack(regressor.predict(X))
    with pytest.raises(ValueError, match=f"of {name} must be below 2e.15 .*torch.float32"):
        regressor.float()
    assert torch.equal(torch.stack(regressor.predict(X)), before)


# -- Cholesky factors ----------------------------------------------------------------------------


def singular(rank: int, size: int) -> Tensor:
    a = torch.randn(size, rank, dtype=F, generator=torch.Generator().manual_seed(2))
    return 1e3 * (a @ a.mT)


def test_a_diagonal_is_raised_as_little_as_is_needed_and_that_is_told_once() -> None:
    good = singular(30, 20)
    # Indefinite by 1e-7 of the diagonal's mean.
    bad = singular(3, 20)
    bad -= 1e-7 * bad.diagonal().mean() * torch.eye(20, dtype=F)
    with pytest.warns(UserWarning, match="a test matrix is not positive definite") as told:
        factor = cholesky(torch.stack([good, bad]), "a test matrix")
    assert len(told) == 1
    for words in ("torch.float64", "raised by 1e-06 of its mean", "leave some of them out"):
        assert words in str(told[0].message)
    torch.testing.assert_close(factor[0], torch.linalg.cholesky(good))
    raised = bad + 1e-6 * bad.diagonal().mean() * torch.eye(20, dtype=F)
    torch.testing.assert_close(factor[1] @ factor[1].mT, raised)


def test_a_definite_matrix_is_left_alone() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(
            cholesky(singular(30, 20), "it"), torch.linalg.cholesky(singular(30, 20))
        )


def test_what_no_jitter_helps_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"it must be finite; got 1 NaN or inf"):
        cholesky(changed(singular(30, 20), 3, 3, torch.nan), "it")
    with pytest.raises(ValueError, match=r"it is not positive definite, even with 1e-02"):
        cholesky(torch.tensor([[1.0, 2.0], [2.0, 1.0]]), "it")


def test_a_posterior_without_noise_says_that_there_is_some() -> None:
    x, y = POOR["all twice"]
    found = Hyperparameters(
        torch.ones(2, 2, dtype=F), torch.ones(2, dtype=F), torch.full((2,), 1e-30, dtype=F)
    )
    with pytest.warns(UserWarning, match="the kernel matrix of 80 data .*1e-10") as told:
        posterior = condition(x, y, found)
    assert len(told) == 1
    mean, variance = posterior.predict(x)
    torch.testing.assert_close(mean, y, rtol=0.0, atol=1e-2)
    assert bool((variance >= 0).all())
    assert bool((variance < 1e-3).all())


class Failing:
    """A factorization that finds each matrix indefinite until its diagonal has been raised."""

    def __init__(self) -> None:
        self.real = torch.linalg.cholesky_ex
        self.calls = 0

    def __call__(self, matrix: Tensor, **options: object) -> tuple[Tensor, Tensor]:
        factor, info = self.real(matrix)
        self.calls += 1
        return factor, torch.ones_like(info) if self.calls % 3 else info


@pytest.mark.parametrize("name", ["ExactGP", "SparseGP"])
def test_a_failure_in_the_middle_of_a_fit_is_told_once(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing = Failing()
    monkeypatch.setattr(torch.linalg, "cholesky_ex", failing)
    regressor = REGRESSORS[name]().double()
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        regressor.fit(X, Y)
    assert failing.calls > 100  # three for each step
    messages = [str(each.message) for each in told]
    ours = [message for message in messages if "in the fit of" in message]
    # A sparse process has two fits, the first of which is an exact one's.
    assert len(ours) == (1 if name == "ExactGP" else 2)
    assert "its diagonal was raised (A not p.d., added jitter of 1.0e-07" in ours[0]
    assert not [m for m in messages if "A not p.d." in m and m not in ours]
    assert all(bool(value.isfinite().all()) for value in regressor.predict(X))


def test_other_warnings_are_not_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    real = torch.linalg.cholesky_ex

    def speak(matrix: Tensor, **options: object) -> tuple[Tensor, Tensor]:
        warnings.warn("hear me", FutureWarning, stacklevel=2)
        return real(matrix)

    monkeypatch.setattr(torch.linalg, "cholesky_ex", speak)
    with pytest.warns(FutureWarning, match="hear me"):
        fit_gaussian_process(X, Y, steps=1)


@pytest.mark.parametrize("name", ["ExactGP", "SparseGP"])
def test_a_fit_that_goes_astray_says_so(name: str) -> None:
    kind = {"ExactGP": ExactGP, "SparseGP": SparseGP}[name]
    with pytest.raises(ValueError, match=r"went astray .*smaller learning_rate"):
        kind(steps=20, learning_rate=1e200).double().fit(X, Y)


def test_two_thousand_data_are_survived() -> None:
    """All of them three times, and without noise: as bad as a kernel matrix becomes."""
    x, y = data(667)
    x, y = x.repeat(3, 1)[:2000], y.repeat(3, 1)[:2000, :1]
    regressor = ExactGP(steps=3).double()
    with pytest.warns(UserWarning, match="more than 1000 data"):
        regressor.fit(x, y)
    query = x[:50].clone().requires_grad_()
    mean, variance = regressor.predict(query)
    assert float((mean.detach() - y[:50]).abs().max()) < 0.2 * float(y.std())
    assert bool((variance > 0).all())
    assert bool(torch.autograd.grad(mean.sum() + variance.sum(), query)[0].isfinite().all())
