"""Parallel work on this machine or on a cluster. The only module that knows dask."""

import logging
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import TypeVar

from distributed import Client, Future, LocalCluster, as_completed
from distributed.system import MEMORY_LIMIT

from leuko.cohort import worker
from leuko.cohort.worker import Outcome
from leuko.errors import LeukoError

AHEAD = 4096  # submitted pieces: more than a cluster runs at once, fewer than a cohort may have
CONNECT_SECONDS = 30


Piece = TypeVar("Piece")


def fitting_workers(processors: int, memory_gb: float) -> int:
    """How many pieces of `memory_gb` this machine or container can run at once; at least 1."""
    return max(1, min(processors, int(MEMORY_LIMIT / 1e9 / memory_gb)))


def run(
    work: Callable[[Piece], Outcome],
    pieces: Sequence[Piece],
    *,
    workers: int | None = None,
    scheduler: str | None = None,
) -> Iterator[tuple[Piece, Outcome]]:
    """Run `work` on all pieces; yield each with its outcome when it has ended.

    `work` must be safe to repeat: a piece whose worker is lost is given to another. On this machine
    `workers` pieces run at once; with the address of a dask scheduler, as many as its workers have
    threads. Raises LeukoError if no scheduler answers or the connection is lost.
    """
    if not pieces:
        return
    # With keys of one prefix the scheduler gives out a piece only when a worker is free.
    waiting, kind = enumerate(pieces), f"leuko-{uuid.uuid4().hex[:8]}"
    with _client(workers, scheduler) as client:
        of_key: dict[str, Piece] = {}

        def submit(count: int) -> "list[Future[Outcome]]":
            taken = {f"{kind}-{number}": piece for number, piece in islice(waiting, count)}
            of_key.update(taken)
            return [client.submit(work, p, key=key, pure=False) for key, p in taken.items()]

        try:
            ended = as_completed(submit(AHEAD), loop=client.loop)
            for future in ended:
                ended.update(submit(1))
                yield of_key.pop(future.key), _outcome(future)
        except (KeyboardInterrupt, GeneratorExit):
            worker.stop()  # ends the processes on this machine
            raise


@contextmanager
def _client(workers: int | None, scheduler: str | None) -> Iterator[Client]:
    for name in ("distributed", "distributed.client"):  # the outcomes hold all that matters
        logging.getLogger(name).setLevel(logging.CRITICAL)
    if scheduler is not None:
        try:
            client = Client(scheduler, timeout=CONNECT_SECONDS, set_as_default=False)
        except (OSError, ValueError) as error:
            raise LeukoError(
                f"no dask scheduler answers at {scheduler} ({error}); expected its address, such "
                "as tcp://node1:8786"
            ) from error
        with client:
            yield client
        return
    # Threads are enough: each only waits for a process.
    with (
        LocalCluster(
            n_workers=1,
            threads_per_worker=workers,
            processes=False,
            memory_limit=0,
            dashboard_address="127.0.0.1:0",  # cannot be switched off; a free local port
        ) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        yield client


def _outcome(future: "Future[Outcome]") -> Outcome:
    """The outcome of a piece that has ended; an error of its worker is a failure. Raises LeukoError
    if the scheduler is gone."""
    if future.cancelled():
        raise LeukoError(
            "the connection to the dask scheduler was lost; start it and run the same command "
            "again to resume"
        )
    error = future.exception()
    if error is None:
        outcome: Outcome = future.result()
        return outcome
    return Outcome(f"{type(error).__name__}: {error}".splitlines()[0], 0.0, 0.0)
