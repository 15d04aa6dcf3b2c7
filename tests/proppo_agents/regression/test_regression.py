"""Regressors: one contract for all of them."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor

from proppo_agents.parts import make_part
from proppo_agents.regression import Ensemble, ExactGP, Regressor, SparseGP, sparse_gp
from proppo_agents.regression.data import standardize
from proppo_agents.regression.gp_posterior import Hyperparameters
from proppo_agents.regression.member_prediction import predict_all

from .gp_reference import fit_gaussian_process

NOISE = torch.tensor([0.1, 1.0], dtype=torch.float64)


def truth(x: Tensor) -> Tensor:
    return torch.stack([torch.sin(2 * x[:, 0]) + x[:, 1], 10 * (x[:, 0] * x[:, 1]).tanh()], 1)


def data(count: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = 4 * torch.rand(count, 2, dtype=torch.float64, generator=generator) - 2
    noise = torch.randn(count, 2, dtype=torch.float64, generator=generator)
    return x, truth(x) + NOISE * noise


class RegressorContract:
    """What every regressor must do."""

    count = 200

    def new(self, quick: bool = True) -> Regressor:
        raise NotImplementedError

    def fitted(self, x: Tensor, y: Tensor, quick: bool = True) -> Regressor:
        torch.manual_seed(0)
        regressor = self.new(quick).double()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            regressor.fit(x, y)
        return regressor

    @pytest.fixture(scope="class")
    @classmethod
    def regressor(cls) -> Regressor:
        return cls().fitted(*data(cls.count), quick=False)

    def test_shapes_and_dtypes(self, regressor: Regressor) -> None:
        for predict in (regressor.predict, regressor.predict_particles):
            for value in predict(data(7)[0]):
                assert value.shape == (7, 2)
                assert value.dtype == torch.float64
        assert regressor.noise_std.shape == (2,)

    def test_it_learns_and_knows_how_well(self, regressor: Regressor) -> None:
        x, y = data(1000, seed=1)
        mean, variance = regressor.predict(x)
        explained = 1 - (y - mean).square().sum(0) / (y - y.mean(0)).square().sum(0)
        assert bool((explained > 0.9).all())
        # Of 1000 normal residuals 95.4 % lie within 2 sigma, +- 0.7 %; the rest is for the fit.
        inside = ((y - mean).abs() < 2 * variance.sqrt()).double().mean(0)
        assert bool((inside > 0.88).all())
        assert bool((inside < 0.99).all())
        assert bool(((regressor.noise_std / NOISE).log().abs() < torch.tensor(1.5).log()).all())

    def test_it_is_differentiable_with_respect_to_the_inputs(self, regressor: Regressor) -> None:
        x = data(7)[0].requires_grad_()

        def particles(x: Tensor) -> tuple[Tensor, Tensor]:
            torch.manual_seed(0)
            return regressor.predict_particles(x)

        assert torch.autograd.gradcheck(regressor.predict, (x,))
        assert torch.autograd.gradcheck(particles, (x,))

    def test_it_comes_back_from_its_state_and_its_description(self, regressor: Regressor) -> None:
        other = make_part("regressor", regressor.description(), Regressor).double()  # type: ignore[type-abstract]
        assert not other.fitted
        other.load_state_dict(regressor.state_dict())
        x, _ = data(7)
        assert torch.equal(torch.stack(other.predict(x)), torch.stack(regressor.predict(x)))

    def test_its_precision_is_the_modules(self, regressor: Regressor) -> None:
        x, _ = data(7)
        exact = regressor.predict(x)
        single = make_part("regressor", regressor.description(), Regressor)  # type: ignore[type-abstract]
        single.load_state_dict(regressor.state_dict())
        for found, value in zip(single.predict(x.float()), exact, strict=True):
            assert found.dtype == torch.float32
            torch.testing.assert_close(found.double(), value, rtol=0.02, atol=0.02)
        # What was fitted has lost no digit on the way.
        again = single.double().predict(x)
        assert torch.equal(torch.stack(again), torch.stack(exact))

    @pytest.mark.parametrize("which", ["one", "duplicates", "constant", "constant input"])
    def test_poor_data_are_no_obstacle(self, which: str) -> None:
        x, y = data(20)
        if which == "one":
            x, y = x[:1], y[:1]
        elif which == "duplicates":
            x, y = x[:2].repeat(10, 1), y[:2].repeat(10, 1)
        elif which == "constant":
            y = torch.full_like(y, 3.0)
        else:
            x[:, 1] = 5.0
        mean, variance = self.fitted(x, y).predict(x)
        assert bool(torch.isfinite(mean).all())
        assert bool((variance > 0).all())
        if which in ("one", "constant"):
            torch.testing.assert_close(mean, y, rtol=0.0, atol=0.6)

    def test_units_do_not_matter(self) -> None:
        x, y = data(30)
        mean, variance = self.fitted(x, y).predict(x)
        scaled = self.fitted(1e3 * x + 7, 1e-3 * y - 5)
        found, found_variance = scaled.predict(1e3 * x + 7)
        torch.testing.assert_close(found, 1e-3 * mean - 5, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(found_variance, 1e-6 * variance, rtol=1e-2, atol=0.0)

    def test_wrong_data_are_refused(self) -> None:
        for x, y, told in (
            (torch.zeros(3, 2), torch.zeros(4, 1), r"\[3, 2\] and \[4, 1\]"),
            (torch.zeros(0, 2), torch.zeros(0, 1), "at least 1"),
            (torch.zeros(3, 2), torch.full((3, 1), torch.nan), "outputs must be finite; got 3"),
        ):
            with pytest.raises(ValueError, match=told):
                self.new().fit(x, y)

    def test_before_a_fit_it_says_what_to_do(self) -> None:
        with pytest.raises(RuntimeError, match=r"has not been fitted.*call fit"):
            self.new().predict(torch.zeros(1, 2))


class TestExactGP(RegressorContract):
    def new(self, quick: bool = True) -> Regressor:
        return ExactGP(steps=5 if quick else 80)

    def test_many_data_are_warned_of(self) -> None:
        with pytest.warns(UserWarning, match="more than 1000 data.*SparseGPDynamics"):
            ExactGP(steps=0).fit(*data(1001))


class TestSparseGP(RegressorContract):
    count = 600

    def new(self, quick: bool = True) -> Regressor:
        return SparseGP(inducing=60, steps=0 if quick else 60)

    def test_with_an_inducing_point_at_each_datum_it_is_the_exact_process(self) -> None:
        x, y = data(40)
        torch.manual_seed(0)
        sparse = SparseGP(inducing=40, steps=0).double()
        sparse.fit(x, y)
        exact = fit_gaussian_process(x, y, steps=100)
        query = data(20, seed=2)[0]
        for found, expected in zip(sparse.predict(query), exact.predict(query), strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-2, atol=1e-2)

    def test_its_predictions_are_gpytorchs(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """The closed form, against the variational strategy put at the same optimum."""
        # GPyTorch adds it as it is, we times the signal's variance.
        monkeypatch.setattr(sparse_gp, "_JITTER", 1e-10)
        x, y = data(200)
        torch.manual_seed(0)
        sparse = SparseGP(inducing=20, steps=0).double()
        sparse.fit(x, y)
        state = sparse.get_extra_state()
        found = Hyperparameters(
            *(state[n] for n in ("lengthscales", "signal_variance", "noise_variance"))
        )
        points = state["scaled_inputs"] * found.lengthscales.unsqueeze(1)
        model = sparse_gp._SparseProcesses(points).double()
        model.covar_module.base_kernel.lengthscale = found.lengthscales.unsqueeze(1)
        model.covar_module.outputscale = found.signal_variance
        sx, sy = standardize(x)[0], standardize(y)[0]
        sparse_gp._start_at_optimum(model, sx, sy.mT, points, found)
        model.eval()
        query = data(20, seed=2)[0]
        with torch.no_grad():
            scaled = (query - state["input_mean"]) / state["input_std"]
            theirs = model(scaled.expand(2, -1, -1))
            mean = theirs.mean.mT * state["output_std"] + state["output_mean"]
            variance = theirs.variance.mT + found.noise_variance
            variance = variance * state["output_std"].square()
        ours = sparse.predict(query)
        torch.testing.assert_close(ours[0], mean, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(ours[1], variance, rtol=1e-4, atol=1e-4)


class TestEnsemble(RegressorContract):
    count = 600

    def new(self, quick: bool = True, **options: Any) -> Regressor:
        steps, members = (20, 3) if quick else (1000, 4)
        return Ensemble(**({"members": members, "hidden": (32, 32), "steps": steps} | options))

    def test_units_do_not_matter(self) -> None:
        pytest.skip("float32 rounds other units otherwise, and training magnifies that")

    @pytest.mark.parametrize("particles", [1, 2, 7, 8])
    def test_a_particle_goes_by_one_member(self, regressor: Regressor, particles: int) -> None:
        assert isinstance(regressor, Ensemble)
        x = data(particles)[0]
        means, variances = predict_all(regressor._members, x)
        mean, std = regressor.predict_particles(x)
        shares = [particles // 4 + (k < particles % 4) for k in range(4)]
        member = [k for k, share in enumerate(shares) for _ in range(share)]
        for p, k in enumerate(member):
            torch.testing.assert_close(mean[p], means[k, p])
            torch.testing.assert_close(std[p], variances[k, p].sqrt())

    def test_ts_1_deals_members_out_anew(self) -> None:
        torch.manual_seed(0)
        regressor = self.new(trajectories="TS-1").double()
        regressor.fit(*data(50))
        x = data(1)[0].expand(9, -1)
        first, second = regressor.predict_particles(x)[0], regressor.predict_particles(x)[0]
        assert not torch.equal(first, second)
        # Each of the three members has three of the nine particles, either time.
        for found in (first, second):
            assert sorted(found[:, 0].unique(return_counts=True)[1].tolist()) == [3, 3, 3]

    def test_the_mixtures_variance_is_more_than_the_members(self, regressor: Regressor) -> None:
        far = torch.tensor([[8.0, -8.0]], dtype=torch.float64)
        near = torch.tensor([[0.5, -0.5]], dtype=torch.float64)
        assert bool((regressor.predict(far)[1] > 3 * regressor.predict(near)[1]).all())

    def test_wrong_arguments_are_refused(self) -> None:
        for options, told in (
            ({"members": 0}, "members must be at least 1; got 0"),
            ({"hidden": (0,)}, "hidden must be at least 1"),
            ({"trajectories": "TSinf"}, "Did you mean 'TS-inf'"),
            ({"steps": -1}, "steps must be at least 0"),
            ({"learning_rate": 0.0}, "learning_rate must be positive"),
        ):
            with pytest.raises(ValueError, match=told):
                self.new(**options)  # type: ignore[arg-type]
