"""Policies by name: shipped ones, ones of other packages, and clear words for what does not work."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import EntryPoint, EntryPoints
from types import ModuleType

import pytest

from alignedsched import Policy, policy, policy_names, registry
from alignedsched.errors import ConfigError
from alignedsched.policies import fcfs

GROUP = "alignedsched.policies"


@pytest.fixture
def offer(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Installs packages, as far as entry points go: keyword arguments are policy names and what they lead to."""
    module = ModuleType("other_package")
    monkeypatch.setitem(__import__("sys").modules, "other_package", module)

    def install(**factories: object) -> None:
        points = []
        for name, factory in factories.items():
            setattr(module, name, factory)
            points.append(EntryPoint(name, f"other_package:{name}", GROUP))
        points.append(EntryPoint("missing", "no_such_package:policy", GROUP))
        monkeypatch.setattr(registry, "entry_points", lambda group: EntryPoints(points if group == GROUP else ()))

    return install


@pytest.mark.parametrize("name", ["fcfs", "density_first"])
def test_shipped_policies_are_known_by_name(name: str) -> None:
    assert name in policy_names()
    made = policy(name)
    assert (type(made), made.name) == (Policy, name)
    assert policy(name).batching is not made.batching or name == "fcfs", "two schedulers share no memory of a policy"


def test_options_reach_the_factory() -> None:
    assert policy("fcfs", swap=True).batching == fcfs(swap=True).batching != fcfs().batching


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"unknown policy 'fsfc'; known: .*density_first.*fcfs"):
        policy("fsfc")


def test_unknown_options_are_named() -> None:
    with pytest.raises(ConfigError, match=r"policy 'fcfs' does not take these options.*'swop'"):
        policy("fcfs", swop=True)


def test_another_package_offers_a_policy(offer: Callable[..., None]) -> None:
    mine = fcfs(by_priority=True)
    offer(mine=lambda: mine)
    assert policy("mine") == mine
    assert policy_names() == tuple(sorted((*registry._SHIPPED, "mine", "missing")))


def test_a_shipped_name_is_not_taken_over(offer: Callable[..., None]) -> None:
    offer(fcfs=lambda: fcfs(swap=True))
    assert policy("fcfs").batching == fcfs().batching
    assert policy_names().count("fcfs") == 1


def test_a_package_that_cannot_be_loaded_is_named(offer: Callable[..., None]) -> None:
    offer()
    with pytest.raises(ConfigError, match=r"policy 'missing' \(no_such_package:policy\) cannot be loaded"):
        policy("missing")


def test_a_factory_must_return_a_policy(offer: Callable[..., None]) -> None:
    offer(odd=lambda: "fcfs")
    with pytest.raises(ConfigError, match=r"policy 'odd': its factory returned str, not a Policy"):
        policy("odd")
