"""What an engine is asked and what it answers: prompts, tokens as they come, completions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from attrs import frozen

from alignedsched.errors import AlignedSchedError

from .sampling import Sampling

Content = str | Sequence[int]  # text, or token ids


@frozen
class Prompt:
    """What is to be continued, and how where that differs from what the call says. ``stop``: token ids that end it."""

    content: Content
    max_new_tokens: int | None = None
    sampling: Sampling | None = None
    stop: tuple[int, ...] | None = None


@frozen
class Token:
    """One more token. ``text`` is what is certain of the answer's text since the token before; it may be empty.

    ``id`` None: no token, but text that was held back until the answer ended.
    """

    id: int | None
    text: str


@frozen
class Completion:
    """How a prompt ended. ``text`` is None without a tokenizer, ``error`` None but for reason ``error``.

    A stop token is the last of ``tokens``; special tokens are left out of ``text``.
    """

    prompt_tokens: int
    tokens: tuple[int, ...]
    text: str | None
    reason: Literal["stop", "length", "cancelled", "error"]
    error: AlignedSchedError | None = None
