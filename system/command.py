"""How every command begins and ends: an error becomes one or two lines on stderr and an exit status."""

import io
import os
import signal
import sys
import tempfile
import traceback
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from system.errors import PigmentError, reason, shown
from system.signals import Interrupted

SHOW = "PIGMENT_TRACEBACK"  # environment variable; if set, an unexpected error shows its traceback


class Command:
    """A block that ends without a traceback: an error becomes one or two lines on stderr and an exit status.

    Attributes:
        status: 0; 2 for an error that the user can do something about, 1 for an unexpected one. As in a shell, 130 for
            Ctrl-C, 143 for SIGTERM, and 141 if whoever read the output has left.
        folder: gets the traceback of an unexpected error; if it does not exist, the system's temporary folder does.
    """

    status = 0
    folder: Path | None = None

    def __enter__(self) -> Self:
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):
                # an ASCII terminal must not end a run, and what cannot be written must fail before Python ends
                stream.reconfigure(errors="backslashreplace", line_buffering=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        for stream in (sys.stdout, sys.stderr):
            try:
                print(end="", file=stream, flush=True)
            except OSError as full:  # the block has met this error, too, and so would Python as it ends
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
                if isinstance(error, type(full)):
                    error.filename = stream.name
        if isinstance(error, KeyboardInterrupt):
            self.status = 128 + signal.SIGINT
        elif isinstance(error, Interrupted):
            self.status = error.status
        elif isinstance(error, BrokenPipeError):
            self.status = 128 + signal.SIGPIPE
        elif isinstance(error, PigmentError):
            self.status = error.status
            print(f"error: {shown(error)}", file=sys.stderr)
        elif isinstance(error, OSError) and (error.filename or error.errno):  # a disk, a permission, or a limit
            self.status = 2
            what = f"'{shown(error.filename)}' cannot be used: " if error.filename else ""
            print(f"error: {what}{reason(error)}", file=sys.stderr)
        elif not isinstance(error, Exception) or os.environ.get(SHOW):
            return False
        else:
            self.status = 1
            print(f"error: {type(error).__name__}: {shown(reason(error))}", file=sys.stderr)
            print(f"  This error is unexpected. {self._keep(error)}", file=sys.stderr)
        return True

    def _keep(self, error: Exception) -> str:
        """Write the traceback to a file, and return a sentence that says where it is."""
        for folder in (self.folder, None):
            with suppress(OSError):
                descriptor, path = tempfile.mkstemp(".txt", "traceback-", folder)
                with open(descriptor, "w", encoding="utf-8", errors="backslashreplace") as file:
                    traceback.print_exception(error, file=file)
                return f"Its traceback is in {shown(path)}; {SHOW}=1 shows it."
        return f"{SHOW}=1 shows its traceback."
