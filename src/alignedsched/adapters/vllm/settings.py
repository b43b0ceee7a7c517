"""What a user may set: the object ``alignedsched`` of vLLM's ``--additional-config``; each mistake gets its error."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import Any

from attrs import field, fields, frozen

from ...costs import Costs, load_costs
from ...errors import ConfigError
from ...outside import is_count, show
from ...policies.protocols import Policy
from ...registry import policy as policy_named

KEY = "alignedsched"


@frozen
class Settings:
    """``policy``: the name of one, or ``module:factory``; ``options`` go to it.

    ``costs``: file of the surface to decide by, as `alignedsched advise --costs` or a TableCosts writes it (without
    one the default policy does what vLLM does). ``look_every``: steps between two decisions. ``fill_graphs``: who sits
    out joins a group where a captured CUDA graph has rows to spare. ``step_log``: a file to write a line to for each
    step. ``any_version``: use versions of vLLM that nobody tested.
    """

    policy: str = "cost_aligned"
    options: Mapping[str, Any] = field(factory=dict)
    costs: str | None = None
    look_every: int = 16
    fill_graphs: bool = True
    step_log: str | None = None
    any_version: bool = False

    def make_policy(self) -> Policy:
        """The policy. Raises ConfigError where there is none of that name, or it does not take the options."""
        module, colon, name = self.policy.partition(":")
        if not colon:
            return policy_named(self.policy, **self.options)
        try:
            factory: Callable[..., Policy] = getattr(importlib.import_module(module), name)
            made = factory(**self.options)
        except (ImportError, AttributeError, TypeError) as error:
            raise ConfigError(f"{KEY}: policy {self.policy!r} cannot be made: {error}") from error
        if not isinstance(made, Policy):
            raise ConfigError(f"{KEY}: policy {self.policy!r} is {type(made).__name__}, not a Policy")
        return made

    def read_costs(self) -> Costs | None:
        """The surface, if there is a file of one. Raises ConfigError naming the file and what is wrong in it."""
        return None if self.costs is None else load_costs(self.costs)


_CHECKS: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    "policy": (lambda value: isinstance(value, str) and bool(value), "a policy's name, or module:factory"),
    "options": (lambda value: isinstance(value, dict) and all(isinstance(k, str) for k in value), "an object"),
    "costs": (lambda value: value is None or isinstance(value, str), "the name of a file"),
    "look_every": (lambda value: is_count(value, 1), "an integer of at least 1"),
    "fill_graphs": (lambda value: isinstance(value, bool), "true or false"),
    "step_log": (lambda value: value is None or isinstance(value, str), "the name of a file"),
    "any_version": (lambda value: isinstance(value, bool), "true or false"),
}


def settings_of(additional_config: object) -> Settings:
    """The settings in vLLM's ``additional_config``; the defaults where it has none.

    Raises ConfigError naming the key that is unknown or out of range.
    """
    given = additional_config.get(KEY, {}) if isinstance(additional_config, dict) else {}
    if not isinstance(given, dict):
        raise ConfigError(f"additional_config.{KEY}: must be an object, got {show(given)}")
    known = [setting.name for setting in fields(Settings)]
    for name, value in given.items():
        if name not in known:
            raise ConfigError(f"additional_config.{KEY}: unknown key {show(name)}; known: {', '.join(known)}")
        good, expected = _CHECKS[name]
        if not good(value):
            raise ConfigError(f"additional_config.{KEY}.{name}: must be {expected}, got {show(value)}")
    return Settings(**given)
