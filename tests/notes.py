"""A watch that writes down whatever it is told, for the tests of who tells what."""

from __future__ import annotations

from attrs import define, field

from alignedsched.policies.protocols import PlainData, Stepped
from alignedsched.request import Request


@define
class Notes:
    """``steps`` as they were told; ``ends`` as (request, tokens made, whether it finished)."""

    steps: list[Stepped] = field(factory=list)
    ends: list[tuple[str, int, bool]] = field(factory=list)

    def stepped(self, facts: Stepped) -> None:
        self.steps.append(facts)

    def ended(self, request: Request, produced: int, finished: bool) -> None:
        self.ends.append((request.id, produced, finished))

    def state(self) -> PlainData:
        return None

    def load(self, state: PlainData) -> None: ...
