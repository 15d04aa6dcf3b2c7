"""Parameters at which TP compares variances though no optimizer steps them with its gradient."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from torch import Tensor, nn
from torch.optim import Optimizer


def parameters_of(optimizer: Optimizer) -> set[int]:
    """Return, by ``id``, the parameters that an optimizer steps."""
    return {id(p) for group in optimizer.param_groups for p in group["params"]}


class SteppedParameters:
    """Those that optimizers step with a rollout's gradient, in manual optimization.

    Attributes:
        found: by ``id``.
    """

    def __init__(self) -> None:
        self.found: set[int] = set()
        self._gradients: dict[int, Tensor | None] | None = None

    def add(self, reached: Mapping[int, Tensor], optimizer: Optimizer) -> None:
        """Add an optimizer's, at a step of it after the rollout's backward pass.

        Args:
            reached: the parameters that the rollout reaches, by ``id``.
            optimizer: which is about to step.
        """
        if self._gradients is None:
            self._gradients = {key: parameter.grad for key, parameter in reached.items()}
        # Where another loss was differentiated since, and the gradient cleared before, it is
        # another tensor: an optimizer that steps the world model after the actor's has done so.
        self.found |= {
            key
            for key in parameters_of(optimizer) & set(self._gradients)
            if reached[key].grad is self._gradients[key]
        }


def hint_at_outside(reached: Mapping[int, Tensor], stepped: set[int], module: nn.Module) -> str:
    """Return what there is to be said of parameters that are not stepped; "" for nothing.

    Args:
        reached: the parameters at which TP compares variances, by ``id``.
        stepped: those that an optimizer steps with the gradient.
        module: which names them.
    """
    outside = set(reached) - stepped
    # Without any that is stepped, the step comes in a later batch.
    if not outside or len(outside) == len(reached):
        return ""
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    parts = Counter(names.get(key, "outside the module").split(".")[0] for key in outside)
    listed = ", ".join(f"{part} ({count})" for part, count in sorted(parts.items()))
    return (
        "TP weighs LR and RP by their variances at all parameters that the rollout reaches, and "
        f"{len(outside)} of these {len(reached)} are not stepped with its gradient: {listed}. Its "
        "weights are then not the best for those that are. Freeze the others while the rollout is "
        "recorded, by requires_grad_(False) or, in manual optimization, toggle_optimizer; or name "
        "those that are stepped as TP's ivw_target."
    )
