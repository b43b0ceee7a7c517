"""The engine as its callers meet it: batches, streams, cancels, errors that reach who asked, and a clean end."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from alignedsched.costs import AffineCosts
from alignedsched.errors import CallerError, ConfigError, ExecutorError
from alignedsched.registry import policy_names
from alignedsched.report.terminal import METRICS
from alignedsched_torch.clusters import Workers
from alignedsched_torch.engine import Engine
from alignedsched_torch.prompts import Completion, Prompt, Token
from alignedsched_torch.sampling import Sampling
from alignedsched_torch.tiny import write_tiny
from alignedsched_torch.workers import WorkersExecutor

ASKED = [[(7 * i + j) % 250 for j in range(1 + 9 * i % 40)] for i in range(12)]


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("served")
    write_tiny(path, "llama", hidden=32, layers=2, positions=256)
    return path


@pytest.fixture
def engine(folder: Path) -> Iterator[Engine]:
    with Engine(folder, dtype="float64", kv_tokens=4096) as engine:
        yield engine


@pytest.fixture(scope="session")
def wanted(folder: Path) -> list[tuple[int, ...]]:
    """Greedy answers, one request at a time."""
    with Engine(folder, dtype="float64", max_members=1) as engine:
        return [engine.generate([prompt], max_new_tokens=12)[0].tokens for prompt in ASKED]


def threads() -> set[str]:
    return {thread.name for thread in threading.enumerate()}


OPTIONS: list[dict[str, Any]] = [
    *({"policy": name} for name in policy_names() if name != "sjf_oracle"),
    {"run_ahead": 2, "page_size": 1},
    {"topology": "disaggregated", "kv_tokens": 1024},
    {"topology": "disaggregated", "kv_tokens": 1024, "host_tokens": 2048, "policy": "density_first", "relay_slots": 2},
    {"kv_tokens": 200, "host_tokens": 2048, "max_tokens": 16, "max_members": 5, "host_chunk_bytes": 4096},
    {"kv_tokens": 200, "host_tokens": 2048, "max_tokens": 16, "max_members": 5},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_a_batch_gives_every_answer_under_every_policy(
    folder: Path, wanted: list[tuple[int, ...]], options: dict[str, Any]
) -> None:
    with Engine(folder, dtype="float64", **{"kv_tokens": 4096, **options}) as engine:
        answers = engine.generate(ASKED, max_new_tokens=12)
        figures = engine.figures()
    assert [answer.tokens for answer in answers] == wanted
    assert {answer.reason for answer in answers} == {"length"}
    assert figures["requests"]["finished"] == len(ASKED)
    assert figures["output_tokens"] == 12 * len(ASKED)
    assert "alignedsched-loop" not in threads()


def test_one_bad_prompt_does_not_stop_the_others(engine: Engine, wanted: list[tuple[int, ...]]) -> None:
    bad: list[Any] = ["", [999], list(range(250)) * 2, 5, Prompt([1], max_new_tokens=0)]
    asked: list[Any] = [*ASKED[:2], *bad, ASKED[2]]
    answers = engine.generate(asked, max_new_tokens=12)
    assert [answers[at].tokens for at in (0, 1, -1)] == wanted[:3]
    said = [str(answer.error) for answer in answers[2:-1]]
    for message, words in zip(said, ("empty", "999", "500 tokens", "got int", "max_new_tokens"), strict=True):
        assert words in message
    assert all(answer.reason == "error" and isinstance(answer.error, CallerError) for answer in answers[2:-1])


def test_what_can_never_fit_ends_with_the_schedulers_word(folder: Path) -> None:
    with Engine(folder, kv_tokens=32) as engine:
        long, short = engine.generate([list(range(60)), [1, 2]], max_new_tokens=4)
    assert isinstance(long.error, ExecutorError)
    assert "rejected" in str(long.error)
    assert len(short.tokens) == 4


def test_answers_end_at_stop_tokens_limits_and_the_last_position(engine: Engine, wanted: list[tuple[int, ...]]) -> None:
    stop = wanted[3][5]
    first = wanted[3].index(stop) + 1
    (stopped,) = engine.generate([ASKED[3]], max_new_tokens=12, stop=(stop,))
    assert (stopped.tokens, stopped.reason) == (wanted[3][:first], "stop")
    prompts: list[Any] = [Prompt(ASKED[3], stop=(stop, 300)), Prompt(ASKED[3], max_new_tokens=2), list(range(250))]
    answers = engine.generate(prompts, max_new_tokens=12)
    assert [len(answer.tokens) for answer in answers] == [first, 2, 6]
    assert [answer.reason for answer in answers] == ["stop", "length", "length"]


def test_a_seed_gives_the_same_draws_in_any_company(engine: Engine) -> None:
    drawn = Prompt("seeded", sampling=Sampling(1.0, 0.95, 50, seed=3))
    alone = engine.generate([drawn], max_new_tokens=20)[0]
    asked: list[Any] = [*ASKED, drawn, Prompt("seeded", sampling=Sampling(1.0, seed=4))]
    together = engine.generate(asked, max_new_tokens=20)
    assert together[-2].tokens == alone.tokens
    assert together[-1].tokens != alone.tokens


def test_tokens_told_one_by_one_are_those_of_the_completion(engine: Engine) -> None:
    told: dict[int, list[Token]] = {}
    ended: dict[int, Completion] = {}
    prompts = ["Grüße, 世界", "x", "yes"]
    for number, item in engine.generate_each(prompts, max_new_tokens=30, sampling=Sampling(1.0)):
        assert number not in ended
        if isinstance(item, Token):
            told.setdefault(number, []).append(item)
        else:
            ended[number] = item
    assert sorted(ended) == [0, 1, 2]
    for number, completion in ended.items():
        assert tuple(token.id for token in told[number] if token.id is not None) == completion.tokens
        assert "".join(token.text for token in told[number]) == completion.text


def test_leaving_a_batch_cancels_the_rest_of_it(engine: Engine) -> None:
    each = engine.generate_each(ASKED, max_new_tokens=200)
    next(each)
    each.close()  # type: ignore[attr-defined]
    engine.generate([[1]], max_new_tokens=1)
    while not engine.scheduler.idle():
        threading.Event().wait(0.001)
    assert engine.figures()["requests"]["cancelled"] == len(ASKED)
    assert not engine.executor.jobs


def test_streams_run_side_by_side_and_closing_one_cancels_it(engine: Engine, wanted: list[tuple[int, ...]]) -> None:
    async def read(prompt: list[int], most: int) -> list[int]:
        got: list[int] = []
        stream = engine.stream(prompt, max_new_tokens=12 if most == 12 else 200)
        async for token in stream:
            got += [token.id] if token.id is not None else []
            if len(got) == most:
                break
        await stream.aclose()  # type: ignore[attr-defined]
        return got

    async def everything() -> list[list[int]]:
        return await asyncio.gather(*(read(prompt, 12 if n % 2 else 3) for n, prompt in enumerate(ASKED)))

    for n, got in enumerate(asyncio.run(everything())):
        assert tuple(got) == wanted[n][: len(got)]
        assert len(got) == (12 if n % 2 else 3)


def test_errors_reach_who_streams(engine: Engine) -> None:
    async def read(prompt: Any) -> list[Token]:
        return [token async for token in engine.stream(prompt)]

    with pytest.raises(CallerError, match="empty"):
        asyncio.run(read(""))

    def fail(*_: object) -> None:
        raise RuntimeError("out of luck")

    engine.executor.submit = fail  # type: ignore[method-assign, assignment]
    with pytest.raises(ExecutorError, match="the engine stopped: RuntimeError: out of luck"):
        asyncio.run(read([1, 2]))
    with pytest.raises(ExecutorError, match="out of luck"):
        engine.generate([[1]])


def test_closing_cancels_what_is_open_and_ends_the_thread(folder: Path) -> None:
    engine = Engine(folder)
    each = engine.generate_each(ASKED, max_new_tokens=200)
    next(each)
    engine.close()
    reasons = {item.reason for _, item in each if isinstance(item, Completion)}
    assert reasons == {"cancelled"}
    assert "alignedsched-loop" not in threads()
    engine.close()
    with pytest.raises(ExecutorError, match="closed"):
        engine.generate([[1]])


def test_an_idle_engine_asks_nothing_of_the_processor(engine: Engine) -> None:
    engine.generate([[1]], max_new_tokens=2)
    turns = 0
    handle = engine.scheduler.handle

    def counted(*arguments: Any) -> Any:
        nonlocal turns
        turns += 1
        return handle(*arguments)

    engine.scheduler.handle = counted  # type: ignore[method-assign, assignment]
    threading.Event().wait(0.05)
    assert turns <= 1


def test_a_dtype_that_only_the_checkpoint_names_is_refused_with_its_file(tmp_path: Path) -> None:
    write_tiny(tmp_path, layers=1, hidden=32)
    file = tmp_path / "config.json"
    file.write_text(file.read_text().replace('"float32"', '"int8"'))
    with pytest.raises(ConfigError, match=r"config\.json: dtype 'int8' is not supported"):
        Engine(tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "int8"}, "dtype 'int8' is not supported; supported: float64"),
        ({"device": "tpu"}, "device 'tpu' is not known"),
        ({"device": "cuda:99"}, "device 'cuda:99': torch sees"),
        ({"topology": "ring"}, "topology 'ring' is not known"),
        ({"policy": "best"}, "unknown policy 'best'"),
        ({"kv_tokens": 0}, "kv_tokens must be at least 1"),
        ({"max_members": 0}, "max_members"),
    ],
)
def test_wrong_options_are_named(folder: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Engine(folder, **options)


# -- over worker processes

needs_linux = pytest.mark.skipif(sys.platform != "linux", reason="workers need Linux: memfd, eventfd, SEQPACKET")


@pytest.fixture(scope="session")
def crew(folder: Path) -> Iterator[Engine]:
    """A worker that prefills and one that decodes, for all of these tests."""
    options: dict[str, Any] = {"policy": "density_first", "kv_tokens": 2048, "host_tokens": 4096}
    with Engine(folder, dtype="float64", workers=Workers(1, prefill=1), **options) as engine:
        yield engine


@needs_linux
def test_workers_give_the_answers_of_one_process(crew: Engine, wanted: list[tuple[int, ...]]) -> None:
    before = crew.figures()["requests"]["finished"]
    asked: list[Any] = [*ASKED, [999], Prompt(ASKED[3], max_new_tokens=2)]
    answers = crew.generate(asked, max_new_tokens=12)
    assert [answer.tokens for answer in answers] == [*wanted, (), wanted[3][:2]]
    assert [answer.reason for answer in answers] == [*["length"] * len(ASKED), "error", "length"]
    figures = crew.figures()
    assert figures["requests"]["finished"] == before + len(ASKED) + 1
    assert figures["copies"]["peer_bytes"]
    assert figures["steps"] >= 12


@needs_linux
def test_a_stream_over_workers_may_be_left(crew: Engine) -> None:
    async def read() -> list[int]:
        got: list[int] = []
        stream = crew.stream([1, 2, 3], max_new_tokens=240)
        async for token in stream:
            got += [token.id] if token.id is not None else []
            if len(got) == 5:
                break
        await stream.aclose()  # type: ignore[attr-defined]
        return got

    (whole,) = crew.generate([[1, 2, 3]], max_new_tokens=5)
    before = sum(crew.figures()["requests"][how] for how in ("finished", "cancelled"))
    assert tuple(asyncio.run(read())) == whole.tokens
    (after,) = crew.generate([[1, 2, 3]], max_new_tokens=5)  # the event loop is closed, the engine goes on
    assert after.tokens == whole.tokens
    while not crew.scheduler.idle():
        threading.Event().wait(0.001)
    assert sum(crew.figures()["requests"][how] for how in ("finished", "cancelled")) == before + 2
    assert not crew.executor.jobs


@needs_linux
def test_a_worker_killed_under_an_engine_costs_time_and_no_token(crew: Engine, wanted: list[tuple[int, ...]]) -> None:
    assert isinstance(crew.executor, WorkersExecutor)
    each = crew.generate_each(ASKED, max_new_tokens=12)
    made: dict[int, tuple[int, ...]] = {}
    for number, (place, item) in enumerate(each):
        if number == 3:
            os.kill(crew.executor.pids("lane-d0")[0], signal.SIGKILL)
        if isinstance(item, Completion):
            made[place] = item.tokens
    assert [made[place] for place in range(len(ASKED))] == wanted
    (after,) = crew.generate([ASKED[0]], max_new_tokens=12)  # if all was made before the worker died
    assert after.tokens == wanted[0]
    assert "died" in crew.executor.lost[-1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"workers": Workers(tensor_parallel=3)}, "tensor_parallel 3"),
        ({"workers": Workers(), "device": "tpu"}, "device 'tpu' is not known"),
        ({"workers": Workers(), "relay_slots": 2}, "relay_slots and host_chunk_bytes are of one process"),
        ({"workers": Workers(), "host_chunk_bytes": 4096}, "relay_slots and host_chunk_bytes are of one process"),
        ({"workers": Workers(), "device": "cuda"}, "kv_tokens must be given"),
        ({"workers": Workers(prefill=1), "device": "cuda", "kv_tokens": 64}, "not supported on GPUs yet"),
        ({"workers": Workers(), "kv_tokens": 0}, "kv_tokens"),
    ],
)
def test_wrong_workers_are_named(folder: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Engine(folder, **options)
    with pytest.raises(ConfigError, match="prefill must be a whole number of at least 0"):
        Workers(prefill=-1)


def test_figures_are_those_of_compare(engine: Engine) -> None:
    engine.generate([[1, 2, 3]], max_new_tokens=2)
    figures = engine.figures()
    assert figures["bubbles"]["iteration"] is None, "too little was seen to price imbalance"
    assert figures["bound_ratio"] is None
    for _ in range(4):
        engine.generate([[1, 2, 3], [4]], max_new_tokens=3)
        engine.generate(ASKED, max_new_tokens=12)
    figures = engine.figures()
    assert sum(figures["bubbles"].values()) <= 1
    assert min(figures["bubbles"].values()) >= 0
    assert figures["bound_s"] > 0
    assert figures["bound_ratio"] == pytest.approx(figures["bound_s"] / figures["wall_s"])
    shown = {metric.label for metric in METRICS if metric.known(figures)}
    assert {metric.label for metric in METRICS} - shown == {"simulated time"}


def test_imbalance_is_priced_by_the_surface_that_is_given(folder: Path) -> None:
    """On a surface that knows nothing but the longest, a long member beside short ones is most of the step lost."""
    surface = AffineCosts(0.0, 0.0, 1.0, surface="padded")
    with Engine(folder, dtype="float64", kv_tokens=4096, costs=surface, max_horizon=1) as engine:
        engine.generate([[1] * 200, *[[2]] * 7], max_new_tokens=20)
        uneven = engine.figures()["bubbles"]
    assert uneven["iteration"] > 0.25
    with Engine(folder, dtype="float64", kv_tokens=4096, costs=surface) as engine:
        engine.generate([[1] * 20] * 8, max_new_tokens=20)
        assert engine.figures()["bubbles"]["iteration"] < 0.01
