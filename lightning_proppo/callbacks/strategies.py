"""Which of Lightning's strategies a rollout can be trained with, and why not with the others."""

from __future__ import annotations

from typing import Any

_SHARDED = (
    "frees parameters after a module's forward pass, and brings them back and sums their gradients "
    "over the ranks in hooks on that module's part of the graph. A rollout's gradients are "
    "computed sample by sample outside of it: from freed memory, or into copies that no optimizer "
    "sees. Use strategy='ddp', whose hooks are on the parameters."
)
_REASONS = {
    "FSDPStrategy": _SHARDED,
    "ModelParallelStrategy": _SHARDED,
    "DeepSpeedStrategy": (
        "frees parameters after a module's forward pass in its stage 3, as FSDP does, and its "
        "other stages have not been tried. Use strategy='ddp'."
    ),
}


def refuse_strategy(strategy: Any) -> None:
    """Raise for a strategy whose gradients would be wrong or lost.

    Args:
        strategy: the Trainer's. It is known by its class's name: the classes of the two packages
            of Lightning's are different ones, and DeepSpeed's need not be installed.

    Raises:
        ValueError: for FSDP, model parallelism and DeepSpeed.
    """
    for name in _names(strategy):
        if name in _REASONS:
            raise ValueError(
                f"strategy: {type(strategy).__name__} cannot train through a rollout: it "
                f"{_REASONS[name]}"
            )


def refuse_static_accumulation(strategy: Any, batches: int) -> None:
    """Raise where DDP's static graph meets gradient accumulation, which PyTorch cannot do.

    Args:
        strategy: the Trainer's, set up.
        batches: whose gradients are accumulated.

    Raises:
        ValueError: for more than one batch with a static graph.
    """
    if batches > 1 and getattr(strategy.model, "static_graph", False):
        raise ValueError(
            "strategy: DDP with static_graph=True learns the graph in a first backward pass that "
            "synchronizes gradients; with accumulate_grad_batches the first does not, and PyTorch "
            f"fails. Leave static_graph out, or set accumulate_grad_batches=1; got {batches}."
        )


def refuse_sharded_parts(module: Any) -> None:
    """Raise if a part of the module has been sharded in a way that cannot work.

    ``fully_shard`` keeps its hooks on the tensors that go in and out, which a rollout's segments
    pass through: parts without trainable parameters, such as a large model of the dynamics, may
    be sharded by it. ``FullyShardedDataParallel`` does not bring parameters back even then.

    Args:
        module: the LightningModule, after its ``configure_model``.

    Raises:
        ValueError: for a part that ``FullyShardedDataParallel`` wraps, and for one with trainable
            parameters that ``fully_shard`` was applied to.
    """
    for path, part in module.named_modules():
        where = f"{type(module).__name__}.{path}" if path else type(module).__name__
        names = _names(part)
        if "FullyShardedDataParallel" in names:
            raise ValueError(
                f"{where} cannot be used in a rollout: FullyShardedDataParallel {_SHARDED} A part "
                "whose parameters are not trained may be sharded by fully_shard."
            )
        if "FSDPModule" in names and any(p.requires_grad for p in part.parameters()):
            raise ValueError(
                f"{where} has trainable parameters and cannot be used in a rollout: fully_shard "
                f"{_SHARDED} Where they are not to be trained, call requires_grad_(False)."
            )


def _names(value: Any) -> list[str]:
    return [base.__name__ for base in type(value).__mro__]
