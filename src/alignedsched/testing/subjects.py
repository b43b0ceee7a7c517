"""What is tested, from what the caller gave: a factory, the name of a shipped policy, or ``"module:attribute"``."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

from .. import registry
from ..errors import ConfigError
from ..policies.protocols import Policy

PolicyFactory = Callable[[], Policy]


def imported(spec: str) -> Any:
    """What ``"module:attribute"`` names. Raises ConfigError if there is no such thing."""
    module, _, attribute = spec.partition(":")
    try:
        found: Any = importlib.import_module(module)
        for part in attribute.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"cannot import {spec!r} (written as 'module:attribute'): {error}") from error
    return found


def policy_factory(given: PolicyFactory | str) -> PolicyFactory:
    """A factory of policies. Raises ConfigError for a name nobody knows."""
    if not isinstance(given, str):
        return given
    if ":" in given:
        factory: PolicyFactory = imported(given)
        return factory
    if given not in registry.policy_names():
        raise ConfigError(
            f"unknown policy {given!r}; known: {', '.join(registry.policy_names())}, or 'module:attribute'"
        )
    return partial(registry.policy, given)


def spec_of(given: Callable[..., object] | str) -> str | None:
    """How another process can import the factory, or None if it cannot."""
    if isinstance(given, str):
        return given
    module, name = getattr(given, "__module__", None), getattr(given, "__qualname__", None)
    if module in (None, "__main__") or name is None or "<" in name or module not in sys.modules:
        return None
    spec = f"{module}:{name}"
    try:
        return spec if imported(spec) is given else None
    except ConfigError:
        return None


def name_of(given: Callable[..., object] | str) -> str:
    """What to call the subject in a report."""
    return given if isinstance(given, str) else str(getattr(given, "__qualname__", None) or repr(given))
