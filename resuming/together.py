"""If one process of a run fails, all end: the others would wait for it, and never learn that it has failed."""

import atexit
import itertools
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from resuming.lightning_internals import shared_store

SECONDS = 1.0  # between two looks at whether another process has failed
# a key of the shared store holds the rank and exit status of the process that failed first; it names the attempt,
# because torchrun keeps the store when it restarts the processes, and the run, because the next one may use it again
FAILED = f"failed in attempt {os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}, run "
RUNS = itertools.count()
GONE = "0 1"  # rank and status of a first process that was killed: it said nothing, and took the store with it


@contextmanager
def ending_together() -> Iterator[None]:
    """If the block fails in one process, end the others within seconds. Only the one that failed first says why.

    As after a signal, the first process, rank 0, exits with the error's status. No other exits with one before it does,
    as a launcher would then kill it.

    An error that is shared, which all processes raise together, ends each of them by itself.
    """
    over, key = threading.Event(), f"{FAILED}{next(RUNS)}"
    threading.Thread(target=_watch, args=(over, key), daemon=True).start()
    try:
        yield
        if _are_several():
            torch.distributed.barrier()  # the store ends with the first process, and the others take that for a failure
    except Exception as error:
        over.set()
        if _are_several() and not getattr(error, "is_shared", False):
            ours = f"{torch.distributed.get_rank()} {getattr(error, 'status', 1)}"
            try:
                first = shared_store().compare_set(key, "", ours).decode()
            except RuntimeError:  # the first process is gone, and this error followed from that
                first = GONE
            if first != ours:
                _leave(first)
            # let the others leave first: they need the store, and no launcher should see this process's status before
            atexit.register(time.sleep, 3 * SECONDS)
        raise
    finally:
        over.set()


def _are_several() -> bool:
    return torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1


def _watch(over: threading.Event, key: str) -> None:
    store = None
    while not over.wait(SECONDS if store else SECONDS / 5):  # find it soon: later, the first process may be gone
        if _are_several():
            try:
                store = store or shared_store()
                failed = store.get(key).decode() if store.check([key]) else ""
            except RuntimeError:
                failed = GONE
            if failed and not over.is_set():
                _leave(failed)


def _leave(failed: str) -> None:
    """End this process at once, even while it waits for others."""
    is_first = torch.distributed.get_rank() == 0
    if is_first:
        time.sleep(SECONDS)  # so the process that failed says why before the shell's prompt returns
    sys.stdout.flush()
    os._exit(int(failed.split()[-1]) if is_first else 0)
