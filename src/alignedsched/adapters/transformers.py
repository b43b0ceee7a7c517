"""Our policies in transformers' continuous batching: ``register`` once, then name the policy as its scheduler.

    from alignedsched.adapters import transformers as aligned

    aligned.register(policy="cost_aligned")
    config = ContinuousBatchingConfig(scheduler_type="cost_aligned")
    model.generate_batch(inputs, continuous_batching_config=config)

transformers runs its own FIFO scheduler, with no more than a warning, where it does not know a name; ``verify`` raises
instead, and so does the end of ``with using(...)``. `docs/transformers.md` says what to expect and what to measure.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError, ExecutorError
from ..load import Costs
from ..outside import show
from .step_log import StepLog
from .versions import Window

if TYPE_CHECKING:
    from .transformers_scheduler import AlignedScheduler

__all__ = ["WINDOW", "register", "unregister", "using", "verify"]

WINDOW = Window("transformers", ("transformers",), first="5.23", last="5.23")
_WAIT_S = 60.0


def register(
    policy: str = "cost_aligned",
    *,
    name: str | None = None,
    costs: Costs | None = None,
    parts: bool | None = None,
    log: StepLog | None = None,
    clock: Callable[[], float] = time.perf_counter,
    any_version: bool = False,
    **options: Any,
) -> type[AlignedScheduler]:
    """Make a policy known to transformers as a ``scheduler_type`` called ``name`` (default: as the policy).

    ``options`` are the policy's own. ``parts``: whether a step is run in several where that is faster; None: where that
    was tested, with packed attention (``sdpa``, ``eager``) on a CPU. What a step costs is then learned from the steps,
    unless ``costs`` are ``PackedCosts``. Where steps are not parted, ``costs`` are what the policy decides by.
    ``log`` takes a line for every step of the engine; ``clock`` tells seconds.

    Each engine that starts has a policy and a memory of its own. Raises ConfigError where transformers is not one of
    the versions the tests ran with (``any_version`` overrides that, with a warning), the name is taken, an option is
    none of the policy's, or other costs than packed ones are to be parted by; nothing is registered then.
    """
    WINDOW.check(override=any_version)
    from .transformers_scheduler import AlignedScheduler, Settings

    settings = Settings(policy, options, costs, parts, log, clock)
    settings.policy_made()
    if parts and costs is not None and settings.packed is None:
        raise ConfigError(f"register: parts are planned by PackedCosts, and costs are {type(costs).__name__}")
    mapping, name = _mapping(), policy if name is None else name
    if name in mapping:
        ours = issubclass(mapping[name], AlignedScheduler)
        why = "is registered already: unregister it first" if ours else "is a scheduler of transformers' own"
        raise ConfigError(f"register: the name {show(name)} {why}")
    kind = type("AlignedScheduler", (AlignedScheduler,), {"settings": settings, "__doc__": AlignedScheduler.__doc__})
    mapping[name] = kind
    return kind


def unregister(name: str = "cost_aligned") -> None:
    """Take a name back; engines that run keep their scheduler. Raises ConfigError for a name we did not register."""
    mapping = _mapping()
    from .transformers_scheduler import AlignedScheduler

    if name not in mapping or not issubclass(mapping[name], AlignedScheduler):
        raise ConfigError(f"unregister: {show(name)} is not registered by alignedsched")
    del mapping[name]


@contextmanager
def using(policy: str = "cost_aligned", *, name: str | None = None, **options: Any) -> Iterator[type[AlignedScheduler]]:
    """As ``register``, for the time of a ``with`` block; raises ExecutorError at its end if no engine used it."""
    kind = register(policy, name=name, **options)
    name = policy if name is None else name
    try:
        yield kind
    finally:
        unregister(name)
    if not kind.started:
        raise ExecutorError(f"no engine was started with scheduler_type={name!r}: transformers ran something else")


def verify(manager: Any, *, timeout_s: float = _WAIT_S) -> AlignedScheduler:
    """The scheduler of ours that a started ``ContinuousBatchingManager`` runs.

    Waits for the engine to be up, at most ``timeout_s`` seconds. Raises ExecutorError if it runs another scheduler, if
    it has died, or if it is not up in time.
    """
    from .transformers_scheduler import AlignedScheduler

    until = time.monotonic() + timeout_s
    while manager.batch_processor is None:
        status = manager.background_thread_status
        if status.fatal_error is not None:
            raise ExecutorError(f"the engine did not start: {status.fatal_error}") from status.fatal_error
        if time.monotonic() > until or not manager.is_running():
            raise ExecutorError("verify: the manager does not run; start it first")
        time.sleep(0.01)
    scheduler = manager.batch_processor.scheduler
    if not isinstance(scheduler, AlignedScheduler):
        raise ExecutorError(
            f"the engine runs {type(scheduler).__name__} and not alignedsched: its scheduler_type is "
            f"{manager.continuous_batching_config.scheduler_type!r}; registered are "
            f"{', '.join(name for name, kind in _mapping().items() if issubclass(kind, AlignedScheduler)) or 'none'}"
        )
    return scheduler


def _mapping() -> dict[str, type[Any]]:
    """Where transformers looks schedulers up."""
    from transformers.generation.continuous_batching.scheduler import SCHEDULER_MAPPING

    mapping: dict[str, type[Any]] = SCHEDULER_MAPPING
    return mapping
