"""Suggestions for misspelt names in a configuration, added to what the parser says."""

from __future__ import annotations

import inspect
import pkgutil
import re
from collections.abc import Iterable
from typing import Any

from lightning_proppo.errors import did_you_mean

_CLASS = re.compile(r"<class '([\w.]+)'>")
_NO_CLASS = re.compile(r"Expected a dot import path string: (\w+)|has no attribute '(\w+)'")
_OPTION = re.compile(r"given class_path '([\w.]+)':\s+Option '(\w+)' is not accepted")
_ARGUMENT = re.compile(r"[Uu]nrecognized arguments?: (--[\w.-]+)")
_KEY = re.compile(r"does not accept option '([\w.]+)'")
# Beside a class's path, and beside its options.
_BESIDE_PATH = re.compile(r"\{'class_path': '[^']*', '(?!init_args'|dict_kwargs')([^']+)': ")
_BESIDE_OPTIONS = re.compile(r"\{'(?!class_path')([^']+)': '[^']*', 'init_args': ")
_NO_MODEL = re.compile(r"arguments are required: (\w+)\.model")


def hint(message: str, options: Iterable[str] = ()) -> str:
    """Return a line with suggestions for the names that a parser's message complains of, or "".

    Args:
        message: what jsonargparse says.
        options: the parser's own, with their dashes.
    """
    found: list[str] = []
    for match in _NO_CLASS.finditer(message):
        name = match[1] or match[2]
        kinds = _CLASS.findall(message[: match.start()])
        # Of the types that might be meant, the innermost ones are named last.
        for kind in dict.fromkeys(reversed(kinds)):
            if suggestion := did_you_mean(name, _final_classes(kind)):
                found.append(suggestion)
                break
    for match in _OPTION.finditer(message):
        found.append(did_you_mean(match[2], _arguments(match[1])))
    for match in _ARGUMENT.finditer(message):
        found.append(did_you_mean(match[1], options))
    for match in _KEY.finditer(message):
        found.append(_nearest_key(match[1], [option.removeprefix("--") for option in options]))
    for match in [*_BESIDE_PATH.finditer(message), *_BESIDE_OPTIONS.finditer(message)]:
        names = did_you_mean(match[1], ("class_path", "init_args"))
        found.append(names or f"Options of a class stand under init_args; got {match[1]!r}.")
    for match in _NO_MODEL.finditer(message):
        found.append(f"Give a configuration, {match[1]} --config FILE, or a class, --model CLASS.")
    texts = [text.strip() for text in dict.fromkeys(found) if text]
    return "\n" + " ".join(texts) if texts else ""


def _nearest_key(given: str, known: Iterable[str]) -> str:
    """Return a suggestion for a key of a configuration, or for the section that it stands in."""
    known = list(known)
    section = given.partition(".")[0]
    sections = {key.partition(".")[0] for key in known}
    return did_you_mean(given, known) if section in sections else did_you_mean(section, sections)


def _resolve(path: str) -> Any:
    try:
        return pkgutil.resolve_name(path)
    except (ImportError, AttributeError, ValueError):
        return None


def _final_classes(path: str) -> list[str]:
    """Return the names of the classes below one that have been imported."""
    names: list[str] = []
    left = [_resolve(path)]
    while left:
        kind = left.pop()
        if isinstance(kind, type) and kind is not type(None):
            left += type.__subclasses__(kind)
            if not inspect.isabstract(kind):
                names.append(kind.__name__)
    return names


def _arguments(path: str) -> list[str]:
    kind = _resolve(path)
    return list(inspect.signature(kind).parameters) if isinstance(kind, type) else []
