"""Propagators that route or gather messages (Appendix D, listing 4)."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from lightning_proppo.containers import Listed
from lightning_proppo.engine.cuts import cut
from lightning_proppo.propagators.base import ComboProp, Propagator
from lightning_proppo.propagators.baseline import mcgrad_temp


def detached_output(x: Tensor, requires_grad: bool = True) -> dict[str, Any]:
    """Return the contents of a node that cuts the graph at ``x``."""
    return {"output": cut(x, requires_grad), "pre_output": x, "register_node": True}


def gradient_message(node: Any) -> dict[str, Any]:
    """Return the tensor before the cut with the cotangent that the cut has collected."""
    cotangent = node["output"].grad
    if cotangent is None:
        return {}
    return {"outputs": Listed(node["pre_output"]), "grads": Listed(cotangent)}


class PauseBase(Propagator):
    """Cuts the graph: gathers all gradients that arrive and sends their sum on, once."""

    loss_baseline = False

    def forward_impl(self, x: Any, node: Any = None) -> Any:
        """Return ``x`` [P, ...] cut from its past.

        Raises:
            TypeError: if ``x`` is no tensor.
        """
        del node
        if not isinstance(x, Tensor):
            raise TypeError(f"x must be the tensor to cut the graph at; got {type(x).__name__}.")
        return detached_output(x)

    def backward_impl(self, node: Any, message: Any) -> Any:
        """Send the gathered gradient on."""
        del message
        return gradient_message(node)


class PauseProp(ComboProp, propagators=mcgrad_temp(backprop=True, base=PauseBase)):
    """:class:`PauseBase`, with back-propagation unless ``backprop=False``."""

    loss_baseline = False


class SkipProp(Propagator):
    """Sends what it receives past the nodes between.

    Args:
        skip: how many nodes back the message goes; 1 is the node before.
        **kwargs: none are taken.

    Raises:
        ValueError: unless ``skip`` is an int of at least 1.
    """

    def __init__(self, skip: int = 1, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if not isinstance(skip, int) or skip < 1:
            raise ValueError(f"skip must be an int of at least 1; got {skip!r}.")
        self.skip = skip

    def forward_impl(self, x: Any, node: Any = None) -> Any:
        """Return ``x`` as it is."""
        del node
        return {"output": x}

    def backward_impl(self, node: Any, message: Any) -> Any:
        """Address the message ``skip`` nodes back."""
        del node
        return {**message.get_contents(), "targets": -self.skip}


class SumBase(Propagator):
    """Adds a variable of the message to a running sum in it, e.g. rewards to a return.

    Args:
        sum_name: the sum's name.
        local_variable: the name of what is added.
        **kwargs: none are taken.
    """

    def __init__(self, sum_name: str, local_variable: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.sum_name = sum_name
        self.local_variable = local_variable

    def backward_impl(self, node: Any, message: Any) -> Any:
        """Return the new sum.

        Raises:
            KeyError: if the message lacks the local variable.
        """
        del node
        if self.local_variable not in message:
            raise KeyError(
                f"SumBase adds {self.local_variable!r}, but the message has only "
                f"{sorted(map(str, message.keys()))}."
            )
        current = message.pop(self.sum_name, 0)
        return {self.sum_name: message[self.local_variable] + current}
