"""Inverse-variance weights against brute force, in 64 bits."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_proppo.mathematics.variances import (
    inverse_variance_weighting,
    mix,
    scaled,
    weights_from_variances,
)

finite = st.floats(-1e3, 1e3)
variances = st.one_of(st.just(0.0), st.floats(1e-30, 1e30), st.just(math.inf), st.just(math.nan))


def summed_variance(gradients):
    """By loops."""
    total = 0.0
    for gradient in gradients:
        flat = gradient.reshape(gradient.shape[0], -1)
        for column in flat.T.tolist():
            mean = math.fsum(column) / len(column)
            total += math.fsum((value - mean) ** 2 for value in column)
    return total


def double(*values):
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.parametrize("shapes", [[(7,)], [(7, 3)], [(7, 3), (7,), (7, 2, 2)]])
def test_weights_are_those_of_the_summed_variances(shapes):
    first = [3.0 * torch.randn(shape, dtype=torch.float64) + 5.0 for shape in shapes]
    second = [torch.randn(shape, dtype=torch.float64) for shape in shapes]
    v1, v2 = summed_variance(first), summed_variance(second)
    k1, k2 = inverse_variance_weighting(first, second)
    assert float(k1) == pytest.approx(v2 / (v1 + v2), rel=1e-12)
    assert float(k1 + k2) == pytest.approx(1.0, rel=1e-15)
    if len(shapes) == 1:
        assert float(inverse_variance_weighting(first[0], second[0])[0]) == float(k1)


def test_the_mean_does_not_count_in_32_bits_either():
    first = 3.0 * torch.randn(7, 3) + 5.0
    second = torch.randn(7, 3) - 20.0
    v1, v2 = summed_variance([first]), summed_variance([second])
    for k1 in (
        inverse_variance_weighting(first, second)[0],
        inverse_variance_weighting([first[:, :1], first[:, 1:]], [second[:, :1], second[:, 1:]])[0],
    ):
        assert float(k1) == pytest.approx(v2 / (v1 + v2), rel=1e-6)
    k1, _ = inverse_variance_weighting(first, second, scalar_estimate=False)
    for d in range(3):
        v1, v2 = summed_variance([first[:, d]]), summed_variance([second[:, d]])
        assert float(k1[d]) == pytest.approx(v2 / (v1 + v2), rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("options", [{}, {"scalar_estimate": False}, {"with_covariance": True}])
def test_weights_have_the_dtype_of_the_gradients(dtype, options):
    first = torch.tensor([[1.0], [3.0]], dtype=dtype)
    second = torch.tensor([[8.0], [4.0]], dtype=dtype)
    for k, expected in zip(
        inverse_variance_weighting(first, second, **options),
        # The correlation is -1, and the standard deviations are as 1 to 2.
        (2 / 3, 1 / 3) if options.get("with_covariance") else (0.8, 0.2),
        strict=True,
    ):
        assert k.dtype == dtype
        assert k.flatten().tolist() == pytest.approx([expected], rel=torch.finfo(dtype).eps)


def test_weights_of_gradients_of_two_dtypes_have_the_wider_one():
    narrow, wide = torch.tensor([1.0, 3.0]), double(8.0, 4.0)
    for pair in ((narrow, wide), (wide, narrow)):
        assert [k.dtype for k in inverse_variance_weighting(*pair)] == [torch.float64] * 2
    with pytest.raises(ValueError, match="floating point"):
        inverse_variance_weighting(torch.tensor([1, 3]), wide)


def test_weights_by_coordinate_are_those_of_each_coordinate():
    first = torch.randn(9, 2, 3, dtype=torch.float64) * torch.rand(2, 3, dtype=torch.float64)
    second = torch.randn(9, 2, 3, dtype=torch.float64)
    k1, k2 = inverse_variance_weighting(first, second, scalar_estimate=False)
    assert k1.shape == k2.shape == (2, 3)
    for index in [(i, j) for i in range(2) for j in range(3)]:
        v1 = summed_variance([first[:, index[0], index[1]]])
        v2 = summed_variance([second[:, index[0], index[1]]])
        assert float(k1[index]) == pytest.approx(v2 / (v1 + v2), rel=1e-12)
    with pytest.raises(ValueError, match="got 2 tensors"):
        inverse_variance_weighting([first] * 2, [second] * 2, scalar_estimate=False)


@given(
    st.lists(st.tuples(finite, finite), min_size=2, max_size=6),
    st.floats(-1e3, 1e3),
    st.sampled_from([1e-200, 1e-12, 1.0, 1e12, 1e150]),
)
def test_weights_do_not_change_with_the_mean_or_the_common_scale(pairs, shift, scale):
    first, second = (
        torch.tensor(column, dtype=torch.float64) for column in zip(*pairs, strict=True)
    )
    k1, k2 = inverse_variance_weighting(first, second)
    assert 0.0 <= float(k1) <= 1.0
    assert float(k1 + k2) == pytest.approx(1.0)
    swapped, _ = inverse_variance_weighting(second, first)
    assert float(swapped) == pytest.approx(float(k2), abs=1e-12)
    if first.std() > 1e-3 or second.std() > 1e-3:
        shifted, _ = inverse_variance_weighting(first + shift, second - shift)
        assert float(shifted) == pytest.approx(float(k1), abs=1e-6)
    scaled, _ = inverse_variance_weighting(scale * first, scale * second)
    assert float(scaled) == pytest.approx(float(k1), abs=1e-9)


def test_weights_minimize_the_variance_of_the_mixture():
    """Of independent estimators: no other constant weight is better."""
    generator = torch.Generator().manual_seed(0)
    first = 2.0 * torch.randn(20_000, generator=generator, dtype=torch.float64)
    second = torch.randn(20_000, generator=generator, dtype=torch.float64)
    k1, k2 = inverse_variance_weighting(first, second)
    assert float(k1) == pytest.approx(0.2, abs=0.01)
    best = (k1 * first + k2 * second).var()
    for other in (0.0, 0.1, 0.3, 0.5, 1.0):
        assert best < (other * first + (1 - other) * second).var()


def test_two_estimators_without_variance_count_alike():
    constant = torch.ones(4, 2, dtype=torch.float64)
    for by_coordinate in (True, False):
        k1, k2 = inverse_variance_weighting(constant, 3.0 * constant, by_coordinate)
        assert bool((k1 == 0.5).all())
        assert bool((k2 == 0.5).all())


def test_an_estimator_without_variance_has_all_the_weight():
    noisy = torch.randn(4, dtype=torch.float64)
    assert [float(k) for k in inverse_variance_weighting(noisy, torch.ones(4).double())] == [0, 1]
    assert [float(k) for k in inverse_variance_weighting(torch.ones(4).double(), noisy)] == [1, 0]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("by_coordinate", [False, True])
def test_an_estimator_that_is_not_finite_has_no_weight(bad, by_coordinate, capsys):
    """In the prototype such weights were printed, and one half."""
    fine, broken = torch.randn(5, 2, dtype=torch.float64), torch.randn(5, 2, dtype=torch.float64)
    broken[2, 0] = bad
    k1, k2 = inverse_variance_weighting(fine, broken, not by_coordinate)
    assert float(k1.flatten()[0]) == 1.0
    assert float(k2.flatten()[0]) == 0.0
    k1, k2 = inverse_variance_weighting(broken, fine, not by_coordinate)
    assert float(k1.flatten()[0]) == 0.0
    assert float(k2.flatten()[0]) == 1.0
    if by_coordinate:
        assert 0.0 < float(k1[1]) < 1.0  # the other coordinate is as good as ever
    k1, k2 = inverse_variance_weighting(broken, broken, not by_coordinate)
    assert (float(k1.flatten()[0]), float(k2.flatten()[0])) == (1.0, 0.0)
    assert capsys.readouterr().out == ""


def test_squares_neither_overflow_nor_vanish():
    for scale in (1e-300, 1e-160, 1e160, 1e300):
        first = scale * double(1.0, 2.0, 3.0)
        second = scale * double(2.0, 4.0, 6.0)
        k1, _ = inverse_variance_weighting(first, second)
        assert float(k1) == pytest.approx(0.8)


def test_tensors_without_elements_and_of_mixed_size_count_for_nothing():
    first, second = torch.randn(5, 2, dtype=torch.float64), torch.randn(5, 2, dtype=torch.float64)
    nothing = torch.zeros(5, 0, dtype=torch.float64)
    with_nothing = inverse_variance_weighting([first, nothing], [second, nothing])
    assert with_nothing == inverse_variance_weighting(first, second)


@given(variances, variances)
def test_weights_of_any_variances_are_finite_and_sum_to_one(v1, v2):
    k1, k2 = (float(k) for k in weights_from_variances(double(v1), double(v2)))
    assert math.isfinite(k1)
    assert k1 + k2 == pytest.approx(1.0)
    if math.isfinite(v1) and math.isfinite(v2):
        assert k1 == pytest.approx(v2 / (v1 + v2) if v1 + v2 > 0 else 0.5, rel=1e-9, abs=1e-300)
    elif math.isfinite(v2):
        assert k1 == 0.0
    else:
        assert k1 == 1.0


def test_weights_of_variances_are_elementwise():
    v1, v2 = double(1.0, 0.0, math.inf, 3.0), double(3.0, 0.0, 1.0, math.nan)
    k1, k2 = weights_from_variances(v1, v2)
    assert k1.tolist() == [0.75, 0.5, 0.0, 1.0]
    assert k2.tolist() == [0.25, 0.5, 1.0, 0.0]


def test_mixtures_are_weighted_sums():
    a, b = torch.randn(3, dtype=torch.float64), torch.randn(3, dtype=torch.float64)
    k1, k2 = double(0.25)[0], double(0.75)[0]
    mixed = mix(k1, [a, a, None, None], k2, [b, None, b, None])
    torch.testing.assert_close(mixed[0], 0.25 * a + 0.75 * b)
    torch.testing.assert_close(mixed[1], 0.25 * a)
    torch.testing.assert_close(mixed[2], 0.75 * b)
    assert mixed[3] is None


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_weight_of_zero_silences_what_is_not_finite(bad):
    a, b = double(bad, 1.0), double(2.0, 3.0)
    zero, one = double(0.0)[0], double(1.0)[0]
    assert torch.equal(mix(zero, [a], one, [b])[0], b)
    assert torch.equal(mix(one, [b], zero, [a])[0], b)
    assert torch.equal(mix(double(0.0, 0.5), [a], double(1.0, 0.5), [b])[0], double(2.0, 2.0))
    assert torch.equal(scaled(zero, a), double(0.0, 0.0))
    assert torch.equal(scaled(double(2.0)[0], b), 2 * b)


def test_mixtures_of_sparse_gradients_are_sparse_and_those_of_dense_ones():
    dense = double(0.0, 1.0, 2.0, 0.0)[:, None], double(0.0, 4.0, 0.0, 3.0)[:, None]
    a, b = (x.to_sparse(1) for x in dense)
    k1, k2 = double(0.25)[0], double(0.75)[0]
    pairs = [(a, a, None, a, dense[0]), (b, None, b, dense[1], b)]
    mixed = mix(k1, pairs[0], k2, pairs[1])
    assert [x.is_sparse for x in mixed] == [True, True, True, False, False]
    expected = 0.25 * dense[0] + 0.75 * dense[1]
    for found, of_pair in zip(
        mixed, [expected, 0.25 * dense[0], 0.75 * dense[1], expected, expected], strict=True
    ):
        assert torch.equal(found.to_dense(), of_pair)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_weight_of_zero_silences_what_is_not_finite_in_sparse_gradients(bad):
    a, b = (x[:, None].to_sparse(1) for x in (double(bad, 1.0, 0.0), double(2.0, 0.0, 3.0)))
    zero, one = double(0.0)[0], double(1.0)[0]
    assert torch.equal(mix(zero, [a], one, [b])[0].to_dense(), b.to_dense())
    assert torch.equal(mix(one, [b], zero, [a])[0].to_dense(), b.to_dense())


def test_a_mixture_keeps_the_dtype_of_the_gradients():
    a = torch.ones(2)
    assert mix(double(0.5)[0], [a], double(0.5)[0], [a])[0].dtype == torch.float32
    assert scaled(double(0.5)[0], a).dtype == torch.float32
