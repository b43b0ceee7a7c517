"""Forms: of what kind every field of an event has to be, whatever it says; looked at before anything changes.

Whether it can be true is another matter, and looked at when it is the event's turn.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from .errors import CallerError, ExecutorError
from .events import (
    Arrived,
    Cancelled,
    CapacityChanged,
    CopyDone,
    CopyFailed,
    DeviceBack,
    DeviceLost,
    Draining,
    Event,
    LaneBack,
    LaneLost,
    LinkChanged,
    Paused,
    Resumed,
    StagedLost,
    StepsDone,
    StepsFailed,
    WeightsChanged,
)
from .outside import is_count, is_number, show
from .request import Request

_INF = math.inf
Form = tuple[Callable[[Any], bool], str]


_ROWS = (tuple, list)


def _is_ids(value: Any) -> bool:
    return isinstance(value, _ROWS) and all(isinstance(one, str) for one in value)


def _is_ends(value: Any) -> bool:
    if not isinstance(value, _ROWS):
        return False
    ids = set()
    for end in value:
        if not isinstance(end, _ROWS) or len(end) != 2 or not isinstance(end[0], str) or type(end[1]) is not int:
            return False
        ids.add(end[0])
    return len(ids) == len(value)


NAME: Form = (lambda value: isinstance(value, str), "a string")
NUMBER: Form = (lambda value: type(value) is int, "an integer")
COUNT: Form = (is_count, "an integer of at least 0")
IDS: Form = (_is_ids, "a tuple of ids")
ENDS: Form = (_is_ends, "a tuple of (id, step), each id once")
RATE: Form = (lambda value: is_number(value, 0.0) or value == _INF, "a number of at least 0")
SECONDS: Form = (lambda value: is_number(value, 0.0), "finite and at least 0")
MOMENT: Form = (lambda value: value is None or is_number(value), "a finite time or None")
STEP: Form = (lambda value: value is None or type(value) is int, "an integer or None")

_STEPS: dict[str, Form] = {"lane": NAME, "order": NUMBER, "first": NUMBER, "through": NUMBER, "finished": ENDS}
_FORMS: dict[type, dict[str, Form]] = {
    Arrived: {"request": (lambda value: isinstance(value, Request), "a Request")},
    Cancelled: {"request": NAME},
    StepsDone: {**_STEPS, "prefilled": IDS, "seconds": SECONDS, "launched": STEP, "ended": MOMENT},
    StepsFailed: {**_STEPS, "reason": NAME, "poisoned": IDS},
    CopyDone: {"copy": NUMBER},
    CopyFailed: {"copy": NUMBER, "reason": NAME},
    CapacityChanged: {"tier": NAME, "blocks": COUNT},
    LinkChanged: {"source": NAME, "target": NAME, "bytes_per_s": RATE},
    LaneLost: {"lane": NAME},
    LaneBack: {"lane": NAME, "next_step": NUMBER},
    DeviceLost: {"device": NAME},
    DeviceBack: {"device": NAME, "next_step": NUMBER},
    StagedLost: {"device": NAME, "requests": IDS},
    WeightsChanged: {},
    Paused: {},
    Resumed: {},
    Draining: {},
}


def check_form(event: Event) -> None:
    """Raise CallerError for what is no event; CallerError or ExecutorError naming a field that is not of its kind.

    O(what the event names).
    """
    form = _FORMS.get(type(event))
    if form is None:
        raise CallerError(f"{show(event)} is no event; known: {', '.join(kind.__name__ for kind in _FORMS)}")
    for name, (fits, words) in form.items():
        value = getattr(event, name)
        if not fits(value):
            field = f"{type(event).__name__}.{name}"
            if isinstance(event, StepsDone | StepsFailed):
                field = f"lane {show(event.lane)}, order {show(event.order)}: {name}"
            error = CallerError if isinstance(event, Arrived | Cancelled) else ExecutorError
            raise error(f"{field} must be {words}, got {show(value)}")


def check_steps(event: StepsDone) -> None:
    """``check_form`` of the most frequent event: a few comparisons, and one for each that the report names."""
    seconds, launched, ended = event.seconds, event.launched, event.ended
    if (
        type(event.lane) is not str
        or type(event.order) is not int
        or type(event.first) is not int
        or type(event.through) is not int
        or type(seconds) is not float
        or not 0.0 <= seconds < _INF
        or (launched is not None and type(launched) is not int)
        or (ended is not None and not (type(ended) is float and abs(ended) < _INF))
        or (event.finished != () and not _is_ends(event.finished))
        or (event.prefilled != () and not _is_ids(event.prefilled))
    ):
        check_form(event)
