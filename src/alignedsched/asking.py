"""Asking: a policy's answers and the caller's hook; what they raise, and what is no answer, is said to be theirs.

Answers are held against their shape here, as they are read and before anything of them is taken. Whether what they
name is there, in a state for it, and has room is for whoever takes them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from typing import Any, TypeVar

from .errors import HookError, PolicyError
from .outside import is_number, show
from .policies.protocols import Composition, Evict, Policy, Sacrifice, Take, Transfer
from .request import Request, RequestId
from .views import LaneView

T = TypeVar("T")
_WORDS = {str: "a string", int: "an integer", bool: "True or False"}
_FIELDS: dict[type, dict[str, type]] = {
    Take: {"request": str, "tokens": int, "rank": int},
    Transfer: {"request": str, "target": str, "keep": bool, "why": str},
    Evict: {"request": str, "tier": str},
}


def ask(policy: Policy, question: Callable[[], T]) -> T:
    """Ask a policy; what it raises becomes a PolicyError that names it, what the caller's hook raises a HookError."""
    try:
        return question()
    except (PolicyError, HookError):
        raise
    except Exception as error:
        raise PolicyError(policy.name, f"raised {type(error).__name__}: {error}") from error


def hooked(hook: Callable[[Request], bool]) -> Callable[[Request], bool]:
    """The caller's ``eligible`` hook, asked so that what it raises becomes a HookError, whoever asks."""

    def asked(request: Request) -> bool:
        try:
            return bool(hook(request))
        except Exception as error:
            what = f"{type(error).__name__}: {error}"
            raise HookError(f"the `eligible` hook raised {what}, asked about request {show(request.id)}") from error

    return asked


def composition(policy: Policy, view: LaneView) -> Composition:
    """What batching wants of a lane. Raises PolicyError. O(what it names)."""
    return ask(policy, lambda: _composition(policy, policy.batching.compose(view)))


def takes(policy: Policy, view: LaneView) -> list[Take]:
    """Whom admission wants prefilled. Raises PolicyError. O(what it names)."""
    return ask(policy, lambda: _records(policy, "admit", policy.admission.admit(view), Take))


def wishes(policy: Policy, view: LaneView) -> list[Transfer | Evict]:
    """Where residency wants KV. Raises PolicyError. O(what it names)."""
    return ask(policy, lambda: _records(policy, "place", policy.residency.place(view), Transfer, Evict))


def victims(policy: Policy, view: LaneView, rank: int, blocks: int) -> list[tuple[RequestId, Sacrifice]]:
    """Whom batching gives up first on a rank that is so many blocks short. Raises PolicyError. O(what it names)."""
    return ask(policy, lambda: _victims(policy, policy.batching.victims(view, rank, blocks)))


def _composition(policy: Policy, answer: Any) -> Composition:
    if not isinstance(answer, Composition):
        raise PolicyError(policy.name, f"compose must return a Composition, got {show(answer)}")
    _check_ids(policy, "joins", answer.joins)
    _check_ids(policy, "candidates", answer.candidates)
    _check_ids(policy, "parks", answer.parks)
    _check_ids(policy, "unclaims", answer.unclaims)
    _check_moment(policy, "compose", "wake_at", answer.wake_at)
    _check_moment(policy, "compose", "look_at", answer.look_at)
    if not isinstance(answer.why, str):
        raise PolicyError(policy.name, f"compose: why must be a string, got {show(answer.why)}")
    return answer


def _check_ids(policy: Policy, name: str, ids: Any) -> None:
    plain = type(ids) is tuple or type(ids) is list  # as nearly always; asking a protocol takes far longer
    if not plain and (isinstance(ids, str) or not isinstance(ids, Collection)):
        raise PolicyError(policy.name, f"compose: {name} must be a sequence of ids, got {show(ids)}")
    for one in ids:
        if not isinstance(one, str):
            raise PolicyError(policy.name, f"compose: {name} must name requests by their ids, got {show(one)}")


def _check_moment(policy: Policy, method: str, name: str, moment: object) -> None:
    if moment is not None and not is_number(moment):
        raise PolicyError(policy.name, f"{method}: {name} must be finite seconds or None, got {show(moment)}")


def _records(policy: Policy, method: str, answer: Iterable[Any], *kinds: type) -> list[Any]:
    records = list(answer)
    for record in records:
        kind: type | None = type(record)
        if kind not in kinds:
            kind = next((kind for kind in kinds if isinstance(record, kind)), None)
        if kind is None:
            names = " or ".join(kind.__name__ for kind in kinds)
            raise PolicyError(policy.name, f"{method} must give a {names} each time, got {show(record)}")
        for name, wanted in _FIELDS[kind].items():
            value = getattr(record, name)
            if type(value) is not wanted and not (wanted is str and isinstance(value, str)):
                what = f"{kind.__name__}.{name} must be {_WORDS[wanted]}, got {show(value)}"
                raise PolicyError(policy.name, f"{method}: {what}")
        if isinstance(record, Transfer):
            _check_moment(policy, method, "Transfer.deadline", record.deadline)
    return records


def _victims(policy: Policy, answer: Iterable[Any]) -> list[tuple[RequestId, Sacrifice]]:
    pairs = list(answer)
    for pair in pairs:
        fine = isinstance(pair, tuple) and len(pair) == 2
        if not (fine and isinstance(pair[0], str) and isinstance(pair[1], Sacrifice)):
            parts = f" {', '.join(map(show, pair))}" if fine else ""
            raise PolicyError(policy.name, f"victims must give (id, Sacrifice) each time, got {show(pair)}{parts}")
    return pairs
