"""The contract of every kind of module with rules: exact variances, no fallback, right weights."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import MultivariateNormal, Normal
from torch.func import functional_call, grad, vmap

from lightning_proppo import PropagationManager, expand
from lightning_proppo.engine.graph import vector_jacobian_product
from lightning_proppo.per_particle import (
    Answers,
    contributions,
    find_parameter_uses,
)
from lightning_proppo.propagators import TPBase
from proppo_agents.parts import Spaces
from proppo_agents.policies import RBFPolicy

from .one_by_one import gradients_one_by_one, summed_squares

P = 7


def rand(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64)


class Shaped(nn.Module):
    """A module on flat inputs [P, D], to have one signature for all."""

    def __init__(self, module: nn.Module, *shape: int) -> None:
        super().__init__()
        self.module, self.shape = module, shape

    def forward(self, x: Tensor) -> Tensor:
        out = self.module(x.reshape(x.shape[0], *self.shape))
        return (out[0] if isinstance(out, tuple) else out).flatten(1)


class LookUp(nn.Module):
    """Rows of a table, chosen by the input's numbers."""

    def __init__(self, module: nn.Module, *shape: int, rows: int = 5) -> None:
        super().__init__()
        self.module, self.shape, self.rows = module, shape, rows

    def forward(self, x: Tensor) -> Tensor:
        index = (x.detach() * 10).floor().long().remainder(self.rows)
        index = index.flatten(1)[:, : max(1, torch.Size(self.shape).numel())]
        return self.module(index.reshape(x.shape[0], *self.shape)).flatten(1)


class Indexed(nn.Module):
    """As an embedding, but by indexing a parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(5, 2))

    def forward(self, index: Tensor) -> Tensor:
        return self.weight[index - 5]


class Cell(nn.Module):
    """A recurrent cell over a few steps of its input, [P, T * D]."""

    def __init__(self, cell: nn.Module, steps: int, state: Tensor | None = None) -> None:
        super().__init__()
        self.cell, self.steps = cell, steps
        self.start = None if state is None else nn.Parameter(state)

    def forward(self, x: Tensor) -> Tensor:
        state: Any = None
        if self.start is not None:
            state = self.start.expand(x.shape[0], -1)
        for part in x.chunk(self.steps, dim=1):
            state = self.cell(part, state)
        return state[0] if isinstance(state, tuple) else state


class RecurrentPolicy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encode = nn.Sequential(nn.Linear(2, 4), nn.LayerNorm(4), nn.SiLU())
        self.cell = nn.GRUCell(4, 5)
        self.decode = nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        state = None
        for part in x.chunk(3, dim=1):
            state = self.cell(self.encode(part), state)
        return torch.tanh(self.decode(state))


class Tied(nn.Module):
    """Embeds and decodes with one table."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(5, 3)

    def forward(self, index: Tensor) -> Tensor:
        return torch.nn.functional.linear(self.embed(index).tanh(), self.embed.weight)


class PlainAndTransformed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 6))

    def forward(self, x: Tensor) -> Tensor:
        return (x @ self.weight.T).sin() @ self.weight.softmax(dim=0)


class Attention(nn.Module):
    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2, **options)

    def forward(self, x: Tensor) -> Tensor:
        if not self.attention.batch_first:
            x = x.transpose(0, 1)
        out = self.attention(x, x, x, need_weights=False)[0]
        return out if self.attention.batch_first else out.transpose(0, 1)


class Ensemble(nn.Module):
    """Members' layers side by side, [E, P, D]; the action is their mean."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Parameter(torch.randn(4, 6, 3))
        self.bias = nn.Parameter(torch.randn(4, 1, 3))
        self.second = nn.Parameter(torch.randn(4, 3, 2))

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.baddbmm(self.bias, x.expand(4, *x.shape), self.first).tanh()
        return torch.bmm(hidden, self.second).mean(0)


class SequenceFirst(nn.Module):
    """A layer on [T, P, D]."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.transpose(0, 1).contiguous()).tanh().transpose(0, 1)


class Gaussian(nn.Module):
    """The log-density of a fixed point under a multivariate normal distribution."""

    def __init__(self, covariance: str) -> None:
        super().__init__()
        self.loc = nn.Linear(6, 3)
        self.covariance = covariance
        if covariance == "of each":
            self.tril = nn.Linear(6, 9)
        else:
            self.tril = nn.Parameter(torch.eye(3) + 0.2 * torch.ones(3, 3).tril())

    def forward(self, x: Tensor) -> Tensor:
        if self.covariance == "of each":
            scale: dict[str, Tensor] = {
                "scale_tril": 0.3 * self.tril(x).tanh().reshape(-1, 3, 3).tril()
                + torch.eye(3).to(x)
            }
        elif self.covariance == "common":
            scale = {"scale_tril": self.tril}
        else:
            scale = {"covariance_matrix": self.tril @ self.tril.mT}
        return (
            MultivariateNormal(self.loc(x), **scale, validate_args=False)
            .log_prob(x.new_ones(3))
            .unsqueeze(1)
        )


class Triangle(nn.Module):
    """Solves with one triangular matrix for all, several columns for each."""

    def __init__(self, upper: bool, unitriangular: bool) -> None:
        super().__init__()
        self.matrix = nn.Parameter(torch.eye(3) + 0.3 * torch.ones(3, 3))
        self.options = {"upper": upper, "unitriangular": unitriangular}

    def forward(self, x: Tensor) -> Tensor:
        columns = x.reshape(-1, 3, 2).permute(1, 0, 2).reshape(3, -1)
        solved = torch.linalg.solve_triangular(self.matrix, columns, **self.options)
        return solved.reshape(3, -1, 2).permute(1, 0, 2).flatten(1).sin()


class Columns(nn.Module):
    """A linear layer on columns, W @ x."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 6))

    def forward(self, x: Tensor) -> Tensor:
        return (self.weight @ x.T).tanh().T


class _RNNFormula(nn.RNNCell):
    def forward(self, x: Tensor, state: Any = None) -> Any:
        state = x.new_zeros(len(x), self.hidden_size) if state is None else state
        return torch.tanh(sum(_gates(self, x, state)))


class _GRUFormula(nn.GRUCell):
    def forward(self, x: Tensor, state: Any = None) -> Any:
        state = x.new_zeros(len(x), self.hidden_size) if state is None else state
        a, b = (gates.chunk(3, 1) for gates in _gates(self, x, state))
        reset, update = torch.sigmoid(a[0] + b[0]), torch.sigmoid(a[1] + b[1])
        return (1 - update) * torch.tanh(a[2] + reset * b[2]) + update * state


class _LSTMFormula(nn.LSTMCell):
    def forward(self, x: Tensor, state: Any = None) -> Any:
        zero = x.new_zeros(len(x), self.hidden_size)
        hidden, memory = (zero, zero) if state is None else state
        i, f, g, o = sum(_gates(self, x, hidden)).chunk(4, 1)
        memory = f.sigmoid() * memory + i.sigmoid() * g.tanh()
        return o.sigmoid() * memory.tanh(), memory


def _gates(cell: Any, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    first, second = x @ cell.weight_ih.T, state @ cell.weight_hh.T
    return (first + cell.bias_ih, second + cell.bias_hh) if cell.bias else (first, second)


FORMULAS = {nn.RNNCell: _RNNFormula, nn.GRUCell: _GRUFormula, nn.LSTMCell: _LSTMFormula}


def by_formula(module: nn.Module) -> nn.Module:
    """Replace cells, which torch.func cannot batch, by their formulas."""
    copied = copy.deepcopy(module)
    for part in copied.modules():
        part.__class__ = FORMULAS.get(type(part), type(part))
    return copied


def rbf_policy() -> nn.Module:
    return RBFPolicy(basis_functions=8).build(Spaces(6, 2, angles=(1, 4)))


def mlp(activation: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Linear(6, 5), activation, nn.Linear(5, 4), activation, nn.Linear(4, 2))


MODULES: dict[str, Callable[[], nn.Module]] = {
    "linear": lambda: nn.Linear(6, 3),
    "linear-no-bias": lambda: nn.Linear(6, 3, bias=False),
    "linear-one-output": lambda: nn.Linear(6, 1),
    "linear-sequence": lambda: Shaped(nn.Linear(2, 4), 3, 2),
    "linear-sequence-no-bias": lambda: Shaped(nn.Linear(2, 4, bias=False), 3, 2),
    "linear-two-axes": lambda: Shaped(nn.Linear(2, 4), 1, 3, 2),
    "linear-long-sequence": lambda: Shaped(nn.Linear(1, 2), 6, 1),
    "linear-sequence-first": lambda: Shaped(SequenceFirst(), 3, 2),
    "linear-columns": Columns,
    "gaussian": lambda: Gaussian("common"),
    "gaussian-covariance": lambda: Gaussian("product"),
    "gaussian-of-each": lambda: Gaussian("of each"),
    "triangle": lambda: Triangle(False, False),
    "triangle-upper-unit": lambda: Triangle(True, True),
    **{
        f"mlp-{type(activation).__name__}": lambda activation=activation: mlp(activation)
        for activation in (
            nn.Tanh(),
            nn.ReLU(),
            nn.GELU(),
            nn.SiLU(),
            nn.ELU(),
            nn.Softplus(),
            nn.LeakyReLU(),
            nn.Mish(),
            nn.Softmax(dim=1),
            nn.Hardtanh(),
        )
    },
    "prelu": lambda: nn.Sequential(nn.Linear(6, 3), nn.PReLU(3), nn.PReLU()),
    "rbf-policy": rbf_policy,
    "layer-norm": lambda: nn.LayerNorm(6),
    "layer-norm-no-bias": lambda: nn.LayerNorm(6, bias=False),
    "layer-norm-sequence": lambda: Shaped(nn.LayerNorm(2), 3, 2),
    "layer-norm-two-axes": lambda: Shaped(nn.LayerNorm((3, 2)), 3, 2),
    "layer-norm-no-affine": lambda: nn.Sequential(
        nn.Linear(6, 4), nn.LayerNorm(4, elementwise_affine=False), nn.Linear(4, 2)
    ),
    "layer-norm-in-network": lambda: nn.Sequential(
        nn.Linear(6, 4), nn.LayerNorm(4), nn.Tanh(), nn.Linear(4, 2)
    ),
    "rms-norm": lambda: nn.Sequential(nn.Linear(6, 4), nn.RMSNorm(4), nn.Linear(4, 2)),
    "group-norm": lambda: Shaped(nn.Sequential(nn.Conv1d(2, 4, 2), nn.GroupNorm(2, 4)), 2, 3),
    "batch-norm-evaluated": lambda: nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4)).eval(),
    "batch-norm-first": lambda: nn.Sequential(nn.BatchNorm1d(6), nn.Linear(6, 4)),
    "embedding": lambda: LookUp(nn.Embedding(5, 2)),
    "embedding-sequence": lambda: LookUp(nn.Embedding(5, 2), 6),
    "embedding-repeated": lambda: LookUp(nn.Embedding(2, 3), 3, 2, rows=2),
    "embedding-wide": lambda: LookUp(nn.Embedding(50, 3), 6, rows=50),
    "embedding-padding": lambda: LookUp(nn.Embedding(5, 2, padding_idx=1), 6),
    "embedding-padding-from-end": lambda: LookUp(nn.Embedding(5, 2, padding_idx=-1), 6),
    "embedding-in-network": lambda: LookUp(
        nn.Sequential(nn.Embedding(5, 4), nn.LayerNorm(4), nn.Linear(4, 3), nn.Tanh()), 6
    ),
    "indexed": lambda: LookUp(Indexed(), 6),
    "tied": lambda: LookUp(Tied(), 6),
    "conv1d": lambda: Shaped(nn.Conv1d(2, 4, 2), 2, 3),
    "conv1d-no-bias": lambda: Shaped(nn.Conv1d(1, 3, 3, bias=False), 1, 6),
    "conv1d-strided": lambda: Shaped(nn.Conv1d(1, 2, 2, stride=3, padding=2), 1, 6),
    "conv1d-dilated": lambda: Shaped(nn.Conv1d(1, 2, 2, dilation=3), 1, 6),
    "conv1d-groups": lambda: Shaped(nn.Conv1d(2, 4, 2, groups=2, padding=1), 2, 3),
    "conv1d-depthwise": lambda: Shaped(nn.Conv1d(3, 3, 2, groups=3), 3, 2),
    "conv1d-one-position": lambda: Shaped(nn.Conv1d(2, 8, 3), 2, 3),
    "conv1d-same": lambda: Shaped(nn.Conv1d(2, 4, 3, padding="same"), 2, 3),
    "conv2d": lambda: Shaped(nn.Conv2d(1, 3, 2), 1, 2, 3),
    "conv2d-everything": lambda: Shaped(
        nn.Conv2d(2, 4, (1, 2), stride=(2, 1), padding=(1, 2), dilation=(1, 2), groups=2), 2, 1, 3
    ),
    "conv2d-circular": lambda: Shaped(
        nn.Conv2d(1, 2, 2, padding=1, padding_mode="circular"), 1, 2, 3
    ),
    "conv2d-network": lambda: nn.Sequential(
        Shaped(nn.Sequential(nn.Conv2d(1, 3, 2, padding=1), nn.ReLU(), nn.MaxPool2d(2)), 1, 2, 3),
        nn.LazyLinear(2),
    ),
    "conv3d": lambda: Shaped(nn.Conv3d(1, 2, (1, 2, 2), padding=(0, 1, 0)), 1, 1, 2, 3),
    "conv-transpose1d": lambda: Shaped(
        nn.ConvTranspose1d(2, 4, 2, stride=2, padding=1, output_padding=1, groups=2), 2, 3
    ),
    "conv-transpose1d-longer": lambda: Shaped(
        nn.ConvTranspose1d(2, 4, 2, dilation=2, output_padding=1), 2, 3
    ),
    "conv-transpose2d": lambda: Shaped(nn.ConvTranspose2d(1, 3, 2, dilation=2), 1, 2, 3),
    "rnn-cell": lambda: Cell(nn.RNNCell(2, 4), 3),
    "gru-cell": lambda: Cell(nn.GRUCell(2, 4), 3),
    "gru-cell-no-bias": lambda: Cell(nn.GRUCell(6, 4, bias=False), 1),
    "gru-cell-learnt-start": lambda: Cell(nn.GRUCell(3, 4), 2, torch.randn(4)),
    "lstm-cell": lambda: Cell(nn.LSTMCell(2, 4), 3),
    "lstm-cell-once": lambda: Cell(nn.LSTMCell(6, 4), 1),
    "recurrent-policy": RecurrentPolicy,
    "gru": lambda: Shaped(nn.GRU(2, 3, batch_first=True), 3, 2),
    "lstm": lambda: Shaped(nn.LSTM(2, 3, num_layers=2, batch_first=True), 3, 2),
    "plain-and-transformed": PlainAndTransformed,
    "weight-norm": lambda: nn.utils.parametrizations.weight_norm(nn.Linear(6, 3)),
    "attention": lambda: Shaped(Attention(batch_first=True), 3, 4),
    "attention-sequence-first": lambda: Shaped(Attention(), 3, 4),
    "ensemble": Ensemble,
}
WIDTH = {"attention": 12, "attention-sequence-first": 12}
# torch.func cannot take these apart: particles are coupled; it has no rule for the operation.
NOT_BY_FUNC = {"batch-norm-first", "gru", "lstm"}
# Its embedding forgets the padding where the table is expanded.
NOT_EXPANDED = NOT_BY_FUNC | {"embedding-padding", "embedding-padding-from-end"}


def make(name: str) -> tuple[nn.Module, int]:
    module, width = MODULES[name]().double(), WIDTH.get(name, 6)
    module(rand(P, width))  # lazy layers
    return module, width


def one_by_one(output: Tensor, cotangents: list[Tensor], module: nn.Module) -> list[Tensor]:
    """Per-particle gradients [P, N] for each cotangent."""
    parameters = list(module.parameters())
    return [gradients_one_by_one([output], [c], parameters) for c in cotangents]


def per_sample(module: nn.Module, x: Tensor, cotangents: Tensor) -> Tensor:
    """The same by torch.func."""

    def one(parameters: dict[str, Tensor], row: Tensor, b: Tensor) -> Tensor:
        return (functional_call(module, parameters, (row.unsqueeze(0),))[0] * b).sum()

    parameters = {name: p.detach() for name, p in module.named_parameters()}
    module = by_formula(module)
    each = vmap(grad(one), in_dims=(None, 0, 0))(parameters, x, cotangents)
    return torch.cat([g.flatten(1) for g in each.values()], dim=1)


def moments(output: Tensor, cotangents: list[Tensor], parameters: list[Tensor]) -> Any:
    uses = find_parameter_uses([output], parameters, output.shape[0])
    size = len(parameters)
    sets = []
    for cotangent in cotangents:
        answers = vector_jacobian_product([output], [cotangent], [*parameters, *uses.edges])
        sets.append(Answers(answers[size:], answers[:size], [output], [cotangent]))
    found = uses.moments(*sets, with_covariance=True)
    alone = [uses.variance(*answers) for answers in sets]
    torch.testing.assert_close(found[:2], tuple(alone), rtol=1e-11, atol=0.0)
    return uses, found


def expect(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return summed_squares(first), summed_squares(second), summed_squares(first, second)


def agree(found: Any, expected: tuple[Tensor, Tensor, Tensor]) -> None:
    scale = (expected[0] * expected[1]).sqrt().item()
    torch.testing.assert_close(tuple(found[:2]), expected[:2], rtol=1e-9, atol=0.0)
    torch.testing.assert_close(found[2], expected[2], rtol=0.0, atol=1e-9 * scale)


@pytest.mark.parametrize("name", MODULES)
@pytest.mark.parametrize("portion", [1 << 22, 100])
def test_exact_without_fallback(name: str, portion: int, monkeypatch) -> None:
    monkeypatch.setattr(contributions, "PORTION", portion)
    module, width = make(name)
    x = rand(P, width).requires_grad_()
    output = module(x)
    cotangents = [torch.randn_like(output) for _ in range(2)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        uses, found = moments(output, cotangents, list(module.parameters()))
    assert uses.unsupported is None
    agree(found, expect(*one_by_one(output, cotangents, module)))


@pytest.mark.parametrize("name", MODULES)
def test_exact_where_used_twice(name: str) -> None:
    module, width = make(name)
    scale = rand(P, 1).exp()
    output = module(rand(P, width)) * scale + module(rand(P, width)).sin()
    cotangents = [torch.randn_like(output) for _ in range(2)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        uses, found = moments(output, cotangents, list(module.parameters()))
    assert uses.unsupported is None
    agree(found, expect(*one_by_one(output, cotangents, module)))


@pytest.mark.parametrize("name", [name for name in MODULES if name not in NOT_BY_FUNC])
def test_equals_per_sample_gradients_of_torch_func(name: str) -> None:
    module, width = make(name)
    x = rand(P, width)
    output = module(x)
    cotangents = [torch.randn_like(output) for _ in range(2)]
    _, found = moments(output, cotangents, list(module.parameters()))
    agree(found, expect(*(per_sample(module, x, c) for c in cotangents)))


@pytest.mark.parametrize("name", ["linear", "conv1d-groups", "embedding-sequence", "gru-cell"])
def test_one_particle_has_no_variance(name: str) -> None:
    module, width = make(name)
    output = module(rand(1, width))
    _, found = moments(output, [torch.ones_like(output)] * 2, list(module.parameters()))
    assert tuple(found) == (0, 0, 0)


@pytest.mark.parametrize("name", ["linear", "linear-sequence", "conv2d", "layer-norm", "gru-cell"])
def test_never_negative_where_particles_are_equal(name: str) -> None:
    module, width = make(name)
    output = module(rand(1, width).expand(P, width))
    cotangents = [torch.ones_like(output)] * 2
    _, found = moments(output, cotangents, list(module.parameters()))
    size = one_by_one(output, cotangents, module)[0].square().sum()
    assert 0 <= found.first < 1e-13 * size
    assert abs(found.covariance) < 1e-13 * size


def rollout(
    kernel: Callable[[Tensor], Tensor], target: Any, width: int, monkeypatch: pytest.MonkeyPatch
) -> list[tuple[Tensor, Tensor]]:
    """Return TP's weights at every node."""
    weights: list[tuple[Tensor, Tensor]] = []
    original = TPBase.backward_impl

    def recorded(self: TPBase, node: Any, message: Any) -> Any:
        sent = original(self, node, message)
        weights.append(sent["k_lr_k_rp"])
        return sent

    with monkeypatch.context() as patch:
        patch.setattr(TPBase, "backward_impl", recorded)
        torch.manual_seed(1)
        manager = PropagationManager("TP")
        x = rand(40, width)
        for _ in range(3):
            mean = kernel(x)
            x = manager.sample(
                Normal(mean.new_zeros(40, width) + mean.mean(1, True) + 0.3 * x, 0.5),
                ivw_target=target,
            )
        manager.loss((x**2).sum(1)).backward()
    logged = torch.stack(manager.statistics["lr_weight"]).double()
    torch.testing.assert_close(logged, torch.stack([k for k, _ in weights]), rtol=1e-6, atol=0)
    return weights


@pytest.mark.parametrize("name", [name for name in MODULES if name not in NOT_EXPANDED])
def test_total_propagation_weighs_as_with_expanded_parameters(name: str, monkeypatch) -> None:
    module, width = make(name)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = rollout(module, module, width, monkeypatch)
    expanded = {key: expand(p, 40) for key, p in module.named_parameters()}
    formula = by_formula(module)

    def one(parameters: dict[str, Tensor], row: Tensor) -> Tensor:
        return functional_call(formula, parameters, (row.unsqueeze(0),))[0]

    expected = rollout(
        lambda x: vmap(one)(expanded, x), list(expanded.values()), width, monkeypatch
    )
    assert len(found) == 3
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=0.0)
        assert 0 < ours[0] < 1
