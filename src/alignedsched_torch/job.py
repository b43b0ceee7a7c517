"""What the executor keeps of a request: its tokens, how more are chosen, and when it ends."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from attrs import define, field

from alignedsched.request import Request, RequestId

from .sampling import Sampling

Ids = np.ndarray[Any, np.dtype[np.int64]]


@define(eq=False)
class Job:
    """One request. ``limit``: tokens it makes at most; ``stops``: tokens that end it; ``heard`` is told each one."""

    request: Request
    prompt: Ids
    limit: int
    sampling: Sampling = field(factory=Sampling)
    stops: frozenset[int] = frozenset()
    heard: Callable[[int], None] | None = None
    produced: list[int] = field(factory=list)
    slot: int = -1  # its row in a lane's table while it decodes there, or its last chunk is under way
    ended: bool = False

    @property
    def id(self) -> RequestId:
        return self.request.id

    def tokens(self, start: int, end: int) -> Ids:
        """Tokens ``start`` to ``end`` (exclusive) of prompt and what it has made."""
        prompt = len(self.prompt)
        if end <= prompt:
            return self.prompt[start:end]
        made = np.array(self.produced[max(0, start - prompt) : end - prompt], dtype=np.int64)
        return np.concatenate((self.prompt[start:], made)) if start < prompt else made

    def ends_with(self, token: int) -> bool:
        """Whether this token, the last of ``produced``, is the last it makes."""
        return token in self.stops or len(self.produced) >= self.limit
