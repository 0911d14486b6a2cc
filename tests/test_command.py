import errno
import importlib
import io
import os
import signal
import sys
import warnings
from pathlib import Path

import pytest

import system.environment
from system.command import Command
from system.errors import PigmentError, shown
from system.signals import Interrupted

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
        (OSError(errno.EMFILE, "Too many open files"), 2, "error: Too many open files\n"),
        (Interrupted(signal.SIGTERM), 143, ""),
        (Interrupted(signal.SIGTERM, rank=1), 0, ""),
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


def open_broken_pipe() -> io.TextIOWrapper:
    reader, writer = os.pipe()
    os.close(reader)
    return os.fdopen(writer, "w")


@pytest.mark.parametrize("name", ["stdout", "stderr"])
def test_a_reader_that_has_left_is_no_error(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    read = io.StringIO()
    for stream in ("stdout", "stderr"):
        monkeypatch.setattr(sys, stream, read)
    with open_broken_pipe() as broken, Command() as command:
        monkeypatch.setattr(sys, name, broken)
        print("much\n" * 10_000, file=broken)
    assert (command.status, read.getvalue()) == (128 + signal.SIGPIPE, "")  # and closing it did not fail


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a file that is always full")
def test_a_full_disk_under_the_output_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        with Command() as command:
            print("All is well")  # less than a buffer
    assert command.status == 2
    assert capsys.readouterr().err == "error: '/dev/full' cannot be used: No space left on device\n"


@pytest.mark.parametrize(
    ("given", "left"), [("ignore", "ignore"), ("error", ""), ("ignore, error::X,once", "ignore,once")]
)
def test_only_what_makes_warnings_errors_is_dropped(given: str, left: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONWARNINGS", given)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        before = list(warnings.filters)
        importlib.reload(system.environment)
        kept = before if given == "ignore" else [one for one in before if one[0] != "error"]
        assert warnings.filters == kept
        assert len(kept) > 1
    assert os.environ["PYTHONWARNINGS"] == left


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("MASTER_PORT", "abc", "the environment variable MASTER_PORT is 'abc', must be a whole number"),
        ("RANK", "", "the environment variable RANK is '', must be a whole number"),
        ("TQDM_MININTERVAL", "abc", "tqdm refuses TQDM_MININTERVAL: could not convert string to float: 'abc'"),
    ],
)
def test_what_a_library_would_fail_to_import_with_is_named(
    name: str, value: str, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for module in [module for module in sys.modules if module.partition(".")[0] == "tqdm"]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit, match="2"):
        importlib.reload(system.environment)
    assert capsys.readouterr().err == f"error: {said}\n"
