"""Smart contents: what happens when a second value arrives under a name that is taken.

Nothing is changed in place by an update: values that arrive are combined into new ones, so two
containers never share a mutable content.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any


class Content:
    """A value that may be replaced."""

    __slots__ = ("_content",)

    def __init__(self, content: Any) -> None:
        self._content = value_of(content)

    def get(self) -> Any:
        """Return the value."""
        return self._content

    def set(self, value: Any) -> None:
        """Replace the value."""
        self._content = value_of(value)

    def update(self, value: Any) -> None:
        """Merge mappings, replace anything else."""
        self.set(merged(self._content, value_of(value)))

    def copy(self) -> Content:
        """Return a content of the same kind that can be updated independently."""
        twin = object.__new__(type(self))
        twin._content = twin_of(self._content)
        return twin

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._content})"

    def __str__(self) -> str:
        return str(self._content)

    def __add__(self, value: Any) -> Any:
        return self._content + value_of(value)

    def __mul__(self, value: Any) -> Any:
        return self._content * value_of(value)

    def __rmul__(self, value: Any) -> Any:
        return value_of(value) * self._content

    def __matmul__(self, value: Any) -> Any:
        return self._content @ value_of(value)


class Summed(Content):
    """A value to which updates are added (never in place)."""

    __slots__ = ()

    def update(self, value: Any) -> None:
        """Add ``value``."""
        self.set(self + value)


class Locked(Content):
    """A value that is never changed."""

    __slots__ = ()

    def set(self, value: Any) -> None:
        """Refuse.

        Raises:
            RuntimeError: always.
        """
        raise RuntimeError(
            f"this content is Locked at {self._content!r} and cannot be set to "
            f"{value_of(value)!r}; use Content for a value that changes."
        )

    def update(self, value: Any) -> None:
        """Refuse, as :meth:`set` does."""
        self.set(value)


class Listed(Content):
    """A list to which updates are appended."""

    __slots__ = ()

    def __init__(self, *items: Any) -> None:
        self._content = [value_of(item) for item in items]

    def update(self, *items: Any) -> None:
        """Append each item; another :class:`Listed` is appended item by item."""
        self._content = self._content + self._flatten(items)

    def set(self, *items: Any) -> None:
        """Replace the list by the items."""
        self._content = self._flatten(items)

    @staticmethod
    def _flatten(items: tuple[Any, ...]) -> list[Any]:
        flat: list[Any] = []
        for item in items:
            if isinstance(item, Listed):
                flat.extend(item.get())
            else:
                flat.append(value_of(item))
        return flat


def value_of(item: Any) -> Any:
    """Return a content's value, or what is no content as it is."""
    return item.get() if isinstance(item, Content) else item


def merged(old: Any, new: Any) -> Any:
    """Return what a plain value becomes when another arrives under its name."""
    # Nothing is a mapping that has no keys(), and to ask a tensor for them is quicker.
    mapping = hasattr(old, "keys") and isinstance(old, Mapping)
    if mapping and isinstance(new, Mapping):
        return {**old, **new}
    if hasattr(old, "update") and not mapping:
        twin = copy.copy(old)
        twin.update(new)
        return twin
    return new


def twin_of(item: Any) -> Any:
    """Return a container's item for another container, where it can be updated independently."""
    if isinstance(item, Content):
        return item.copy()
    return list(item) if isinstance(item, list) else item
