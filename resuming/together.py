"""If one process of a run fails, all end: the others would wait for it, and never learn that it has failed."""

import atexit
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from resuming.lightning_internals import shared_store

SECONDS = 1.0  # between two looks at whether another process has failed
# this key of the shared store holds the rank and exit status of the process that failed first; it names the attempt,
# because torchrun keeps the store when it restarts the processes
FAILED = f"failed in attempt {os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}"
GONE = "0 1"  # rank and status of a first process that was killed: it said nothing, and took the store with it


@contextmanager
def ending_together() -> Iterator[None]:
    """If the block fails in one process, end the others within seconds. Only the one that failed first says why.

    As after a signal, the first process, rank 0, exits with the error's status. No other exits with one before it does,
    as a launcher would then kill it.

    Errors with status 0 are raised by all processes, so they end only the process that raises them.
    """
    over = threading.Event()
    threading.Thread(target=_watch, args=(over,), daemon=True).start()
    try:
        yield
        if torch.distributed.is_initialized():
            torch.distributed.barrier()  # the store ends with the first process, and the others take that for a failure
    except Exception as error:
        over.set()
        status = getattr(error, "status", 1)
        if status and torch.distributed.is_initialized():
            ours = f"{torch.distributed.get_rank()} {status}"
            try:
                first = shared_store().compare_set(FAILED, "", ours).decode()
            except RuntimeError:  # the first process is gone, and this error followed from that
                first = GONE
            if first != ours:
                _leave(first)
            # let the others leave first: they need the store, and no launcher should see this process's status before
            atexit.register(time.sleep, 3 * SECONDS)
        raise
    finally:
        over.set()


def _watch(over: threading.Event) -> None:
    store = None
    while not over.wait(SECONDS if store else SECONDS / 20):  # find it soon: later, the first process may be gone
        if torch.distributed.is_initialized():
            try:
                store = store or shared_store()
                failed = store.get(FAILED).decode() if store.check([FAILED]) else ""
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
