"""Back-propagation of gradient messages (Appendix B.2)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lightning_proppo.engine.backward_pass import active_pass
from lightning_proppo.propagators.base import Propagator


def back_propagate(outputs: list[Tensor], cotangents: list[Tensor | None]) -> None:
    """Pull cotangents back through PyTorch's graph, as far as the nearest cuts and parameters.

    Inside a pass the gradients are collected by it; outside, they land in ``.grad`` at once.

    Args:
        outputs: tensors; those that no gradient flows through are left out.
        cotangents: one for each, of its shape; None counts as zero.

    Raises:
        ValueError: for a cotangent of another shape.
    """
    kept_outputs, kept_cotangents = [], []
    for output, cotangent in zip(outputs, cotangents, strict=True):
        if cotangent is None or not output.requires_grad:
            continue
        if cotangent.shape != output.shape:
            raise ValueError(
                "a message's 'grads' must have the shapes of its 'outputs'; got "
                f"{list(cotangent.shape)} for {list(output.shape)}."
            )
        kept_outputs.append(output)
        kept_cotangents.append(cotangent)
    if not kept_outputs:
        return
    running = active_pass()
    if running is None:
        torch.autograd.backward(kept_outputs, kept_cotangents)
    else:
        running.pull(kept_outputs, kept_cotangents)


class BackPropagator(Propagator):
    """Back-propagates the pairs ``'outputs'`` and ``'grads'`` of the message and removes them."""

    loss_baseline = False

    def backward_impl(self, node: Any, message: Any) -> Any:
        """Back-propagate if the message has gradients; the rest of it is passed on.

        Raises:
            KeyError: for outputs without cotangents.
            ValueError: if their numbers differ.
        """
        del node
        if "outputs" in message:
            if "grads" not in message:
                raise KeyError("the message has 'outputs' but no 'grads', their cotangents.")
            outputs, grads = (
                list(v) if isinstance(v, (list, tuple)) else [v]
                for v in (message.pop("outputs"), message.pop("grads"))
            )
            if len(outputs) != len(grads):
                raise ValueError(
                    "a message must have one of 'grads' for each of its 'outputs'; got "
                    f"{len(outputs)} outputs and {len(grads)} grads."
                )
            back_propagate(outputs, grads)
        return message
