"""What there is to schedule on: devices with KV blocks, lanes that step, the host pool, and links."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from functools import cached_property
from typing import Any

from attrs import field, frozen

from .errors import ConfigError

HOST = "host"
TierId = str


class Role(enum.Enum):
    """What a device is for. ``prefills`` and ``decodes`` say what its lane may run."""

    PREFILL = ("prefill", True, False)
    DECODE = ("decode", False, True)
    BOTH = ("both", True, True)
    HELPER = ("helper", False, False)

    prefills: bool
    decodes: bool

    def __new__(cls, value: str, prefills: bool, decodes: bool) -> Role:
        """Attributes instead of properties: they are read in every decision."""
        role = object.__new__(cls)
        role._value_ = value
        role.prefills = prefills
        role.decodes = decodes
        return role


def _require(ok: bool, message: str) -> None:
    if not ok:
        raise ConfigError(message)


def _whole(instance: Any, attribute: Any, value: object) -> None:
    minimum: int = attribute.metadata["min"]
    _require(
        type(value) is int and value >= minimum,
        f"{type(instance).__name__} {getattr(instance, 'id', '')!r}: {attribute.name} must be an integer of at least "
        f"{minimum}, got {value!r}",
    )


def _int(minimum: int, **kwargs: Any) -> Any:
    return field(validator=_whole, metadata={"min": minimum}, **kwargs)


@frozen
class KVLayout:
    """How many blocks and bytes the KV of some tokens takes: the one place that knows.

    ``bytes_per_token`` counts all layers of one device's share summed over the lane's GPUs (full attention).
    """

    block_size: int = _int(1, default=16)
    bytes_per_token: int = _int(1, default=131_072)

    def blocks(self, tokens: int) -> int:
        """Blocks that hold ``tokens`` tokens (whole blocks)."""
        return -(-tokens // self.block_size)

    def copy_bytes(self, start: int, end: int) -> int:
        """Bytes a copy of tokens ``start`` to ``end`` moves."""
        return (end - start) * self.bytes_per_token


@frozen
class Device:
    """One KV memory: a GPU, or a tensor-parallel group seen as one. ``staging_blocks`` are set aside for others' KV."""

    id: str
    role: Role
    kv_blocks: int = _int(0)
    staging_blocks: int = _int(0, default=0)

    @property
    def staging_tier(self) -> TierId:
        return f"{self.id}+staging"


@frozen
class Lane:
    """What runs one step at a time: one rank, or several ranks in lockstep, each a device of its own.

    ``run_ahead`` is how many steps may be launched beyond the one in progress before a report (0: the next step is
    launched with the plan that answers the report of the last). ``max_members`` and ``max_tokens`` bound one rank's
    step: requests, and tokens computed (decode rows plus prefill tokens).
    """

    id: str
    ranks: tuple[str, ...]
    run_ahead: int = _int(0, default=0)
    max_members: int = _int(1, default=256)
    max_tokens: int = _int(1, default=8192)


@frozen
class Link:
    """A directed way for KV between two devices, or a device and the host.

    ``shares`` names channels that several links share (a PCIe switch, say): copies over links that share a channel
    are served one at a time, which costs the same total time as sharing the bandwidth.
    """

    source: str
    target: str
    bytes_per_s: float
    latency_s: float = 0.0
    shares: tuple[str, ...] = ()


@frozen
class Tier:
    """A place for KV. ``device`` is ``None`` for the host; ``staged`` copies in it may be revoked at any moment."""

    id: TierId
    device: str | None
    blocks: int
    staged: bool = False


@frozen(slots=False)
class Cluster:
    """Everything the scheduler may use. Raises ConfigError naming the part that does not fit together."""

    devices: tuple[Device, ...]
    lanes: tuple[Lane, ...]
    host_blocks: int = _int(0, default=0)
    links: tuple[Link, ...] = ()
    layout: KVLayout = KVLayout()
    max_positions: int = _int(2, default=131_072)

    def __attrs_post_init__(self) -> None:
        ids = [d.id for d in self.devices] + [lane.id for lane in self.lanes]
        _require(bool(self.lanes), "a cluster needs at least one lane")
        _require(len(set(ids)) == len(ids), f"device and lane ids must be distinct, got {ids}")
        _require(HOST not in ids, f"{HOST!r} is the host's own name, no device or lane may have it")
        by_id = {d.id: d for d in self.devices}
        used: dict[str, str] = {}
        for lane in self.lanes:
            _require(bool(lane.ranks), f"lane {lane.id!r} has no ranks")
            roles = set()
            for rank in lane.ranks:
                _require(rank in by_id, f"lane {lane.id!r} names device {rank!r}; known: {', '.join(sorted(by_id))}")
                _require(rank not in used, f"device {rank!r} is in lanes {used.get(rank)!r} and {lane.id!r}")
                used[rank] = lane.id
                roles.add(by_id[rank].role)
            _require(len(roles) == 1, f"the ranks of lane {lane.id!r} have different roles")
            _require(Role.HELPER not in roles, f"lane {lane.id!r}: a helper device runs no steps")
        _require(
            any(by_id[lane.ranks[0]].role.prefills for lane in self.lanes),
            "no lane can prefill: no device has that role",
        )
        _require(
            any(by_id[lane.ranks[0]].role.decodes for lane in self.lanes), "no lane can decode: no device has that role"
        )
        places = {*by_id, HOST}
        for link in self.links:
            for end in (link.source, link.target):
                _require(end in places, f"link {link.source}->{link.target}: {end!r} is no device and not {HOST!r}")
            _require(link.source != link.target, f"link {link.source}->{link.target} leads nowhere")
            _require(link.bytes_per_s > 0, f"link {link.source}->{link.target}: bytes_per_s must be positive")
            _require(link.latency_s >= 0, f"link {link.source}->{link.target}: latency_s must not be negative")

    @cached_property
    def device(self) -> Mapping[str, Device]:
        """Devices by id."""
        return {d.id: d for d in self.devices}

    @cached_property
    def lane(self) -> Mapping[str, Lane]:
        """Lanes by id."""
        return {lane.id: lane for lane in self.lanes}

    @cached_property
    def tiers(self) -> Mapping[TierId, Tier]:
        """Every tier by id: each device's memory (the device's id), its staging memory, and the host."""
        tiers: dict[TierId, Tier] = {}
        for d in self.devices:
            tiers[d.id] = Tier(d.id, d.id, d.kv_blocks)
            if d.staging_blocks:
                tiers[d.staging_tier] = Tier(d.staging_tier, d.id, d.staging_blocks, staged=True)
        if self.host_blocks:
            tiers[HOST] = Tier(HOST, None, self.host_blocks)
        return tiers

    @cached_property
    def link(self) -> Mapping[tuple[str, str], Link]:
        """Links by (source, target) place."""
        return {(link.source, link.target): link for link in self.links}

    def place(self, tier: TierId) -> str:
        """The device or host a tier belongs to, as links name it."""
        return self.tiers[tier].device or HOST

    def route(self, source: TierId, target: TierId) -> Link | None:
        """The link a copy from one tier to another takes, or None. O(1)."""
        return self.link.get((self.place(source), self.place(target)))

    def role(self, lane: Lane) -> Role:
        """What a lane's devices are for."""
        return self.device[lane.ranks[0]].role
