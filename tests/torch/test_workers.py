"""Workers in processes of their own: the tokens of one process, whoever dies in between, and nothing left behind."""

from __future__ import annotations

import contextlib
import gc
import os
import select
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from alignedsched.cluster import Cluster, Device, Lane, Link, Role
from alignedsched.driver import drive
from alignedsched.errors import ConfigError, ExecutorError
from alignedsched.events import Arrived, DeviceBack, DeviceLost
from alignedsched.plan import Outcome, Plan
from alignedsched.registry import policy
from alignedsched.request import Request
from alignedsched.scheduler import Scheduler
from alignedsched_torch.executor import TorchExecutor
from alignedsched_torch.job import Job
from alignedsched_torch.models import Decoder, ModelConfig, load_weights
from alignedsched_torch.sampling import Sampling
from alignedsched_torch.tiny import write_tiny
from alignedsched_torch.workers import Limits, WorkersExecutor
from alignedsched_torch.workers.launch import PATH_VARIABLE, Listen
from alignedsched_torch.workers.memory import Region, Ring
from tests.torch.serving import HORIZON, colocated, make_devices, split

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="workers need Linux: memfd, eventfd, SEQPACKET")
VOCAB, PATIENCE_S = 64, 60.0


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("shared")
    write_tiny(path, "llama", vocab=VOCAB, hidden=32, layers=2, positions=512)
    return path


@pytest.fixture(scope="session")
def decoder(folder: Path) -> Decoder:
    config = ModelConfig.from_folder(folder)
    return Decoder(config, load_weights(folder, config, torch.float64, torch.device("cpu")))


def work() -> list[tuple[list[int], int, Sampling]]:
    """(prompt, tokens to make, how): short and long, greedy and drawn."""
    rng = np.random.default_rng(1)
    return [
        (
            rng.integers(0, VOCAB, int(rng.choice([3, 9, 17, 40, 90]))).tolist(),
            int(rng.integers(1, 24)),
            Sampling(0.8, 0.95, 30, number) if number % 4 == 3 else Sampling(),
        )
        for number in range(24)
    ]


class Served:
    """A scheduler over an executor, asked several times. ``tokens`` by place in ``work``."""

    def __init__(self, executor: WorkersExecutor | TorchExecutor, name: str = "fcfs", **options: bool | int) -> None:
        self.executor = executor
        self.cluster = executor.cluster
        self.scheduler = Scheduler(self.cluster, policy(name, **options), max_horizon=HORIZON)
        self.news: list[tuple[float, object]] = []
        self._round = 0

    def tokens(self, watch: Callable[[Plan], None] = lambda plan: None) -> list[list[int]]:
        self._round += 1
        jobs = []
        for number, (prompt, count, way) in enumerate(work()):
            job = Job(Request(f"{self._round}-{number}", len(prompt), count), np.array(prompt), count, way)
            self.executor.expect(job)
            jobs.append(job)
        outcomes: dict[str, Outcome] = {}

        def observe(now: float, events: tuple[object, ...], plan: Plan) -> None:
            self.scheduler.check()
            self.news += [(now, event) for event in events]
            outcomes.update((release.request, release.outcome) for release in plan.releases)
            watch(plan)

        drive(
            self.scheduler,
            self.executor,
            [(self.executor.now(), Arrived(job.request)) for job in jobs],
            observe=observe,
        )
        assert outcomes == {job.id: Outcome.FINISHED for job in jobs}
        assert not self.executor.jobs
        return [job.produced for job in jobs]


@pytest.fixture(scope="session")
def wanted(decoder: Decoder) -> list[list[int]]:
    """What one process makes of it, with plenty of memory; other tests hold that against transformers."""
    cluster = colocated(decoder, 2000, 4, 1)
    return Served(TorchExecutor(cluster, make_devices("cpu", cluster, 0), {"l0": decoder})).tokens()


def end(executor: WorkersExecutor) -> None:
    """Close it; nothing of it is left."""
    pids = [pid for lane in executor.cluster.lanes for pid in executor.pids(lane.id)]
    executor.close()
    executor.close()
    for pid in pids:
        assert not Path(f"/proc/{pid}").exists(), "no process, and no zombie"


def open_files() -> int:
    gc.collect()
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def shared_names() -> set[str]:
    """Names torch, multiprocessing and their like would leave."""
    known = ("psm_", "torch_", "sem.", "mp-", "gloo", "shm_")
    return {path.name for path in Path("/dev/shm").iterdir() if path.name.startswith(known)}


@pytest.fixture(scope="session")
def group(folder: Path, decoder: Decoder) -> Iterator[Served]:
    """Two tensor-parallel ranks whose memory is short."""
    before = shared_names()
    cluster = colocated(decoder, 50, 4, 1, host=400)
    executor = WorkersExecutor(cluster, folder, tensor_parallel=2, dtype="float64")
    yield Served(executor, swap=True)
    end(executor)
    assert shared_names() <= before


@pytest.fixture(scope="session")
def pair(folder: Path, decoder: Decoder) -> Iterator[Served]:
    """A prefill worker and a decode worker whose memory is short."""
    executor = WorkersExecutor(split(decoder, 60, 4, 1, 400), folder, dtype="float64")
    yield Served(executor, "density_first", k_min=2)
    end(executor)


def test_two_ranks_make_the_tokens_of_one_process(group: Served, wanted: list[list[int]]) -> None:
    assert group.tokens() == wanted
    assert isinstance(group.executor, WorkersExecutor)
    assert group.scheduler.counts["preemptions"] or sum(group.executor.copied_bytes.values())
    assert not group.executor.lost


def test_prefill_and_decode_in_two_processes_make_the_tokens_of_one(pair: Served, wanted: list[list[int]]) -> None:
    assert pair.tokens() == wanted
    assert isinstance(pair.executor, WorkersExecutor)
    assert pair.executor.copied_bytes["p0", "d0"]
    assert not pair.executor.lost


def kill_once(served: Served, lane: str, rank: int, sign: signal.Signals, after: int) -> Callable[[Plan], None]:
    """Strikes one worker when a lane has got its n-th order of this round."""
    orders = 0

    def watch(plan: Plan) -> None:
        nonlocal orders
        orders += sum(step.lane == lane for step in plan.steps)
        if orders >= after:
            orders = -(10**9)
            assert isinstance(served.executor, WorkersExecutor)
            os.kill(served.executor.pids(lane)[rank], sign)
            served.news.append((served.executor.now(), "struck"))

    return watch


def noticed(served: Served, device: str) -> float:
    """Seconds from the strike to the scheduler's hearing of it; the device came back afterwards."""
    struck = next(now for now, event in served.news if event == "struck")
    lost = next(now for now, event in served.news if event == DeviceLost(device))
    back = [now for now, event in served.news if isinstance(event, DeviceBack) and event.device == device]
    assert len(back) == 1
    assert back[0] > lost
    return lost - struck


@pytest.mark.parametrize(("lane", "device"), [("ld", "d0"), ("lp", "p0")])
def test_a_killed_worker_costs_time_and_no_token(pair: Served, wanted: list[list[int]], lane: str, device: str) -> None:
    pair.news.clear()
    assert pair.tokens(kill_once(pair, lane, 0, signal.SIGKILL, 6)) == wanted
    assert noticed(pair, device) < 5.0  # at once, but for a step under way elsewhere and a busy machine
    assert pair.tokens() == wanted


def test_a_killed_rank_takes_its_group_with_it_and_costs_no_token(group: Served, wanted: list[list[int]]) -> None:
    group.news.clear()
    assert group.tokens(kill_once(group, "l0", 1, signal.SIGKILL, 10)) == wanted
    assert noticed(group, "d0") < 5.0


def test_a_worker_that_hangs_is_given_up(folder: Path, decoder: Decoder, wanted: list[list[int]]) -> None:
    before = open_files()
    cluster = colocated(decoder, 2000, 4, 1)
    with WorkersExecutor(cluster, folder, dtype="float64", limits=Limits(silence_s=3.0)) as executor:
        served = Served(executor)
        assert served.tokens(kill_once(served, "l0", 0, signal.SIGSTOP, 4)) == wanted
        assert 2.0 < noticed(served, "d0") < 10.0
        assert "silent" in executor.lost[0]
        end(executor)
    del executor, served
    assert open_files() == before, "no memory, socket or ring is left open"


DRIVER = """
import signal
import sys
from pathlib import Path
from alignedsched.cluster import Cluster, Device, Lane, Role
from alignedsched_torch.workers import WorkersExecutor

signal.signal(signal.SIGINT, signal.default_int_handler)  # who runs tests in the background may ignore it
cluster = Cluster((Device("d0", Role.BOTH, 8),), (Lane("l0", ("d0",)),))
executor = WorkersExecutor(cluster, sys.argv[1])
print(*executor.pids("l0"), flush=True)
executor.wait(executor.now() + 600)
"""


@pytest.mark.parametrize("sign", [signal.SIGKILL, signal.SIGINT], ids=["killed", "ctrl-c"])
def test_workers_do_not_outlive_their_driver(folder: Path, sign: signal.Signals) -> None:
    driver = subprocess.Popen(
        [sys.executable, "-c", DRIVER, str(folder)],
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True, text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    assert driver.stdout is not None
    with driver.stdout:
        worker = os.pidfd_open(int(driver.stdout.readline()))
    try:
        (os.kill if sign is signal.SIGKILL else os.killpg)(driver.pid, sign)
        assert driver.wait(PATIENCE_S) != 0
        assert select.select([worker], [], [], PATIENCE_S)[0], "the worker is still there"
    finally:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(worker, signal.SIGKILL)
        os.close(worker)


def test_workers_that_were_started_elsewhere_connect(
    folder: Path, decoder: Decoder, wanted: list[list[int]], tmp_path: Path
) -> None:
    path = tmp_path / "driver"
    listen = Listen(path)
    environment = {
        **os.environ, "PYTHONPATH": os.pathsep.join(sys.path), PATH_VARIABLE: str(path), "RANK": "0",
        "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    worker = subprocess.Popen([sys.executable, "-m", "alignedsched_torch.workers"], env=environment)
    try:
        cluster = colocated(decoder, 2000, 4, 1)
        with WorkersExecutor(cluster, folder, dtype="float64", launcher=listen) as executor:
            assert executor.pids("l0") == (worker.pid,)
            assert Served(executor).tokens() == wanted
        assert worker.wait(PATIENCE_S) == 0
        assert not path.exists()
    finally:
        worker.kill()
        worker.wait()


def test_a_worker_that_cannot_start_says_why(decoder: Decoder, tmp_path: Path) -> None:
    write_tiny(tmp_path, "llama", vocab=VOCAB, hidden=32, layers=2, positions=512)
    (tmp_path / "model.safetensors").write_bytes(b"nothing")
    with pytest.raises(ExecutorError, match=r"lane 'l0' did not start: .*model\.safetensors"):
        WorkersExecutor(colocated(decoder, 8, 4, 0), tmp_path)


def test_what_cannot_be_shared_out_is_refused_by_name(folder: Path, decoder: Decoder) -> None:
    cluster = colocated(decoder, 8, 4, 0)
    with pytest.raises(ConfigError, match="tensor_parallel 3"):
        WorkersExecutor(cluster, folder, tensor_parallel=3)
    with pytest.raises(ConfigError, match="dtype 'int8'"):
        WorkersExecutor(cluster, folder, dtype="int8")
    devices = (Device("a", Role.BOTH, 4), Device("b", Role.BOTH, 4))
    with pytest.raises(ConfigError, match="2 lockstep ranks"):
        WorkersExecutor(Cluster(devices, (Lane("l", ("a", "b")),)), folder)
    with pytest.raises(ConfigError, match="'b' has no lane"):
        WorkersExecutor(Cluster(devices, (Lane("l", ("a",)),)), folder)
    linked = Cluster(devices, (Lane("l", ("a",)), Lane("m", ("b",))), links=(Link("a", "b", 1e9),))
    with pytest.raises(ConfigError, match="a->b"):
        WorkersExecutor(linked, folder, device="cuda")


@given(st.lists(st.binary(max_size=60), max_size=40), st.integers(9, 20), st.randoms())
def test_a_ring_gives_back_what_was_written_in_order(payloads: list[bytes], words: int, coin: Random) -> None:
    region = Region.make("ring", words * 8)
    try:
        writer, reader = Ring(region), Ring(Region.open(os.dup(region.fd)))
        at, got, left = 0, [], list(payloads)
        while left or at < writer.head:
            if left and coin.random() < 0.6 and writer.write(left[0], at):
                left.pop(0)
            elif at < writer.head:
                record = reader.read(at, writer.head)
                at = record.end
                got.append(record.payload)
        assert got == payloads
        place = at % writer.capacity
        region.bytes[place : place + 8] = (99).to_bytes(8, "little")
        with pytest.raises(ExecutorError, match="holds a record of 99 bytes"):
            reader.read(at, writer.head + 8)
        with pytest.raises(ExecutorError, match="does not fit"):
            writer.write(bytes(words * 8), at)
    finally:
        region.close()


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs and NCCL")
def test_two_gpus_make_the_tokens_of_one_process(folder: Path, decoder: Decoder, wanted: list[list[int]]) -> None:
    cluster = colocated(decoder, 2000, 4, 1)
    with WorkersExecutor(cluster, folder, tensor_parallel=2, device="cuda", dtype="float64") as executor:
        assert Served(executor).tokens() == wanted
