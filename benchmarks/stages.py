"""Time that a rollout's step spends in each of its stages, forward and backward."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from torch import Tensor


class Stages:
    """Adds up seconds by stage.

    Backward, hooks around every autograd function that a stage recorded tell its time. They cost
    some microseconds each, so that totals are to be timed without them.

    Attributes:
        seconds: of each stage since :meth:`reset`.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._started = 0.0

    def reset(self) -> None:
        """Start again from zero."""
        self.seconds.clear()

    def timed(self, stage: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return a function that does the same, in the time of a stage.

        What is pulled back through is followed where the result is a tensor, or a distribution
        with ``loc`` and ``scale``.
        """

        def call(*arguments: Any) -> Any:
            self._start()
            result = function(*arguments)
            self._stop(stage)
            for grad_fn in _recorded(_tensors(result), arguments):
                grad_fn.register_prehook(self._start)
                grad_fn.register_hook(partial(self._stop, stage))
            return result

        return call

    def _start(self, *_: Any) -> None:
        self._started = time.perf_counter()

    def _stop(self, stage: str, *_: Any) -> None:
        self.seconds[stage] += time.perf_counter() - self._started


def _tensors(result: Any) -> list[Tensor]:
    parts = [result, getattr(result, "loc", None), getattr(result, "scale", None)]
    return [part for part in parts if isinstance(part, Tensor) and part.grad_fn is not None]


def _recorded(results: Sequence[Tensor], arguments: Sequence[Any]) -> list[Any]:
    """Return the autograd functions between arguments and results, leaves left out."""
    seen = {a.grad_fn for a in arguments if isinstance(a, Tensor)}
    found = []
    waiting = [result.grad_fn for result in results]
    while waiting:
        grad_fn = waiting.pop()
        if grad_fn is None or grad_fn in seen or not grad_fn.next_functions:
            continue
        seen.add(grad_fn)
        found.append(grad_fn)
        waiting.extend(following for following, _ in grad_fn.next_functions)
    return found
