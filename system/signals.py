"""What a program does when it is asked to stop."""

import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any

Handler = Callable[[int, FrameType | None], None]
STOPS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(SystemExit):
    """A signal stops the program: the first process exits with 128 + its number, as in a shell, all others with 0."""

    def __init__(self, signum: int, rank: int = 0) -> None:
        # the launcher kills the first process 5 s after another fails, even if the first is still drawing
        self.status = 128 + signum if rank == 0 else 0
        super().__init__(self.status)


def interrupt(signum: int, frame: FrameType | None) -> None:
    """Handle a signal when there is nothing to save."""
    raise Interrupted(signum)


def handle(handler: Handler, signums: Sequence[int] = STOPS) -> dict[int, Any]:
    """Let ``handler`` receive signals from now on, and return the old ones; no effect outside the main thread."""
    if threading.current_thread() is not threading.main_thread():
        return {}
    return {signum: signal.signal(signum, handler) for signum in signums}


@contextmanager
def handling(handler: Handler, signums: Sequence[int] = STOPS) -> Iterator[None]:
    """Let ``handler`` receive signals until the block ends."""
    before = handle(handler, signums)
    try:
        yield
    finally:
        for signum, old in before.items():
            signal.signal(signum, old)


@contextmanager
def deferred() -> Iterator[None]:
    """Hold signals back until the block ends, as Python ignores what a handler raises while a process is forked."""
    received: list[int] = []
    with handling(lambda signum, frame: received.append(signum)):
        yield
    for signum in received:
        signal.raise_signal(signum)
