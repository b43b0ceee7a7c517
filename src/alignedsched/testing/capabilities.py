"""What an executor says of itself: a mapping of flags in its attribute ``capabilities``, and optional methods.

Plain data and duck typing on purpose: an executor needs no import of this package to be checked by it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from attrs import fields, frozen

from ..driver import Executor
from ..errors import ConfigError
from ..request import Request


@frozen
class Capabilities:
    """Flags with their defaults. What an executor cannot do is skipped and said so; what it promises is checked."""

    run_ahead: bool = True  # lanes may launch beyond the step in progress
    several_lanes: bool = True
    ranks: bool = True  # lanes of several ranks
    host: bool = True  # copies to and from the host
    peer: bool = True  # copies from device to device: prefill and decode apart
    staging: bool = True  # copies into helpers' staging memory
    exact_lengths: bool = True  # a request makes exactly as many tokens as it was told to
    virtual_time: bool = False  # time stands still but in `wait`, and never goes beyond `until`
    prompt: bool = False  # each `wait` tells of all that has ended by then
    repeats: bool = False  # may report a thing twice
    overtakes: bool = False  # reports of different orders of a lane may overtake each other

    @classmethod
    def of(cls, executor: object) -> Capabilities:
        """Read them off an executor. Raises ConfigError naming a flag nobody knows or that is no bool."""
        flags = getattr(executor, "capabilities", {})
        known = {field.name for field in fields(cls)}
        if not isinstance(flags, Mapping):
            raise ConfigError(f"an executor's capabilities are a mapping of flags, got {flags!r:.80}")
        for name, value in flags.items():
            if name not in known or not isinstance(value, bool):
                raise ConfigError(
                    f"capability {name!r}: {value!r}; known flags: {', '.join(sorted(known))}, each a bool"
                )
        return cls(**flags)


@frozen
class Probes:
    """Optional methods of an executor that let a test see more, or do more; None where it has none.

    ``introduce(request, output_tokens)`` or ``expect(request_id, output_tokens)``: how long a request will be.
    ``blocks_held(tier)``: blocks in use now. ``tokens_held(request, tier)``: readable tokens of a request that does
    not decode. ``fail_next_step(lane)``: the oldest step under way fails (False: none is).
    """

    introduce: Callable[[Request, int], Any] | None
    blocks_held: Callable[[str], int] | None
    tokens_held: Callable[[str, str], int] | None
    fail_next_step: Callable[[str], bool] | None

    @classmethod
    def of(cls, executor: Executor) -> Probes:
        introduce, expect = getattr(executor, "introduce", None), getattr(executor, "expect", None)
        if introduce is None and expect is not None:

            def introduce(request: Request, output_tokens: int) -> Any:
                return expect(request.id, output_tokens)

        return cls(
            introduce, *(getattr(executor, name, None) for name in ("blocks_held", "tokens_held", "fail_next_step"))
        )
