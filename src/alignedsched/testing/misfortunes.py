"""More that may happen in one life: things mended and broken again, lost reports, storms, clocks that go wrong."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from random import Random

from ..cluster import Tier
from ..events import Cancelled, Event, LaneBack, LinkChanged, Resumed
from .lane_model import LaneModel
from .world import World


class Misfortunes(World):
    """A world with more actions. Reports are lost only where a lease (``lease``, ``step_lease``) will miss them."""

    step_lease: float | None
    still = 0  # calls for which the clock stands still
    back = 0.0  # how far the clock is set back for one call

    # -- what else may happen

    def mend(self, rng: Random) -> list[Event]:
        """Some of what is broken is whole again."""
        broken: list[Callable[[], list[Event]]] = [
            *(partial(self._device_back, device, rng) for device in sorted(self.lost_devices)),
            *(partial(self._lane_back, model, rng) for model in self.adversary.lanes.values()),
            *(partial(self._whole, tier) for tier in self.cluster.tiers.values()),
            self._links_up,
            self._resumed,
        ]
        return [event for thing in broken if rng.random() < 0.5 for event in thing()]

    def _lane_back(self, model: LaneModel, rng: Random) -> list[Event]:
        if not model.lost or self.lost_devices & set(model.lane.ranks):
            return []
        return [LaneBack(model.lane.id, self.adversary.lane_back(model, rng.randint(1, 3)))]

    def _whole(self, tier: Tier) -> list[Event]:
        if tier.device in self.lost_devices or self.scheduler._books.ledger.capacity(tier.id) == tier.blocks:
            return []
        return [self._resize(tier.id, tier.blocks)]

    def _links_up(self) -> list[Event]:
        links = self.scheduler._books.links
        down = [link for link in self.cluster.links if not links[link.source, link.target]]
        return [LinkChanged(link.source, link.target, link.bytes_per_s) for link in down]

    def _resumed(self) -> list[Event]:
        if not (self.paused or self.draining):
            return []
        self.paused = self.draining = False
        return [Resumed()]

    def promise_less(self, rng: Random) -> list[Event]:
        """Every tier turns out smaller than promised."""
        return [
            self._resize(tier.id, tier.blocks - rng.randint(0, tier.blocks // 3))
            for tier in self.cluster.tiers.values()
        ]

    def burst(self, rng: Random) -> list[Event]:
        return [event for _ in range(rng.randint(3, 8)) for event in self.arrive(rng)]

    def cancel_copied(self, rng: Random) -> list[Event]:
        """Somebody whose KV is on its way cancels."""
        flying = self._rare()
        return [Cancelled(self.adversary.copies[rng.choice(flying)].request)] if flying else []

    def fail_copy(self, rng: Random) -> list[Event]:
        flying = self._rare()
        return [self.adversary.end_copy(rng.choice(flying), False)] if flying else []

    def _rare(self) -> list[int]:
        """Copies from and to staging memory, which are rare, or else all that will be heard of again."""
        copies, tiers = self.adversary.copies, self.cluster.tiers
        flying = self.adversary.endable()
        return [n for n in flying if tiers[copies[n].source].staged or tiers[copies[n].target].staged] or flying

    def storm(self, rng: Random) -> list[Event]:
        """Everybody cancels at once."""
        released = self.adversary.released
        return [Cancelled(name) for name in self.adversary.requests if name not in released]

    def fail_output(self, rng: Random) -> list[Event]:
        for model in self.adversary.lanes.values():
            if not (model.failed or model.lost or model.silent) and self.adversary.lose_output(model, "output lost"):
                break
        return []

    def no_capacity(self, rng: Random) -> list[Event]:
        tier = self.cluster.tiers[rng.choice(list(self.cluster.tiers))]
        return [] if tier.device in self.lost_devices else [self._resize(tier.id, rng.choice((0, 0, tier.blocks)))]

    def no_links(self, rng: Random) -> list[Event]:
        up = rng.random() < 0.5
        place = rng.choice([device.id for device in self.cluster.devices])
        ends = [link for link in self.cluster.links if place in (link.source, link.target)]
        return [LinkChanged(link.source, link.target, link.bytes_per_s if up else 0.0) for link in ends]

    def silence(self, rng: Random) -> list[Event]:
        """From now on nothing of what a lane reports arrives."""
        models = [model for model in self.adversary.lanes.values() if not model.lost]
        if models and self.step_lease is not None:
            rng.choice(models).silent = True
        return []

    def lose_copy(self, rng: Random) -> list[Event]:
        """A completion will not come."""
        flying = self._rare()
        if flying and self.lease is not None:
            self.adversary.mute.add(rng.choice(flying))
        return []

    def late_copy(self, rng: Random) -> list[Event]:
        """A completion that was thought lost comes after all."""
        late = sorted(self.adversary.mute)
        return [self.adversary.end_copy(rng.choice(late), rng.random() < 0.5)] if late else []

    def stand_still(self, rng: Random) -> list[Event]:
        self.still = rng.randint(2, 12)
        return []

    def jump(self, rng: Random) -> list[Event]:
        self.now += rng.choice((3.0, 40.0, 1e4))
        return []

    def turn_back(self, rng: Random) -> list[Event]:
        self.back = min(self.now, rng.choice((0.5, 7.0)))
        return []
