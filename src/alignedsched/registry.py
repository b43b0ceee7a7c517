"""Policies by name: shipped ones and those that other packages offer through entry points."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from attrs import evolve

from . import policies
from .errors import ConfigError
from .outside import show
from .policies.protocols import Policy

if TYPE_CHECKING:
    from importlib.metadata import EntryPoints

GROUP = "alignedsched.policies"
_SHIPPED: dict[str, Callable[..., Policy]] = {
    "buckets": policies.buckets,
    "density_first": policies.density_first,
    "cost_aligned": policies.cost_aligned,
    "fcfs": policies.fcfs,
    "sjf": policies.sjf,
    "sjf_oracle": policies.sjf_oracle,
    "waves": policies.waves,
}


def entry_points(group: str) -> EntryPoints:
    """Entry points of a group. Its module is imported late: it takes a tenth of the package's import time."""
    from importlib import metadata

    return metadata.entry_points(group=group)


def policy_names() -> tuple[str, ...]:
    """Names ``policy`` knows, sorted."""
    return tuple(sorted({*_SHIPPED, *(point.name for point in entry_points(group=GROUP))}))


def policy(name: str, **options: Any) -> Policy:
    """Make a policy by name; ``options`` go to its factory.

    A shipped name is never taken by another package. Raises ConfigError for an unknown name (listing the known
    ones), a package that cannot be loaded, or options the factory does not take.
    """
    factory = _SHIPPED.get(name) or _load(name)
    try:
        made = factory(**options)
    except TypeError as error:
        raise ConfigError(f"policy {name!r} does not take these options: {str(error)[:300]}") from error
    if not isinstance(made, Policy):
        raise ConfigError(f"policy {name!r}: its factory returned {type(made).__name__}, not a Policy")
    return evolve(made, made_as=(name, options))


def _load(name: str) -> Callable[..., Policy]:
    found = [point for point in entry_points(group=GROUP) if point.name == name]
    if not found:
        raise ConfigError(f"unknown policy {show(name)}; known: {', '.join(policy_names())}")
    try:
        factory: Callable[..., Policy] = found[0].load()
    except Exception as error:
        raise ConfigError(f"policy {name!r} ({found[0].value}) cannot be loaded: {error}") from error
    return factory
