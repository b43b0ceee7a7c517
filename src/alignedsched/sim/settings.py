"""What one comparison run is asked to do, and what it says of itself while it works."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, Protocol

from attrs import field, frozen

from ..errors import ConfigError
from ..load import SURFACES
from ..outside import MAX_COUNT, is_count, is_number, show

if TYPE_CHECKING:
    from ..events import Event
    from ..metrics import LatencyCollector
    from ..plan import Plan
    from ..scheduler import Scheduler

TOPOLOGIES = ("colocated", "disaggregated")
DEFAULT_POLICIES = ("fcfs", "cost_aligned", "density_first")
DEFAULT_LOAD = 0.9
MOST_REQUESTS = 10**8  # synthesised: some gigabytes
MOST_DEVICES = 256  # that decode: with as many that prefill, every one of them is linked to every other

_Validator = Callable[[Any, Any, Any], None]


def _fail(attribute: Any, value: object, allowed: str) -> ConfigError:
    return ConfigError(f"{attribute.name} must be {allowed}, got {show(value)}")


def _whole(minimum: int, most: int = MAX_COUNT) -> _Validator:
    allowed = f"of at least {minimum}" if most == MAX_COUNT else f"from {minimum} to {most}"

    def validate(instance: object, attribute: Any, value: object) -> None:
        if not is_count(value, minimum, most):
            raise _fail(attribute, value, f"a whole number {allowed}")

    return validate


def _positive(instance: object, attribute: Any, value: Any) -> None:
    if not is_number(value, 0) or not value:
        raise _fail(attribute, value, "a finite number above 0")


def _text(instance: object, attribute: Any, value: object) -> None:
    if type(value) is not str or not value.strip():
        raise _fail(attribute, value, "a non-empty text")


def _one_of(choices: tuple[str, ...]) -> _Validator:
    def validate(instance: object, attribute: Any, value: object) -> None:
        if value not in choices:
            raise ConfigError(f"unknown {attribute.name} {show(value)}; known: {', '.join(choices)}")

    return validate


def _flag(instance: object, attribute: Any, value: object) -> None:
    if type(value) is not bool:
        raise _fail(attribute, value, "true or false")


def _policies(instance: object, attribute: Any, value: object) -> None:
    if not isinstance(value, tuple) or not value:
        raise _fail(attribute, value, "a list or tuple with at least one policy's name")
    for position, name in enumerate(value):
        _text(instance, attribute, name)
        if name in value[:position]:
            raise ConfigError(f"policy {show(name)} is named twice; each policy is compared once")


def _maybe(validator: _Validator) -> _Validator:
    def validate(instance: object, attribute: Any, value: object) -> None:
        if value is not None:
            validator(instance, attribute, value)

    return validate


def _tuple(value: object) -> object:
    return tuple(value) if isinstance(value, list) else value


@frozen(kw_only=True)
class CompareSettings:
    """Everything ``compare`` is told. Names of workloads, policies, hardware and models are looked up by ``compare``.

    Exactly one of ``workload`` (a built-in one, synthesised) and ``trace`` (a file) is given. At most one of
    ``load``, ``rate_scale`` and ``offline`` says how requests arrive; with none of them, ``load`` is 0.9.

    Raises ConfigError naming the field and what is allowed, also for fields that contradict each other.
    """

    workload: str | None = field(default=None, validator=_maybe(_text))
    trace: str | None = field(default=None, validator=_maybe(_text))  # path of a trace file, plain or gzip
    format: str | None = field(default=None, validator=_maybe(_text))  # of the trace; None: recognised by its content
    policies: tuple[str, ...] = field(default=DEFAULT_POLICIES, converter=_tuple, validator=_policies)
    hardware: str = field(default="h100", validator=_text)  # a GPU's name, or a file that `calibrate` wrote
    model: str | None = field(default=None, validator=_maybe(_text))  # None: sim.build's default, or the measured one
    topology: str = field(default="colocated", validator=_one_of(TOPOLOGIES))
    lanes: int = field(default=1, validator=_whole(1))  # decoding lanes
    ranks: int = field(default=1, validator=_whole(1))  # of each decoding lane: GPUs or groups that step together
    surface: str | None = field(default=None, validator=_maybe(_one_of(SURFACES)))  # None: as for the model
    rate_scale: float | None = field(default=None, validator=_maybe(_positive))  # 2.0: arrivals twice as fast
    offline: bool = field(default=False, validator=_flag)  # every request is there at time 0
    load: float | None = field(validator=_maybe(_positive))  # bound on the time of the work / span of the arrivals
    limit: int | None = field(default=None, validator=_maybe(_whole(1)))  # only the first so many requests
    requests: int | None = field(
        default=None, validator=_maybe(_whole(1, MOST_REQUESTS))
    )  # size of a synthesised workload
    seed: int = field(default=0, validator=_whole(0))
    any_length: bool = field(default=False, validator=_flag)  # ignore the model's limit on positions
    staging: bool = field(default=True, validator=_flag)  # helper devices may hold KV ahead of a switch
    skip_bad_rows: str | None = field(default=None, validator=_maybe(_text))  # file that takes a trace's bad rows
    record: str | None = field(default=None, validator=_maybe(_text))  # folder that takes a log of each run

    @load.default
    def _default_load(self) -> float | None:
        return DEFAULT_LOAD if self.rate_scale is None and not self.offline else None

    def __attrs_post_init__(self) -> None:
        if (self.workload is None) == (self.trace is None):
            given = "neither" if self.workload is None else "both"
            raise ConfigError(f"give either a workload (a built-in name) or a trace (a file), got {given}")
        arrivals = {
            "load": self.load is not None,
            "rate_scale": self.rate_scale is not None,
            "offline": self.offline,
        }
        said = [name for name, given in arrivals.items() if given]
        if len(said) != 1:
            raise ConfigError(
                f"load, rate_scale and offline exclude each other: give one of them, got {' and '.join(said) or 'none'}"
            )
        if self.lanes * self.ranks > MOST_DEVICES:
            raise ConfigError(f"lanes times ranks must be at most {MOST_DEVICES}, got {self.lanes} and {self.ranks}")
        for name in ("format", "skip_bad_rows"):
            if self.trace is None and getattr(self, name) is not None:
                raise ConfigError(f"{name} is for a trace file, but workload {show(self.workload)} is built in")
        if self.trace is not None and self.requests is not None:
            raise ConfigError("requests is the size of a synthesised workload; with a trace use limit")
        if self.trace is not None and self.trace == self.skip_bad_rows:
            raise ConfigError(f"skip_bad_rows must not be the trace itself ({show(self.trace)})")


@frozen(kw_only=True)
class ProgressUpdate:
    """Where a comparison stands. Sent now and then during a run, and once with ``phase`` "done" at its end.

    ``requests_total`` is None while it is not known. ``wall_s`` counts from the start of the phase's run.
    """

    policy: str  # empty while the workload is read
    phase: Literal["reading", "running", "done"]
    run: int = 1  # this run's number among ``runs``, from 1
    runs: int = 1
    requests_ended: int = 0  # read, in the phase "reading"
    requests_total: int | None = None
    simulated_s: float = 0.0
    wall_s: float = 0.0


Progress = Callable[[ProgressUpdate], None]


class RunWatch(Protocol):
    """Looks on while policies run, one run after the other. It must change nothing."""

    def begin(self, policy: str, scheduler: Scheduler) -> None:
        """A run of a policy, as it was asked for by name, is about to begin."""
        ...

    def after(self, now: float, events: tuple[Event, ...], plan: Plan) -> None:
        """The scheduler was called."""
        ...

    def end(self, latency: LatencyCollector) -> None:
        """The run is over."""
        ...
