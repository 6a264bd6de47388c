"""Jobs in processes of their own: results, ends, and nothing that stays behind."""

import asyncio
import contextlib
import os
import time
from collections.abc import Iterator

import psutil
import pytest

from gptj_serve.serving import forks
from gptj_serve.serving.forks import ForkServer, WorkLost
from support.server import is_gone, until

# since Python 3.12 it warns where there are threads: those of other tests here, none in the service
pytestmark = pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")


def work(job: bytes) -> bytes:
    """Does what its job says: ``sleep``, ``die``, or give the job back with its process's number."""
    if job == b"sleep":
        time.sleep(60)
    if job == b"die":
        os._exit(3)
    return b"%d %d %s" % (os.getpid(), len(job), job[:10])


@contextlib.contextmanager
def fork_server() -> Iterator[ForkServer]:
    with contextlib.closing(ForkServer(work)) as server:
        yield server


def run(server: ForkServer, *jobs: bytes, limit_s: float = 30.0) -> list[bytes]:
    async def run_all() -> list[bytes]:
        return await asyncio.gather(*(server.run((job[:3], job[3:]), limit_s) for job in jobs))

    return asyncio.run(run_all())


def test_every_job_has_a_process_of_its_own() -> None:
    large = b"x" * 9_000_000
    with fork_server() as server:
        answers = [answer.split() for answer in run(server, b"one", b"two", large)]
    assert [answer[1:] for answer in answers] == [[b"3", b"one"], [b"3", b"two"], [b"9000000", b"x" * 10]]
    assert len({answer[0] for answer in answers} | {b"%d" % os.getpid()}) == 4
    pid, *answer = forks.run(work, b"three", 30.0).split()
    assert (answer, int(pid) != os.getpid()) == ([b"5", b"three"], True)


@pytest.mark.parametrize(("job", "limit_s"), [(b"sleep", 0.2), (b"die", 30.0)], ids=["time is over", "died"])
def test_a_lost_job_is_an_error_and_costs_no_other(job: bytes, limit_s: float) -> None:
    with fork_server() as server:
        started_s = time.monotonic()
        with pytest.raises(WorkLost):
            run(server, job, limit_s=limit_s)
        with pytest.raises(WorkLost):
            forks.run(work, job, limit_s)
        assert time.monotonic() - started_s < 20
        assert run(server, b"next")


def test_a_job_that_nobody_waits_for_ends() -> None:
    async def give_up(server: ForkServer) -> None:
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(server.run((b"sleep",), 60.0), 0.3)

    # services that other tests share run below this process too
    before = set(psutil.Process().children())
    with fork_server() as server:
        (forking,) = set(psutil.Process().children()) - before
        asyncio.run(give_up(server))
        until(lambda: not forking.children())
    until(lambda: is_gone(forking))
