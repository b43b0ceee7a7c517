"""What driver and workers tell each other, as records that are written and read as plain data, never as code."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from attrs import frozen

from alignedsched.errors import ExecutorError
from alignedsched.events import StepsDone, StepsFailed
from alignedsched.plan import Drop, Step
from alignedsched.request import Request, RequestId
from alignedsched.story.codec import register

from ..job import Job
from ..sampling import Sampling


@frozen
class News:
    """What a lane does not know of a request yet: all of it (``limit`` above 0), or tokens made elsewhere since.

    ``produced`` are its tokens from the ``known``-th on.
    """

    request: RequestId
    known: int
    produced: tuple[int, ...]
    prompt: tuple[int, ...] = ()
    limit: int = 0
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int = 0
    stops: tuple[int, ...] = ()
    heard: bool = False  # somebody wants each token at once


@frozen
class Move:
    """Copy KV of tokens ``start`` to ``end``; ``pages`` are the far side's from the one with ``start`` on, by rank.

    One of the two tiers is the worker's own, or both are.
    """

    copy: int
    request: RequestId
    source: str
    target: str
    start: int
    end: int
    pages: tuple[tuple[int, ...], ...] = ()


@frozen
class Moved:
    """A rank's share of a copy has ended: it has arrived, or ``error`` says why not."""

    copy: int
    error: str = ""


@frozen
class Lend:
    """Tell which pages hold these tokens, and leave them alone until they are given back."""

    copy: int
    request: RequestId
    source: str
    start: int
    end: int


@frozen
class Orders:
    """One plan, as far as it is a lane's business. To be carried out in the order of the fields."""

    returned: tuple[int, ...] = ()  # lent pages nobody reads any more, by copy
    news: tuple[News, ...] = ()
    drops: tuple[Drop, ...] = ()
    releases: tuple[RequestId, ...] = ()
    moves: tuple[Move, ...] = ()
    lends: tuple[Lend, ...] = ()
    steps: tuple[Step, ...] = ()
    hold: bool = False  # tell what the lane has done, and launch nothing before ``go``
    go: bool = False  # what was told has been answered

    def __bool__(self) -> bool:
        return any((self.returned, self.news, self.drops, self.releases, self.moves, self.lends, self.steps))


@frozen
class Made:
    """Tokens of a request from the ``known``-th on."""

    request: RequestId
    known: int
    tokens: tuple[int, ...]


@frozen
class Told:
    """A worker tells: what its lane has done with the tokens it made, its copies that ended, the pages it lends."""

    made: tuple[Made, ...] = ()
    events: tuple[StepsDone | StepsFailed, ...] = ()
    moved: tuple[Moved, ...] = ()
    lent: tuple[tuple[int, tuple[int, ...]], ...] = ()  # (copy, pages)
    held: bool = False  # the lane launches nothing before ``go``
    broken: str = ""  # why this worker ends

    def __bool__(self) -> bool:
        return any((self.made, self.events, self.moved, self.lent, self.held, self.broken))


register(News, Move, Moved, Lend, Orders, Made, Told)


def all_of(job: Job) -> News:
    """Everything a lane needs of a request."""
    way = job.sampling
    return News(
        job.id, 0, tuple(job.produced), tuple(job.prompt.tolist()), job.limit, way.temperature, way.top_p, way.top_k,
        way.seed, tuple(sorted(job.stops)), job.heard is not None,
    )  # fmt: skip


def learn(jobs: dict[RequestId, Job], news: News, spoke: Callable[[RequestId], None]) -> None:
    """Take news of a request into a lane's jobs. Tokens it made itself meanwhile stay.

    ``spoke`` is called with each token of a request of which somebody wants them at once.

    Raises ExecutorError when tokens between what it has and the news are missing.
    """
    job = jobs.get(news.request)
    if job is None:
        way = Sampling(news.temperature, news.top_p, news.top_k, news.seed)
        request = Request(news.request, len(news.prompt), news.limit)
        prompt, name = np.array(news.prompt, dtype=np.int64), news.request
        job = Job(request, prompt, news.limit, way, frozenset(news.stops))
        if news.heard:
            job.heard = lambda _: spoke(name)
        jobs[news.request] = job
    if len(job.produced) < news.known:
        raise ExecutorError(f"news of {job.id!r} begin at token {news.known}, {len(job.produced)} are known")
    job.produced += news.produced[len(job.produced) - news.known :]
