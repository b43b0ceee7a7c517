"""``waves``: plain sorted waves, always, without asking whether they pay; a baseline.

Continuous batching whose queue is admitted in waves (``sorted_waves``): all that queues at one moment by ascending
length, then the next wave. No gate, nobody is parked. It shows what the gate of a policy that aligns only where it
pays is worth: without one waves lose wherever the surface is balanced.
"""

from __future__ import annotations

from collections.abc import Iterable

from attrs import define, field, frozen

from ..queue import Waiting
from ..request import Request
from ..views import LaneView
from .admission import ArrivalOrder
from .fcfs import ContinuousBatching
from .protocols import PlainData, Policy, Stepped
from .residency import DirectResidency
from .sorted_waves import Wave


@define(eq=False)
class WaveMemory:
    """The wave that is being admitted; a Watch only so that snapshots hold it."""

    wave: Wave = field(factory=Wave)

    def stepped(self, facts: Stepped) -> None:
        """Nothing to learn."""

    def ended(self, request: Request, produced: int, finished: bool) -> None:
        """Nothing to learn."""

    def state(self) -> PlainData:
        return self.wave.plain()

    def load(self, state: PlainData) -> None:
        """Restore ``state()``. Raises CallerError for anything but a list of ids."""
        self.wave = Wave.from_plain(state)


@frozen
class WaveOrder(ArrivalOrder):
    """Prefill wave by wave; otherwise as ArrivalOrder."""

    memory: WaveMemory = field(factory=WaveMemory)

    def _in_turn(self, view: LaneView) -> Iterable[Waiting]:
        self.memory.wave = self.memory.wave.now(view.queue)
        return self.memory.wave.in_turn(view)


def waves(*, swap: bool = False, token_budget: int | None = None) -> Policy:
    """Sorted waves as a whole policy; the options are those of ``fcfs``."""
    memory = WaveMemory()
    return Policy(
        "waves",
        WaveOrder(token_budget=token_budget, memory=memory),
        ContinuousBatching(swap=swap),
        DirectResidency(to_host="short" if swap else "never"),
        watches=(memory,),
    )
