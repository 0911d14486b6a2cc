"""The processes of a run end together: one that waits for the others would never learn that one of them has failed."""

import atexit
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from resuming.lightning_internals import shared_store

SECONDS = 1.0  # from one look at the others to the next
# the shared key that holds the rank of the first process to fail, and its exit status; torchrun keeps it for a restart
FAILED = f"failed in attempt {os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}"
GONE = "0 1"  # stands for a first process that could not say anything, and took the store with it


@contextmanager
def ending_together() -> Iterator[None]:
    """If the block fails in one process, end the others in seconds. Only the first to fail says why.

    As with a signal, the exit status is the first process's; a launcher would kill that if another failed before it.
    Errors with status 0, which all processes raise together, end only their own.
    """
    over = threading.Event()
    threading.Thread(target=_watch, args=(over,), daemon=True).start()
    try:
        yield
        if torch.distributed.is_initialized():
            torch.distributed.barrier()  # the store ends with the first process, which to the others means a failure
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
            # the others leave before, so that the store outlives them and no launcher finds this process's status first
            atexit.register(time.sleep, 3 * SECONDS)
        raise
    finally:
        over.set()


def _watch(over: threading.Event) -> None:
    store = None
    while not over.wait(SECONDS if store else SECONDS / 20):  # later, the first process may be gone
        if torch.distributed.is_initialized():
            try:
                store = store or shared_store()
                failed = store.get(FAILED).decode() if store.check([FAILED]) else ""
            except RuntimeError:
                failed = GONE
            if failed and not over.is_set():
                _leave(failed)


def _leave(failed: str) -> None:
    """End this process at once, although it waits for others."""
    is_first = torch.distributed.get_rank() == 0
    if is_first:
        time.sleep(SECONDS)  # the one that failed says why before the shell's prompt returns
    sys.stdout.flush()
    os._exit(int(failed.split()[-1]) if is_first else 0)
