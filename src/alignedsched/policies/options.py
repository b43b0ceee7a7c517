"""What a policy's options may be: validators that raise ConfigError, naming the option and what is allowed.

They are validators of attrs fields, and can be called with two names: ``flag()("cost_aligned", "refit", refit)``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from ..errors import ConfigError
from ..outside import is_count, is_number, show

Validator = Callable[[Any, Any, Any], None]


def _validator(allowed: str, test: Callable[[object], bool]) -> Validator:
    def validate(instance: object, attribute: object, value: object) -> None:
        if not test(value):
            whose = instance if isinstance(instance, str) else type(instance).__name__
            raise ConfigError(f"{whose}.{getattr(attribute, 'name', attribute)} must be {allowed}, got {show(value)}")

    return validate


def number(low: float, high: float = math.inf, *, none: bool = False) -> Validator:
    """A finite number from ``low`` to ``high``; or None, where ``none`` says so."""
    allowed = f"a number from {low:g} to {high:g}{' or None' * none}"
    return _validator(allowed, lambda value: is_number(value, low, high) or (none and value is None))


def whole(least: int, *, none: bool = False) -> Validator:
    """An integer of at least ``least``; or None, where ``none`` says so."""
    allowed = f"an integer of at least {least}{' or None' * none}"
    return _validator(allowed, lambda value: is_count(value, least) or (none and value is None))


def one_of(choices: Sequence[str]) -> Validator:
    """One of some words."""
    return _validator(f"one of {', '.join(choices)}", lambda value: isinstance(value, str) and value in choices)


def flag() -> Validator:
    """True or False."""
    return _validator("True or False", lambda value: isinstance(value, bool))


def a_kind(*kinds: type, none: bool = False) -> Validator:
    """An object of one of these types; or None, where ``none`` says so."""
    allowed = f"a {' or '.join(kind.__name__ for kind in kinds)}{' or None' * none}"
    return _validator(allowed, lambda value: isinstance(value, kinds) or (none and value is None))
