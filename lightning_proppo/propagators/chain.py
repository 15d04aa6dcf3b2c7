"""Propagators in a chain, each at a node of its own (paper, Sec. 3.3)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lightning_proppo.containers import Container
from lightning_proppo.engine.tape import Tape
from lightning_proppo.propagators.base import Propagator, SequenceProp, options_for


class ChainProp(SequenceProp):
    """Applies propagators one after the other, the output of one being the input of the next.

    The chain is one node on the manager's tape, and holds a tape of its own. A message that the
    chain receives enters at its last node; what leaves before its first node leaves the chain.

    Forward options: those of all its propagators, and ``chain_kwargs``, a sequence with a dict of
    options for each propagator (these win over common ones).
    """

    def forward_impl(
        self,
        x: Any,
        node: Any = None,
        chain_kwargs: Sequence[dict[str, Any]] | None = None,
        **kwargs: Any,
    ) -> Any:
        """Run the chain forward on a new inner tape.

        Raises:
            ValueError: if ``chain_kwargs`` has not one entry for each propagator.
        """
        del node
        if chain_kwargs is None:
            chain_kwargs = [{}] * len(self.propagators)
        if len(chain_kwargs) != len(self.propagators):
            raise ValueError(
                f"chain_kwargs must have one dict for each of the {len(self.propagators)} "
                f"propagators of {type(self).__name__}; got {len(chain_kwargs)}."
            )
        tape = Tape()
        for propagator, own in zip(self.propagators, chain_kwargs, strict=True):
            options = options_for(propagator, kwargs)
            inner = tape.record(x, propagator, {**options, **own})
            x = inner.get("output")
        return {"output": x, "tape": tape, "register_node": len(tape) > 0}

    def backward_impl(self, node: Any, message: Any) -> Any:
        """Run the chain's tape backward, starting with the incoming message."""
        return node["tape"].run("backward", message)

    def raw_compute(self, kind: str, node: Container, message: Container, reverse: bool) -> Any:
        """Run any kind of computation over the chain's tape."""
        computation = getattr(self, f"{kind}_impl", None)
        if computation is not None:
            return computation(node, message)
        return node["tape"].run(kind, message, reverse)

    def loss_propagator(self) -> Propagator:
        """Return the last propagator's, which as a rule is the right one for the chain."""
        if not self.propagators:
            return super().loss_propagator()
        last: Propagator = self.propagators[-1]
        return last.loss_propagator()
