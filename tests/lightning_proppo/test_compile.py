"""Rollouts through functions that torch.compile made; docs/speed.md says what follows for users."""

from __future__ import annotations

import os
import shutil
import sysconfig
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch._functorch import config
from torch.distributions import Normal

from lightning_proppo import PropagationManager, expand

P, D = 16, 3
Policy = Callable[[Tensor], Tensor]

needs_compiler = pytest.mark.skipif(
    shutil.which(os.environ.get("CXX", "g++")) is None
    or not (Path(sysconfig.get_path("include")) / "Python.h").exists(),
    reason="TorchInductor needs a C++ compiler ($CXX or g++) and Python's headers.",
)
BACKENDS = ["aot_eager", pytest.param("inductor", marks=needs_compiler)]


@pytest.fixture(autouse=True)
def _fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    # What an earlier process compiled would decide whether buffers are donated.
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.fixture
def policy() -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Linear(D, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, D)]
    return nn.Sequential(*layers).double()


def gradients(policy: Policy, own: nn.Module, estimator: str, scalar: bool = False) -> list[Tensor]:
    """Roll out with a policy, and differentiate with respect to the parameters of its own."""
    torch.manual_seed(1)
    manager = PropagationManager(estimator)
    factor = torch.ones((), dtype=torch.float64, requires_grad=True)
    used = expand(factor, P).unsqueeze(1)
    options = {"ivw_target": used} if scalar else {}
    x = torch.ones(P, D, dtype=torch.float64)
    for _ in range(3):
        x = manager.sample(Normal(0.9 * x + 0.1 * used * policy(x), 0.1), **options)
    loss = manager.loss(x.square().sum(1))
    return list(torch.autograd.grad(loss, [*own.parameters(), factor]))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("estimator", "scalar"), [("RP", False), ("LR", False), ("TPX", False), ("TP", True)]
)
def test_gradients_are_those_without_it(
    backend: str, estimator: str, scalar: bool, policy: nn.Module
) -> None:
    compiled = torch.compile(policy, backend=backend)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "there is no rule")
        found = gradients(compiled, policy, estimator, scalar)
    torch.testing.assert_close(found, gradients(policy, policy, estimator, scalar))


def test_weights_at_the_parameters_of_a_compiled_policy_take_a_pass_for_each_particle(
    policy: nn.Module,
) -> None:
    compiled = torch.compile(policy, backend="aot_eager")
    with pytest.warns(UserWarning, match="CompiledFunctionBackward"):
        found = gradients(compiled, policy, "TP")
    torch.testing.assert_close(found, gradients(policy, policy, "TP"))


@pytest.mark.skipif(
    not hasattr(config, "donated_buffer"), reason="Before PyTorch 2.5 no buffers are donated."
)
@pytest.mark.parametrize("donated", [True, False])
def test_after_an_ordinary_backward_pass_only_without_donated_buffers(
    donated: bool, policy: nn.Module
) -> None:
    with config.patch(donated_buffer=donated):
        compiled = torch.compile(policy, backend="aot_eager")
        # Compiles the backward pass for graphs that are not kept.
        compiled(torch.ones(P, D, dtype=torch.float64)).sum().backward()
        if donated:
            with pytest.raises(RuntimeError, match=r"config\.donated_buffer=False"):
                gradients(compiled, policy, "LR")
            return
        found = gradients(compiled, policy, "LR")
    torch.testing.assert_close(found, gradients(policy, policy, "LR"))
