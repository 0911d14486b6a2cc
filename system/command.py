"""How every command begins and ends: an error becomes one or two lines on stderr and an exit status."""

import io
import os
import sys
import tempfile
import traceback
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from system.errors import PigmentError, reason, shown

SHOW = "PIGMENT_TRACEBACK"  # environment variable; if set, an unexpected error shows its traceback


class Command:
    """A block that ends without a traceback: an error becomes one or two lines on stderr and an exit status.

    Attributes:
        status: 0; 2 for an error that the user can do something about, 1 for an unexpected one, 130 for Ctrl-C.
        folder: gets the traceback of an unexpected error; if it does not exist, the system's temporary folder does.
    """

    status = 0
    folder: Path | None = None

    def __enter__(self) -> Self:
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="backslashreplace")  # printing to an ASCII terminal must not end a run
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        if isinstance(error, KeyboardInterrupt):
            self.status = 130
        elif isinstance(error, PigmentError):
            self.status = error.status
            print(f"error: {shown(error)}", file=sys.stderr)
        elif isinstance(error, OSError) and error.filename is not None:  # a disk, or a permission
            self.status = 2
            print(f"error: '{shown(error.filename)}' cannot be used: {reason(error)}", file=sys.stderr)
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
