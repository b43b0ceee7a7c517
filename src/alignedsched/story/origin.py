"""What a scheduler was made of, as plain data: cluster, policy, settings, costs; enough to make another one like it.

A policy can be made again if ``registry.policy`` made it, with options that are plain data. Costs can if they are one
of the library's own kinds. Whatever cannot is only named, and whoever makes the scheduler again has to bring it.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from attrs import frozen

from ..cluster import Cluster
from ..errors import ConfigError, LogError
from ..load import Costs
from ..policies.protocols import PlainData, Policy
from ..registry import policy as policy_named
from ..scheduler import Scheduler
from ..version import VERSION
from .codec import encode, parse, reader, register

MOST_DEVICES, MOST_TOKENS = 4096, 65_536  # of a cluster, and of one block


@frozen
class Made:
    """How ``registry.policy`` was asked for a policy."""

    name: str
    options: Any  # plain data


@frozen
class Settings:
    """A scheduler's settings."""

    max_horizon: int
    max_kinds: int | None
    copy_retries: int
    step_retries: int
    copy_lease_s: float | None
    step_lease_s: float | None


@frozen
class Origin:
    """What a scheduler was made of. ``costs`` is None for none, a list for known ones, a name for others."""

    library: str  # version
    cluster: Cluster
    policy: str
    made: Made | None
    settings: Settings
    costs: Any  # plain data
    eligible: bool  # whether a hook decides who may begin


register(Made, Settings, Origin)


def origin_of(scheduler: Scheduler) -> Origin:
    """What a scheduler was made of."""
    policy, settings = scheduler.policy, Settings(**scheduler.settings)  # type: ignore[arg-type]
    return Origin(
        VERSION, scheduler.cluster, policy.name, _made(policy), settings, describe(scheduler.costs),
        scheduler.eligible is not None,
    )  # fmt: skip


def _made(policy: Policy) -> Made | None:
    if policy.made_as is None:
        return None
    name, options = policy.made_as
    try:
        plain = parse(encode(dict(options)))
    except TypeError:
        return None
    return Made(name, plain) if plain == options else None  # a tuple, say, would come back as a list


@cache
def _costs_reader() -> Any:
    """Late, because costs need numpy and the story does not."""
    from .. import cost_model, cost_table, costs, hardware, models

    register(
        hardware.Gpu, hardware.MatMul, hardware.DecodeAttention, hardware.PrefillAttention, hardware.AllReduce,
        hardware.Host, models.Model, costs.Sheet, costs.Prefill, costs.Curve,
    )  # fmt: skip
    register(costs.AffineCosts, cost_model.ModelCosts, cost_table.TableCosts, tagged=True)
    return reader(costs.AffineCosts | cost_model.ModelCosts | cost_table.TableCosts)


def describe(costs: Costs | None) -> PlainData:
    """Costs as plain data: see ``Origin.costs``."""
    if costs is None:
        return None
    _costs_reader()
    try:
        data: PlainData = parse(encode(costs))
    except TypeError:
        return type(costs).__qualname__
    return data


def check_size(origin: Origin) -> None:
    """Raise LogError for a cluster beyond all there are: a file may be anybody's, and room for it is made first."""
    layout, devices = origin.cluster.layout, origin.cluster.devices
    if len(devices) > MOST_DEVICES or layout.block_size > MOST_TOKENS:
        raise LogError(
            f"its cluster has {len(devices)} devices and blocks of {layout.block_size} tokens; at most {MOST_DEVICES} "
            f"and {MOST_TOKENS} are read"
        )


def make_costs(data: PlainData, given: Costs | None) -> Costs | None:
    """The costs described, or those given where only a name is known. Raises LogError, also if those given differ."""
    if given is not None:
        if describe(given) != data:
            raise LogError(f"was written with the costs {data!r:.120}, which are not those given")
        return given
    if isinstance(data, str):
        raise LogError(f"was written with costs of the type {data!r}, which only its owner can make: give `costs`")
    costs: Costs | None = None if data is None else _costs_reader()(data)
    return costs


def make_policy(origin: Origin) -> Policy:
    """The policy again. Raises LogError where it cannot be made."""
    if origin.made is None or not isinstance(origin.made.options, dict):
        raise LogError(f"was written with a policy {origin.policy!r:.80} that no name makes: give `policy`")
    try:
        return policy_named(origin.made.name, **origin.made.options)
    except ConfigError as error:
        raise LogError(f"its policy cannot be made here: {error!s:.300}") from error


def check_same(origin: Origin, cluster: Cluster, policy: Policy) -> None:
    """Raise LogError unless a state of this origin may be put into this cluster, under this policy."""
    if cluster != origin.cluster:
        raise LogError("was written on another cluster")
    made = _made(policy)
    if policy.name != origin.policy or (made is not None and origin.made is not None and made != origin.made):
        told = origin.made or origin.policy
        raise LogError(f"was written under the policy {told!r:.200}, not {made or policy.name!r:.200}")
