import errno
import io
import sys
from pathlib import Path

import pytest

from system.command import Command
from system.errors import PigmentError, shown

NAME = "x\nRun  all is well\x1b[31m\udcff\u202e é画.jpg"
ESCAPED = "x\\nRun  all is well\\x1b[31m\\udcff\\u202e é画.jpg"


def run(error: BaseException | None, folder: Path | None = None) -> int:
    with Command() as command:
        command.folder = folder
        if error:
            raise error
    return command.status


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (None, 0, ""),
        (KeyboardInterrupt(), 130, ""),
        (PigmentError("no such thing"), 2, "error: no such thing\n"),
        (PigmentError(f"there is no '{NAME}'"), 2, f"error: there is no '{ESCAPED}'\n"),
        (OSError(errno.EROFS, "Read-only", NAME), 2, f"error: '{ESCAPED}' cannot be used: Read-only\n"),
    ],
)
def test_an_error_becomes_a_line_and_a_status(
    error: BaseException | None, status: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(error) == status
    assert capsys.readouterr() == ("", said)


@pytest.mark.parametrize("error", [KeyError(NAME), OSError("a socket"), RecursionError()])
def test_an_unexpected_error_leaves_its_traceback_in_the_folder(
    error: Exception, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PIGMENT_TRACEBACK")
    assert run(error, tmp_path) == 1
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith(f"error: {type(error).__name__}: ")
    (kept,) = tmp_path.iterdir()
    assert second == f"  This error is unexpected. Its traceback is in {kept}; PIGMENT_TRACEBACK=1 shows it."
    assert "in run\n    raise error\n" in kept.read_text()
    monkeypatch.setenv("PIGMENT_TRACEBACK", "1")
    with pytest.raises(type(error)):
        run(error, tmp_path)


def test_without_a_folder_the_traceback_is_in_a_temporary_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PIGMENT_TRACEBACK")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert run(ValueError("odd"), tmp_path / "not there") == 1
    (kept,) = tmp_path.glob("traceback-*.txt")
    assert str(kept) in capsys.readouterr().err


def test_an_ascii_terminal_gets_escapes(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(screen, "ascii", write_through=True))
    with Command():
        print(shown("Früchte\n"))
    assert screen.getvalue() == b"Fr\\xfcchte\\n\n"
