"""Seeded requests for long runs: one at a time by ``random_request``, or a timed stream of them."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random

from attrs import frozen

from ..request import Request


@frozen
class Job:
    """A request and the tokens it will make, which nobody but the executor is told."""

    request: Request
    output_tokens: int


def random_request(
    rng: Random, name: str, *, arrival: float = 0.0, longest_prompt: int = 60, longest_output: int = 40
) -> Job:
    """A request with any mixture of the optional fields; with a limit or without, ending at it or before."""
    prompt = rng.choice((1, rng.randint(1, 8), rng.randint(1, longest_prompt)))
    output = rng.choice((1, rng.randint(1, 8), rng.randint(1, longest_output)))
    limit = rng.choice((None, output, output + rng.randint(0, 9)))
    request = Request(
        name,
        prompt,
        limit,
        arrival,
        priority=rng.choice((0, 0, 1, 2)),
        tenant=rng.choice((None, "t1", "t2")),
        deadline=rng.choice((None, arrival + rng.uniform(0.1, 10.0))),
        ttft_target=rng.choice((None, 0.5)),
        tpot_target=rng.choice((None, 0.05)),
        session=rng.choice((None, "s1")),
    )
    return Job(request, output)


def stream(
    rng: Random, count: int, spacing_s: float, *, longest_prompt: int = 60, longest_output: int = 40
) -> Iterator[Job]:
    """``count`` requests, ``spacing_s`` apart on average; now and then several at the same instant."""
    at = 0.0
    for number in range(count):
        at += rng.choice((0.0, 1.0, 2.0 * rng.expovariate(1.0))) * spacing_s
        yield random_request(
            rng, f"r{number}", arrival=at, longest_prompt=longest_prompt, longest_output=longest_output
        )
