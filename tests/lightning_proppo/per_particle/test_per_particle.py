"""Variances of per-particle gradients, against gradients taken particle by particle."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Independent, Normal
from torch.func import functional_call, grad, vmap
from torch.nn import functional

from lightning_proppo.engine.graph import vector_jacobian_product
from lightning_proppo.per_particle import (
    Answers,
    contributions,
    find_parameter_uses,
    per_particle_variance,
)

from .one_by_one import gradients_one_by_one, summed_squares

P = 7  # unlike every other size below, but where a test says otherwise

Graph = tuple[list[Tensor], list[Tensor]]


def rand(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64)


def leaf(*shape: int) -> Tensor:
    return rand(*shape).requires_grad_()


def explicit(outputs: Sequence[Tensor], cotangents: Sequence[Tensor], parameters) -> Tensor:
    return summed_squares(gradients_one_by_one(outputs, cotangents, parameters).double())


def compare(outputs: list[Tensor], parameters: list[Tensor], tolerance: float = 1e-9) -> None:
    cotangents = [torch.randn_like(o) for o in outputs]
    expected = explicit(outputs, cotangents, parameters)
    found = per_particle_variance(outputs, cotangents, parameters)
    assert found.dtype == torch.float64
    assert found.shape == ()
    torch.testing.assert_close(found, expected.double(), rtol=tolerance, atol=0.0)


# Graphs that have a rule. Each returns outputs and parameters.


def two_layers() -> Graph:
    net = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2, bias=False)).double()
    return [net(rand(P, 3))], list(net.parameters())


def layers_on_a_leaf() -> Graph:
    net = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 4), nn.SiLU()).double()
    head = nn.Linear(4, 4).double()
    mean, log_std = head(net(leaf(P, 3))).chunk(2, dim=-1)
    return [mean * log_std.exp()], [*net.parameters(), *head.parameters()]


def scalar_times_constant() -> Graph:
    w = leaf()
    return [w * rand(P, 3)], [w]


def scalar_times_leaf() -> Graph:
    w = leaf()
    return [(w * leaf(P, 3)).tanh()], [w]


def one_element_and_flat_batch() -> Graph:
    w = leaf(1)
    return [w * rand(P) + w], [w]


def rbf(centre_shape: tuple[int, ...]) -> Graph:
    centres, log_scales, weights = leaf(*centre_shape), leaf(3), leaf(5, 2)
    x = leaf(P, 3)
    scaled = (x.unsqueeze(1) - centres) / log_scales.exp()
    features = torch.exp(-0.5 * scaled.square().sum(-1))
    return [features @ weights], [centres, log_scales, weights]


def same_layer_twice() -> Graph:
    layer = nn.Linear(3, 3).double()
    return [layer(torch.tanh(layer(rand(P, 3))))], list(layer.parameters())


def same_layer_three_times_without_bias() -> Graph:
    layer = nn.Linear(3, 3, bias=False).double()
    x = rand(P, 3)
    return [layer(layer(x).tanh()).tanh() + layer(x)], list(layer.parameters())


def used_in_two_ways() -> Graph:
    w = leaf(3)
    return [rand(P, 3) * w + rand(P, 3) * w.exp()], [w]


def matrix_used_both_ways() -> Graph:
    w = leaf(3, 3)
    return [rand(P, 3) @ w + rand(P, 3) @ w.t()], [w]


def matrix_used_plain_and_transformed() -> Graph:
    w = leaf(3, 2)
    return [rand(P, 3) @ w + rand(P, 3) @ w.tanh()], [w]


def permuted_differently() -> Graph:
    w = leaf(2, 2, 2)
    return [rand(P, 2, 2, 2) * w.permute(0, 2, 1) + rand(P, 2, 2, 2) * w.permute(1, 0, 2)], [w]


def broadcast_bias() -> Graph:
    b, c = leaf(3), leaf(1, 2, 1)
    return [(rand(P, 2, 3) + b) * rand(P, 2, 3) - c], [b, c]


def divided_by_parameter() -> Graph:
    w, v = leaf(3), leaf()
    return [rand(P, 3) / w, v / rand(P, 3)], [w, v]


def subtracted_from_parameter() -> Graph:
    w, v = leaf(3), leaf(3)
    return [(w - leaf(P, 3)) * (1.0 - v) * 2.0, torch.sub(rand(P, 3), w, alpha=3.0)], [w, v]


def weight_norm_like() -> Graph:
    v, g = leaf(4, 3), leaf(4, 1)
    scale = (v * v).tanh() * g
    return [rand(P, 3) @ (v * scale).t()], [v, g]


def expanded_parameter() -> Graph:
    w, v = leaf(3), leaf(1, 2)
    return [w.expand(P, 3) * rand(P, 3), v.exp().expand(P, 2).sin()], [w, v]


def vector_product() -> Graph:
    w = leaf(3)
    return [(rand(P, 3) @ w).sin()], [w]


def addmm_with_factors() -> Graph:
    b, w = leaf(2), leaf(3, 2)
    return [torch.addmm(b, rand(P, 3), w, beta=0.5, alpha=2.0)], [b, w]


def normal_head() -> Graph:
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    raw_scale = leaf(2)
    dist = Normal(net(leaf(P, 3)), functional.softplus(raw_scale))
    sample = dist.rsample()
    return [dist.log_prob(sample.detach()), sample], [*net.parameters(), raw_scale]


def normal_head_summed() -> Graph:
    loc, log_scale = leaf(), leaf()
    dist = Independent(Normal(loc * leaf(P, 2), log_scale.exp()), 1)
    sample = dist.rsample()
    return [dist.log_prob(sample.detach()), sample], [loc, log_scale]


def gru_cell() -> Graph:
    cell = nn.GRUCell(3, 4).double()
    return [cell(rand(P, 3), leaf(P, 4))], list(cell.parameters())


def as_long_as_the_batch() -> Graph:
    w = leaf(P, 1)
    return [w.exp() * rand(P, 3)], [w]


def a_leaf_output() -> Graph:
    w, v = leaf(P, 3), leaf(3)
    return [w, w.detach() * v], [w, v]


def repeated_parameter() -> Graph:
    w, v = leaf(3), leaf(1, 2)
    return [w.repeat(P, 2).sin(), v.repeat(2 * P, 2).reshape(P, 2, 4).cos()], [w, v]


def elementwise_of_two() -> Graph:
    x, w, v, u = rand(P, 3), leaf(3), leaf(1, 3), leaf(3)
    chosen = torch.where(x > 0, w, x * 2) + torch.maximum(v, x) - torch.minimum(x, u)
    same = torch.maximum(x.detach() * 0 + 1.5, (w / w.detach()) * 1.5)
    return [chosen, torch.addcmul(w, x, v, value=0.5) + torch.rsub(w, x, alpha=2) + same], [w, v, u]


def around_a_shared_axis() -> Graph:
    """Particles in the middle, at the end, and sharing an axis with two others."""
    layer, w = nn.Linear(3, 4).double(), leaf(5, 2)
    x = rand(2, P, 5, 3).transpose(0, 1).reshape(P, 2, 5, 3)
    hidden = layer(x.permute(1, 0, 2, 3).reshape(2 * P * 5, 3)).tanh()  # [2 * P * 5, 4]
    apart = hidden.reshape(2, P, 5, 4).permute(1, 3, 0, 2) @ w  # [P, 4, 2, 2]
    last = (rand(3, P, 2) * w[0])[torch.tensor([0, 2, 2, 1])].repeat(1, 2, 2)  # [4, 2 * P, 4]
    last = last.reshape(4, 2, P, 4).sum(1).movedim(1, 0)
    return [apart.flatten(1).cumsum(1), last], [*layer.parameters(), w]


def many_axes() -> Graph:
    w = leaf(3, 4)
    y = (rand(P, 2, 3) @ w).softmax(-1)
    first, second = y.split([1, 3], dim=2)
    stacked = torch.stack([y.select(2, 1), y[:, :, 2], y.amax(-1)], dim=0).transpose(0, 1)
    return [
        torch.cat([first.squeeze(2), second.sum(-1), stacked.flatten(1), y.flip(1).std(2)], 1),
        y.index_select(2, torch.tensor([0, 3, 0])).unfold(2, 2, 1).flatten(1),
        y[:, [0, 1, 1]].gather(2, torch.randint(0, 4, (P, 3, 2))).logsumexp((1, 2)),
        torch.nn.functional.pad(y.unbind(1)[1], (1, 2)).repeat(1, 2) * y.norm(dim=(1, 2))[:, None],
    ], [w]


def a_slice_of_all() -> Graph:
    w = leaf(3, 4)
    return [(rand(P, 3) @ w).exp().narrow(0, 0, P)[:, 1:3]], [w]


def parameter_of_some_outputs() -> Graph:
    w, v, unused = leaf(3), leaf(3), leaf(2)
    return [rand(P, 3) * w, rand(P, 3) * v], [w, v, unused]


WITH_RULE: list[Callable[[], Graph]] = [
    two_layers,
    layers_on_a_leaf,
    scalar_times_constant,
    scalar_times_leaf,
    one_element_and_flat_batch,
    a_slice_of_all,
    lambda: rbf((5, 3)),
    lambda: rbf((1, 5, 3)),
    same_layer_twice,
    same_layer_three_times_without_bias,
    used_in_two_ways,
    matrix_used_both_ways,
    matrix_used_plain_and_transformed,
    permuted_differently,
    broadcast_bias,
    divided_by_parameter,
    subtracted_from_parameter,
    weight_norm_like,
    expanded_parameter,
    vector_product,
    addmm_with_factors,
    normal_head,
    normal_head_summed,
    gru_cell,
    as_long_as_the_batch,
    a_leaf_output,
    repeated_parameter,
    elementwise_of_two,
    around_a_shared_axis,
    many_axes,
    parameter_of_some_outputs,
]


@pytest.mark.parametrize("make", WITH_RULE, ids=lambda make: make.__name__)
def test_equals_explicit_gradients_without_fallback(make: Callable[[], Graph]) -> None:
    outputs, parameters = make()
    assert find_parameter_uses(outputs, parameters, P).unsupported is None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        compare(outputs, parameters)


def test_equals_per_sample_gradients_of_torch_func() -> None:
    net = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2)).double()
    x, cotangent = rand(P, 3), rand(P, 2)

    def one(parameters: dict[str, Tensor], row: Tensor, b: Tensor) -> Tensor:
        return (functional_call(net, parameters, (row.unsqueeze(0),))[0] * b).sum()

    parameters = {name: p.detach() for name, p in net.named_parameters()}
    each = vmap(grad(one), in_dims=(None, 0, 0))(parameters, x, cotangent)
    expected = sum((g - g.mean(0)).square().sum() for g in each.values())
    found = per_particle_variance([net(x)], [cotangent], list(net.parameters()))
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=0.0)


@pytest.mark.parametrize("which", [0, 1])
def test_each_output_alone_as_total_propagation_asks(which: int) -> None:
    outputs, parameters = normal_head()
    uses = find_parameter_uses(outputs, parameters, P)
    pulled, cotangent = outputs[which], rand(P, 2)
    answers = vector_jacobian_product([pulled], [cotangent], [*parameters, *uses.edges])
    count = len(parameters)
    found = uses.variance(answers[count:], answers[:count], [pulled], [cotangent])
    expected = explicit([pulled], [cotangent], parameters)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=0.0)


def test_some_of_the_parameters() -> None:
    net = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2)).double()
    output = net(leaf(P, 3))
    compare([output], list(net[2].parameters()))
    compare([output], list(net[0].parameters()))
    compare([output], [net[0].weight])


def test_two_particles() -> None:
    layer = nn.Linear(3, 4).double()
    compare([layer(rand(2, 3)).tanh()], list(layer.parameters()))


def test_equal_particles_have_no_variance() -> None:
    layer = nn.Linear(3, 4).double()
    output = layer(rand(1, 3).expand(P, 3))
    cotangents = [torch.ones_like(output)]
    scale = output.new_tensor(float(P))
    assert per_particle_variance([output], cotangents, list(layer.parameters())) < 1e-12 * scale


def test_single_precision() -> None:
    net = nn.Sequential(nn.Linear(3, 16), nn.Tanh(), nn.Linear(16, 2))
    outputs = [net(torch.randn(64, 3))]
    cotangents = [torch.randn(64, 2)]
    found = per_particle_variance(outputs, cotangents, list(net.parameters()))
    expected = explicit(outputs, cotangents, list(net.parameters()))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=0.0)


def test_mixed_precision_of_parameter_and_batch() -> None:
    w = torch.randn(3).requires_grad_()
    compare([rand(P, 3) * w.exp() + w], [w], 1e-6)


def test_nothing_is_reached() -> None:
    w = leaf(3)
    assert per_particle_variance([leaf(P, 3).sin()], [rand(P, 3)], [w]) == 0
    assert per_particle_variance([leaf(P, 3).sin()], [rand(P, 3)], []) == 0


# Graphs without a rule: exact all the same, with a word about it, once.


class Times(torch.autograd.Function):
    """A product whose backward pass cannot be batched."""

    @staticmethod
    def forward(ctx, x: Tensor, w: Tensor) -> Tensor:
        ctx.save_for_backward(x, w)
        return x * w

    @staticmethod
    def backward(ctx, incoming: Tensor) -> tuple[Tensor, Tensor]:
        x, w = ctx.saved_tensors
        assert float(incoming.sum()) == float(incoming.sum())
        return incoming * w, (incoming * x).sum(0)


def bilinear() -> Graph:
    module = nn.Bilinear(3, 3, 2).double()
    return [module(rand(P, 3), rand(P, 3))], list(module.parameters())


def embedding_bag() -> Graph:
    module = nn.EmbeddingBag(5, 2, mode="sum").double()
    return [module(torch.randint(0, 5, (P, 4))).sin()], list(module.parameters())


def embedding_scaled_by_frequency() -> Graph:
    module = nn.Embedding(5, 2, scale_grad_by_freq=True).double()
    return [module(torch.randint(0, 5, (P, 4))).sin()], list(module.parameters())


def fused_lstm() -> Graph:
    module = nn.LSTM(3, 2, batch_first=True)  # in double precision it is taken apart
    return [module(torch.randn(P, 4, 3))[0]], list(module.parameters())


def batch_statistics() -> Graph:
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)).double()
    return [net(rand(P, 3))], list(net.parameters())


def particles_across_two_axes() -> Graph:
    weights = leaf(2, 3, 4)
    members = torch.bmm(rand(6, 3).reshape(2, 3, 3), weights)
    return [members.reshape(6, 4).tanh()], [weights]


def permuted_particles() -> Graph:
    layer = nn.Linear(3, 3).double()
    hidden = layer(rand(P, 3)).tanh()
    return [hidden * hidden[torch.randperm(P)]], list(layer.parameters())


def exchanged_pairs() -> Graph:
    w = leaf(3)
    hidden = (rand(6, 3) * w).reshape(3, 2, 3)
    return [(hidden * hidden.flip(1)).reshape(6, 3)], [w]


def sorted_particles() -> Graph:
    w = leaf(3)
    return [(rand(P, 3) * w).cumsum(0)], [w]


def two_ways_round() -> Graph:
    w = leaf(P)
    hidden = rand(P, P) * w
    return [hidden.sin() + hidden.T.cos()], [w]


def some_rows_of_more() -> Graph:
    w = leaf(3)
    return [(rand(2 * P, 3) * w).gather(1, torch.randint(0, 3, (P, 3)))], [w]


def tiled_unevenly() -> Graph:
    w = leaf(2)
    return [w.exp().repeat(P).reshape(P, 2) * rand(P, 2)], [w]


def chosen_by_a_mask() -> Graph:
    w = leaf(2 * P)
    mask = torch.arange(2 * P) % 2 == 0
    return [w[mask].unsqueeze(1) * rand(P, 3)], [w]


def in_place_on_a_view() -> Graph:
    w = leaf(3)
    x = rand(P, 3)
    x[1:3] = rand(2, 3) * w
    return [x], [w]


def custom_function() -> Graph:
    w = leaf(3)
    return [Times.apply(rand(P, 3), w)], [w]


@pytest.mark.parametrize(
    "make",
    [
        bilinear,
        embedding_bag,
        embedding_scaled_by_frequency,
        fused_lstm,
        batch_statistics,
        particles_across_two_axes,
        permuted_particles,
        exchanged_pairs,
        sorted_particles,
        two_ways_round,
        some_rows_of_more,
        tiled_unevenly,
        chosen_by_a_mask,
        in_place_on_a_view,
        custom_function,
    ],
)
def test_fallback_is_exact_and_says_so_once(make: Callable[[], Graph]) -> None:
    outputs, parameters = make()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(2):
            compare(outputs, parameters, 1e-9 if outputs[0].dtype == torch.float64 else 1e-4)
    assert ["there is no rule" in str(warning.message) for warning in caught] == [True]


def test_fallback_in_portions(monkeypatch: pytest.MonkeyPatch) -> None:
    outputs, parameters = batch_statistics()
    monkeypatch.setattr(contributions, "PORTION", 160)
    with pytest.warns(UserWarning, match="there is no rule"):
        compare(outputs, parameters)


def several_kinds_of_entries() -> Graph:
    """Two outputs that each reach some of the entries, of every kind."""
    table, conv = nn.Embedding(5, 3).double(), nn.Conv1d(1, 2, 2).double()
    w, v, first, second = leaf(3), leaf(3), nn.Linear(3, 2).double(), nn.Linear(3, 2).double()
    shared = table(torch.randint(0, 5, (P, 2))).sum(1) * v.exp()
    left = first(shared) + first(rand(P, 3)) * w.sum()
    right = second(shared * w) + conv(shared.unsqueeze(1)).sum(2) + w[:2] * table.weight[0, 0]
    parameters = [w, v, *first.parameters(), *second.parameters()]
    return [left, right], [*parameters, *table.parameters(), *conv.parameters(), leaf(2)]


@pytest.mark.parametrize("make", [normal_head, several_kinds_of_entries, batch_statistics])
@pytest.mark.filterwarnings("ignore:there is no rule")
def test_covariance_where_each_pull_back_reaches_some_entries(make) -> None:
    outputs, parameters = make()
    outputs = [outputs[0], outputs[-1].cos()] if len(outputs) > 1 else [*outputs, rand(P, 2)]
    uses = find_parameter_uses(outputs, parameters, P)
    sets, gradients = [], []
    for output in outputs:
        b = rand(*output.shape)
        answers = vector_jacobian_product([output], [b], [*parameters, *uses.edges])
        size = len(parameters)
        sets.append(Answers(answers[size:], answers[:size], [output], [b]))
        if output.requires_grad:
            gradients.append(gradients_one_by_one([output], [b], parameters))
        else:
            gradients.append(torch.zeros_like(gradients[0]))
    first, second = gradients
    expected = summed_squares(first), summed_squares(second), summed_squares(first, second)
    torch.testing.assert_close(
        tuple(uses.moments(*sets, with_covariance=True)), expected, rtol=1e-9, atol=1e-12
    )
    swapped = uses.moments(*reversed(sets), with_covariance=True)
    torch.testing.assert_close(swapped.covariance, expected[2], rtol=1e-9, atol=1e-12)


# As many particles as features, inducing points or whatever else: shapes do not tell them apart.


def ambiguous_table_of_points() -> Graph:
    scales, table = leaf(3), rand(P, 3)
    apart = (leaf(P, 3) / scales.exp()).unsqueeze(1) - (table / scales.exp()).unsqueeze(0)
    return [apart.square().sum(-1)], [scales]


def ambiguous_table_summed_away() -> Graph:
    w, table = leaf(3), rand(P, 3)
    return [rand(P, 3) * (table * w).sum(0)], [w]


def ambiguous_masked_weight() -> Graph:
    w, mask = leaf(4), rand(P, 4)
    return [rand(P, P) @ (mask * w)], [w]


def ambiguous_expanded_weight() -> Graph:
    w = leaf(4)
    return [rand(P, P) @ w.expand(P, 4)], [w]


def ambiguous_weight_product() -> Graph:
    table, w = rand(P, 3), leaf(3, 2)
    return [rand(P, P) @ (table @ w)], [w]


def ambiguous_transposed_bias() -> Graph:
    b = leaf(P)
    return [(leaf(P, P).t() + b).t().sum(1)], [b]


def ambiguous_matrices() -> Graph:
    w, v = leaf(P, P), leaf(P)
    return [(rand(P, P) @ w.t() + v) * v + rand(P, P) @ w], [w, v]


def ambiguous_network() -> Graph:
    net = nn.Sequential(nn.Linear(P, P), nn.Tanh(), nn.Linear(P, P)).double()
    return [net(leaf(P, P))], list(net.parameters())


def ambiguous_scale() -> Graph:
    raw = leaf(P)
    dist = Normal(rand(P, P), functional.softplus(raw))
    sample = dist.rsample()
    return [dist.log_prob(sample.detach()), sample], [raw]


def mixed_particles() -> Graph:
    hidden = torch.tanh(rand(P, 3) * (w := leaf(3)))
    return [hidden - hidden.mean(0)], [w]


@pytest.mark.parametrize(
    "make",
    [
        ambiguous_table_of_points,
        ambiguous_table_summed_away,
        ambiguous_masked_weight,
        ambiguous_expanded_weight,
        ambiguous_weight_product,
        ambiguous_transposed_bias,
        ambiguous_matrices,
        ambiguous_network,
        ambiguous_scale,
        mixed_particles,
    ],
)
@pytest.mark.filterwarnings("ignore:there is no rule")
def test_never_wrong_where_shapes_are_ambiguous(make: Callable[[], Graph]) -> None:
    compare(*make())


@pytest.mark.parametrize("make", [ambiguous_network, ambiguous_scale])
def test_ordinary_layers_keep_their_rules_where_shapes_are_ambiguous(make) -> None:
    outputs, parameters = make()
    assert find_parameter_uses(outputs, parameters, P).unsupported is None


def test_unknown_operations_that_keep_rows_keep_the_rules() -> None:
    w = leaf(3)
    output = torch.linalg.vector_norm(rand(P, 3) * w, dim=1)
    state = torch.random.get_rng_state()
    assert find_parameter_uses([output], [w], P).unsupported is None
    assert torch.equal(torch.random.get_rng_state(), state)
    compare([output], [w])


@pytest.mark.parametrize("make", [two_layers, weight_norm_like, batch_statistics])
@pytest.mark.filterwarnings("ignore:there is no rule")
def test_hooks_on_parameters_do_not_fire(make: Callable[[], Graph]) -> None:
    outputs, parameters = make()
    fired = []
    for parameter in parameters:
        parameter.register_hook(fired.append)
    per_particle_variance(outputs, [torch.ones_like(o) for o in outputs], parameters)
    assert fired == []
    sum(o.sum() for o in outputs).backward()
    assert len(fired) == len(parameters)


def test_several_positions_meet_each_other() -> None:
    """Squares of sums of outer products, by positions and formed."""
    left, right = torch.randn(5, 3, 40).double(), torch.randn(5, 3, 50).double()
    part = contributions.OuterProducts(left, right)
    (found,) = contributions.outer_squares([[part]])
    torch.testing.assert_close(found, (left.mT @ right).square().sum())
