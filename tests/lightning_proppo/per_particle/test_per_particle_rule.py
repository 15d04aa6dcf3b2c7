"""Rules that users add, and what the plans that are kept depend on."""

from __future__ import annotations

import gc
import warnings
import weakref
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal

import lightning_proppo
from lightning_proppo import PropagationManager, per_particle_rule
from lightning_proppo.engine.graph import vector_jacobian_product
from lightning_proppo.per_particle import (
    EmbeddingRows,
    OuterProducts,
    contributions,
    find_parameter_uses,
    per_particle_variance,
    plans,
    registry,
)

from ...largest_tensor import LargestTensor
from .one_by_one import gradients_one_by_one, summed_squares

P = 6


@pytest.fixture(autouse=True)
def _own_rules() -> Iterator[None]:
    before = dict(registry.RULES)
    yield
    registry.RULES.clear()
    registry.RULES.update(before)
    plans.make_plan.cache_clear()


def rand(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64)


def leaf(*shape: int) -> Tensor:
    return rand(*shape).requires_grad_()


def explicit(output: Tensor, b: Tensor, parameters: list[Tensor]) -> Tensor:
    return summed_squares(gradients_one_by_one([output], [b], parameters))


def compare(output: Tensor, parameters: list[Tensor]) -> None:
    b = torch.randn_like(output)
    found = per_particle_variance([output], [b], parameters)
    torch.testing.assert_close(found, explicit(output, b, parameters), rtol=1e-9, atol=0.0)


class Scale(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: float, w: Tensor) -> Tensor:
        ctx.save_for_backward(x, w)
        ctx.factor = factor
        return x * w * factor

    @staticmethod
    def backward(ctx: Any, b: Tensor) -> tuple[Tensor, None, Tensor]:
        x, w = ctx.saved_tensors
        return b * w * ctx.factor, None, (b * x).sum(0) * ctx.factor


class Product(torch.autograd.Function):
    """x [P, m], w [m, n]."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor) -> Tensor:
        ctx.save_for_backward(x, w)
        return x @ w

    @staticmethod
    def backward(ctx: Any, b: Tensor) -> tuple[Tensor, Tensor]:
        x, w = ctx.saved_tensors
        return b @ w.T, x.T @ b


def scale_rule(function: Any, slot: int, b: Tensor, particles: int) -> Tensor:
    x, _ = function.saved_tensors
    assert (slot, particles) == (1, P)
    return b * x * function.factor


def product_rule(function: Any, slot: int, b: Tensor, particles: int) -> OuterProducts:
    return OuterProducts(function.saved_tensors[0], b)


def unchanged(function: Any, slot: int, b: Tensor, particles: int) -> Tensor:
    return b


@pytest.mark.parametrize("key", [Scale, "ScaleBackward"])
def test_a_rule_replaces_the_fallback(key: Any) -> None:
    w, layer = leaf(3), leaf(3, 3)
    output = Scale.apply((rand(P, 3) @ layer).tanh(), 2.0, w)
    with pytest.warns(UserWarning, match="through ScaleBackward.*per_particle_rule"):
        compare(output, [layer, w])
    assert per_particle_rule(key, rows=[0])(scale_rule) is scale_rule
    assert find_parameter_uses([output], [layer, w], P).unsupported is None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        compare(output, [layer, w])
        compare(Scale.apply(output, 0.3, w), [layer, w])


def test_a_rule_for_outer_products_beside_a_built_in_one() -> None:
    per_particle_rule(Product, rows=(0,))(product_rule)
    w = leaf(3, 3)
    output = Product.apply((Product.apply(rand(P, 3), w) @ w).tanh(), w)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        compare(output, [w])


def test_a_rule_for_rows_of_a_table() -> None:
    class Pick(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, table: Tensor, index: Tensor) -> Tensor:
            ctx.save_for_backward(index)
            ctx.rows = len(table)
            return table[index].sum(1)

        @staticmethod
        def backward(ctx: Any, b: Tensor) -> tuple[Tensor, None]:
            (index,) = ctx.saved_tensors
            every = b.unsqueeze(1).expand(*index.shape, -1).flatten(0, 1)
            return b.new_zeros(ctx.rows, b.shape[1]).index_add(0, index.flatten(), every), None

    @per_particle_rule(Pick)
    def pick(function: Any, slot: int, b: Tensor, particles: int) -> EmbeddingRows:
        (index,) = function.saved_tensors
        return EmbeddingRows(index, b.unsqueeze(1).expand(*index.shape, -1), function.rows)

    table = leaf(4, 2)
    compare(Pick.apply(table, torch.randint(0, 4, (P, 3))).sin(), [table])


def test_rules_of_a_class_are_not_those_of_another_of_its_name() -> None:
    def other() -> type[torch.autograd.Function]:
        class Scale(torch.autograd.Function):
            @staticmethod
            def forward(ctx: Any, x: Tensor, w: Tensor) -> Tensor:
                ctx.save_for_backward(x, w)
                return x + w

            @staticmethod
            def backward(ctx: Any, b: Tensor) -> tuple[Tensor, Tensor]:
                return b, b.sum(0)

        return Scale

    per_particle_rule(Scale, rows=[0])(scale_rule)
    w = leaf(3)
    output = other().apply(rand(P, 3), w)
    assert output.grad_fn.name() == "ScaleBackward"
    with pytest.warns(UserWarning, match="there is no rule"):
        compare(output, [w])


class Silent(torch.autograd.Function):
    """Has no gradient for its second operand."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor) -> Tensor:
        return x * w

    @staticmethod
    def backward(ctx: Any, b: Tensor) -> tuple[Tensor, None]:
        return b, None


@pytest.mark.parametrize("with_rule", [False, True])
@pytest.mark.filterwarnings("ignore:there is no rule")
def test_no_variance_where_no_gradient_arrives(with_rule: bool) -> None:
    if with_rule:
        per_particle_rule(Silent, rows=[0])(unchanged)
    v, w = leaf(3), leaf(3)
    b = rand(P, 3)
    first = per_particle_variance([Silent.apply(rand(P, 3) * v, w)], [b], [w])
    second = per_particle_variance([Silent.apply(rand(P, 3) * v, w.exp())], [b], [w])
    assert first == second == 0


def test_a_rule_in_place_of_a_built_in_one() -> None:
    w = leaf(3)
    output = (rand(P, 3) * w).sin()
    compare(output, [w])
    calls = []

    @per_particle_rule("MulBackward0", rows=[0])
    def multiply(function: Any, slot: int, b: Tensor, particles: int) -> Tensor:
        calls.append(slot)
        return b * function._saved_self

    compare(output, [w])
    assert calls == [1]


def test_a_rule_with_particles_elsewhere_is_not_asked() -> None:
    per_particle_rule(Scale, rows=[0])(scale_rule)
    w = leaf(P)
    output = Scale.apply(rand(3, P), 2.0, w).T
    with pytest.warns(UserWarning, match="there is no rule"):
        compare(output, [w])


@pytest.mark.parametrize("which", [0, 1])
def test_a_rule_is_for_the_first_result(which: int) -> None:
    class Both(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
            ctx.save_for_backward(x, w)
            return x * w, x + w

        @staticmethod
        def backward(ctx: Any, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
            x, w = ctx.saved_tensors
            return a * w + b, (a * x + b).sum(0)

    @per_particle_rule(Both, rows=[0])
    def both(function: Any, slot: int, b: Tensor, particles: int) -> Tensor:
        return b * function.saved_tensors[0]

    w = leaf(3)
    results = Both.apply(rand(P, 3), w)
    output = results[0].sin() if which == 0 else results[0] * results[1]
    found = find_parameter_uses([output], [w], P).unsupported
    assert found == (None if which == 0 else "BothBackward")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        compare(output, [w])


def test_total_propagation_with_a_rule() -> None:
    def weight(target: Any) -> Tensor:
        torch.manual_seed(0)
        w = torch.ones(3, dtype=torch.float64, requires_grad=True)
        manager = PropagationManager("TP")
        x = rand(P, 3)
        for _ in range(2):
            mean = Scale.apply(x.sin(), 0.5, w) if target is None else x.sin() * target * 0.5
            options = {"ivw_target": w} if target is None else {"ivw_target": target}
            x = manager.sample(Normal(mean, 0.3), **options)
        manager.loss((x**2).sum(1)).backward()
        return torch.stack(manager.statistics["lr_weight"])

    per_particle_rule(Scale, rows=[0])(scale_rule)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = weight(None)
    w = torch.ones(3, dtype=torch.float64, requires_grad=True)
    expected = weight(lightning_proppo.expand(w, P))
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0.0)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda b: b.sum(0),
        lambda b: b[:, :2],
        lambda b: None,
        lambda b: OuterProducts(b, b),
        lambda b: OuterProducts(b[:2], b[:2, :1]),
        lambda b: [b],
    ],
)
def test_contributions_of_a_wrong_shape_are_refused(wrong: Any) -> None:
    per_particle_rule(Scale, rows=[0])(lambda function, slot, b, particles: wrong(b))
    w = leaf(3)
    output = Scale.apply(rand(P, 3), 2.0, w)
    with pytest.raises(ValueError, match=r"rule of ScaleBackward .* \[6, 3\]"):
        per_particle_variance([output], [torch.ones_like(output)], [w])


@pytest.mark.parametrize("left", [(P,), (P, 2, 2, 2, 2)])
def test_outer_products_of_a_wrong_shape(left: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="left must be"):
        OuterProducts(rand(*left), rand(P, 2))


def test_outer_products_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match="same particles, groups and positions"):
        OuterProducts(rand(P, 2, 3), rand(P, 3, 3))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((3,), "function must be"),
        ((Tensor,), "function must be"),
        ((Scale, 0), "rows must be"),
        ((Scale, ["x"]), "rows must be"),
        ((Scale, [-1]), "rows must be"),
    ],
)
def test_wrong_arguments_are_refused(arguments: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        per_particle_rule(*arguments)


def test_a_rule_must_be_a_function() -> None:
    with pytest.raises(TypeError, match="a rule must be a function"):
        per_particle_rule(Scale)(3)  # type: ignore[type-var]


# Plans are kept by structure.


def planned() -> tuple[int, int]:
    info = plans.make_plan.cache_info()
    return info.misses, info.hits


def test_a_rollouts_steps_share_one_plan() -> None:
    layer = torch.nn.Linear(3, 3)
    manager = PropagationManager("TP")
    x = torch.randn(P, 3)
    plans.make_plan.cache_clear()
    for _ in range(10):
        x = manager.sample(Normal(x + layer(x).tanh(), 0.1))
    manager.loss(x.square().sum(1)).backward()
    assert planned() == (2, 8)  # the first step starts from a constant


def test_equal_structure_with_other_settings_has_another_plan() -> None:
    w = leaf(P, P)
    x = rand(P, P, P)
    for dims in [(0, 1, 2), (0, 2, 1), (1, 0, 2), (2, 1, 0), (1, 2, 0)]:
        # The same functions and shapes throughout.
        output = (x * w.permute(1, 0)).permute(*dims).sin()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            compare(output.flatten(1), [w])
    for axis in (0, 1):
        hidden = (rand(P, P) * w).softmax(axis)
        found = find_parameter_uses([hidden], [w], P).unsupported
        assert found == (None if axis == 1 else "SoftmaxBackward0")


def test_plans_tell_parameters_apart() -> None:
    w, v = leaf(3), leaf(3)
    output = rand(P, 3) * w + rand(P, 3) * v
    for parameters in ([w, v], [v], [w], [v, w]):
        compare(output, parameters)


class Reorder(torch.autograd.Function):
    """No rule, and nothing in the graph's structure that tells its order."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, order: list[int]) -> Tensor:
        ctx.order = order
        return x[order]

    @staticmethod
    def backward(ctx: Any, b: Tensor) -> tuple[Tensor, None]:
        return torch.zeros_like(b).index_add(0, torch.tensor(ctx.order), b), None


def test_what_depends_on_values_is_tested_each_time() -> None:
    w, x = leaf(3), rand(P, 3)
    for order in ([0, 1, 2, 3, 4, 5], [0, 1, 2, 3, 5, 4], [0, 1, 2, 3, 4, 5]):
        output = Reorder.apply(x * w, order) * rand(P, 3)
        kept = order == sorted(order)
        found = find_parameter_uses([output], [w], P).unsupported
        assert found == (None if kept else "ReorderBackward")


@pytest.mark.parametrize("pair", [(0, 1), (2, 3), (1, 4), (4, 1), (5, 0)])
def test_one_particle_that_reaches_another_is_found(pair: tuple[int, int]) -> None:
    class Leak(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x + 0

        @staticmethod
        def backward(ctx: Any, b: Tensor) -> Tensor:
            b = b.clone()
            b[pair[0]] += 1e-3 * b[pair[1]]
            return b

    w = leaf(3)
    assert find_parameter_uses([Leak.apply(rand(P, 3) * w)], [w], P).unsupported == "LeakBackward"


def test_nothing_of_a_graph_is_kept() -> None:
    w = leaf(3)
    x = rand(P, 3)
    kept = weakref.ref(x)
    output = x * w
    per_particle_variance([output], [torch.ones_like(output)], [w])
    del x, output
    gc.collect()
    assert kept() is None


# Memory.


def test_no_more_than_a_portion_of_the_particles_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contributions, "PORTION", 20_000)
    module = torch.nn.Conv2d(2, 4, 3, padding=1)
    output = module(torch.randn(200, 2, 8, 8))
    b = torch.randn_like(output)
    parameters = list(module.parameters())
    found = find_parameter_uses([output], parameters, 200)
    answers = vector_jacobian_product([output], [b], [*parameters, *found.edges])
    with LargestTensor() as watch:
        variance = found.variance(answers[2:], answers[:2], [output], [b])
    expected = explicit(output, b, parameters)
    torch.testing.assert_close(variance.float(), expected, rtol=1e-4, atol=0.0)
    # The convolution's windows of all particles would take 200 * 64 * 18 numbers.
    assert watch.elements <= output.numel() < 200 * 64 * 18 / 4
