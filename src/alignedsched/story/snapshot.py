"""A snapshot: the whole state of a scheduler between two calls, as bytes; and a scheduler made from it.

A snapshot and what happened since is a log (``log``): both are files of the same form, and either begins with the
other's beginning.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from attrs import asdict

from ..cluster import Cluster
from ..errors import LogError, PolicyError
from ..load import Costs
from ..policies.protocols import Policy
from ..request import Request
from ..scheduler import Scheduler
from . import frames, state
from .codec import MisfitError, encode, parse, reader
from .origin import Origin, check_same, check_size, make_costs, origin_of

_ORIGIN = reader(Origin)
Part = list[Any]


def parts(scheduler: Scheduler) -> Iterator[Part]:
    """The parts of a snapshot: what the scheduler was made of, its state, and an end."""
    yield ["scheduler", origin_of(scheduler)]
    yield from state.parts(scheduler)
    yield ["end"]


def snapshot(scheduler: Scheduler) -> bytes:
    """Everything a scheduler knows, between two calls; ``restore`` makes one from it that decides the same.

    What an executor has under way is in it as the scheduler knows it. O(everything); about 300 bytes a request before
    deflating. Raises PolicyError if the policy's state is no plain data.
    """
    out, check = [frames.MAGIC], frames.FIRST
    for part in parts(scheduler):
        try:
            frame, check = frames.pack(encode([part]), check)
        except TypeError as error:
            if part[0] != "policy":
                raise
            raise PolicyError(scheduler.policy.name, f"its state() is no plain data: {error}") from error
        out.append(frame)
    return b"".join(out)


def restore(
    data: bytes,
    cluster: Cluster,
    policy: Policy,
    costs: Costs | None = None,
    *,
    eligible: Callable[[Request], bool] | None = None,
    make: Callable[..., Scheduler] = Scheduler,
) -> Scheduler:
    """A scheduler in the state of a snapshot. Its settings are the snapshot's.

    Give the same cluster, a new policy of the same name and options, and what cannot be written down: the ``eligible``
    hook, if there was one, and ``costs`` of a kind of your own (the library's kinds are in the snapshot). ``make``
    makes the scheduler, with Scheduler's arguments: ``functools.partial(RecordedScheduler, path)`` records from here.

    Raises LogError for a snapshot that is torn, changed, of another version, or of something else; then nothing has
    been made (but throw the policy away).
    """
    source = frames.Frames(io.BytesIO(data), "snapshot")
    read = _parts_of(source)
    try:
        origin = origin_in(read, "snapshot")
        check_same(origin, cluster, policy)
        scheduler = build(origin, until_end(read), policy, costs, eligible=eligible, make=make)
        if next(read, None) is not None:
            raise LogError("goes on after its end: it is a log, which `replay` reads")
    except MisfitError as misfit:
        raise LogError(f"snapshot: {misfit}") from None
    except LogError as error:
        raise error if error.file else LogError(f"snapshot: {error}") from None
    return scheduler


def _parts_of(source: frames.Frames) -> Iterator[Part]:
    for content in source:
        data = parse(content)
        if type(data) is not list:
            raise MisfitError("a frame is a list of parts")
        yield from data
    if source.torn:
        raise LogError("is cut off", file=source.name, offset=source.end)


def origin_in(parts: Iterator[Part], name: str) -> Origin:
    """The origin, which must come first. Raises LogError."""
    part = next(parts, None)
    if type(part) is not list or len(part) != 2 or part[0] != "scheduler":
        raise LogError(f"must begin with what the scheduler was made of, got {part!r:.80}", file=name)
    try:
        origin: Origin = _ORIGIN(part[1])
    except MisfitError as misfit:
        raise LogError(str(misfit), file=name) from None
    return origin


def until_end(parts: Iterable[Part]) -> Iterator[Part]:
    """Parts up to the end of a snapshot. Raises LogError when it has none."""
    for part in parts:
        if type(part) is not list or not part or type(part[0]) is not str:
            raise MisfitError(f"a part is a list that begins with its name, got {part!r:.80}")
        if part[0] == "end":
            return
        yield part
    raise LogError("a snapshot is cut off")


def build(
    origin: Origin,
    parts: Iterable[Part],
    policy: Policy,
    costs: Costs | None,
    *,
    eligible: Callable[[Request], bool] | None = None,
    make: Callable[..., Scheduler] = Scheduler,
) -> Scheduler:
    """A scheduler of an origin in the state that the parts say, checked whole. Raises LogError or MisfitError."""
    if (eligible is not None) != origin.eligible:
        told = "with an `eligible` hook: give it" if origin.eligible else "without an `eligible` hook: give none"
        raise LogError(f"was written {told}")
    check_size(origin)
    made_costs = make_costs(origin.costs, costs)
    try:
        scheduler = make(origin.cluster, policy, made_costs, eligible=eligible, **asdict(origin.settings))
        filling = state.Filling(scheduler)
        for part in parts:
            filling.take(*part)
        filling.done()
        scheduler.check()
    except (MisfitError, LogError):
        raise
    except Exception as error:  # whatever the books or the policy make of it
        raise LogError(f"its state does not hold together ({type(error).__name__}: {error!s:.300})") from error
    return scheduler
