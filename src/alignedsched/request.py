"""What a client asks for: one request, as lengths; the tokens themselves stay with the executor."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from attrs import field, frozen

from .errors import CallerError
from .outside import show

RequestId = str
Validator = Callable[[Any, Any, Any], None]


def _count(minimum: int) -> Validator:
    def validate(instance: Any, attribute: Any, value: Any) -> None:
        if type(value) is not int or value < minimum:
            raise CallerError(
                f"{type(instance).__name__}.{attribute.name} must be an integer of at least {minimum}, "
                f"got {show(value)}"
            )

    return validate


def _seconds(instance: Any, attribute: Any, value: Any) -> None:
    if type(value) not in (int, float) or not 0 <= value <= sys.float_info.max:
        raise CallerError(
            f"{type(instance).__name__}.{attribute.name} must be finite seconds of at least 0, got {show(value)}"
        )


def _maybe(validator: Validator) -> Validator:
    def validate(instance: Any, attribute: Any, value: Any) -> None:
        if value is not None:
            validator(instance, attribute, value)

    return validate


def _name(instance: Any, attribute: Any, value: Any) -> None:
    if type(value) is not str or not value:
        raise CallerError(f"{type(instance).__name__}.{attribute.name} must be a non-empty string, got {show(value)}")


def _text(instance: Any, attribute: Any, value: Any) -> None:
    if value is not None and type(value) is not str:
        raise CallerError(f"{type(instance).__name__}.{attribute.name} must be a string or None, got {show(value)}")


@frozen
class Request:
    """One request of a client.

    ``output_limit`` is the most tokens it may produce (``None``: up to the model's last position). What it really
    produces is known only when the executor reports it finished. Times are seconds on the caller's clock;
    ``ttft_target`` and ``tpot_target`` are seconds, ``deadline`` a point in time. ``kind`` names what may not be
    mixed freely in one batch (an adapter, say). Orders other than that of arrival let requests age from ``arrival``,
    which nobody fills in: where all keep 0.0 nobody ages.

    Raises CallerError naming the field when a value is out of range.
    """

    id: RequestId = field(validator=_name)
    prompt_tokens: int = field(validator=_count(1))
    output_limit: int | None = field(default=None, validator=_maybe(_count(1)))
    arrival: float = field(default=0.0, validator=_seconds)
    priority: int = 0  # larger goes first where a policy looks at it
    tenant: str | None = field(default=None, validator=_text)
    deadline: float | None = field(default=None, validator=_maybe(_seconds))
    ttft_target: float | None = field(default=None, validator=_maybe(_seconds))
    tpot_target: float | None = field(default=None, validator=_maybe(_seconds))
    block_hashes: tuple[int, ...] = ()  # chained content hashes of the prompt's blocks (shared prefixes)
    session: str | None = field(default=None, validator=_text)
    kind: str | None = field(default=None, validator=_text)
