import argparse
from pathlib import Path

import pytest

from cli.arguments import ArgumentParser, local_path, positive, seed


@pytest.mark.parametrize(
    ("given", "what"),
    [
        ("--number=0", "argument --number: must be a whole number, 1 or more, not 0"),
        ("--number=many", "argument --number: must be a whole number, 1 or more, not many"),
        ("--number=1.5", "argument --number: must be a whole number, 1 or more, not 1.5"),
        ("--seed=-1", "argument --seed: must be a whole number, 0 or more, not -1"),
        (f"--seed={2**63}", f"argument --seed: must be less than 2**63, not {2**63}"),
        ("--seed=\x1b[31m", "argument --seed: must be a whole number, 0 or more, not \\x1b[31m"),
        ("--x\x1b[31m\nfake", "unrecognized arguments: --x\\x1b[31m\\nfake"),
    ],
)
def test_what_is_refused(given: str, what: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(given)
    assert capsys.readouterr().err.endswith(f"error: {what}\n")


def test_what_is_accepted() -> None:
    assert parse("--number=1", "--seed=0") == argparse.Namespace(number=1, seed=0)
    assert parse(f"--number={2**63 - 1}", f"--seed={2**63 - 1}") == argparse.Namespace(number=2**63 - 1, seed=2**63 - 1)


def test_home_is_expanded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    given = ("~/out", "~", "a/~", "~_/out")
    assert [*map(local_path, given)] == [Path("/home/me/out"), Path("/home/me"), Path("a/~"), Path("~_/out")]


def parse(*args: str) -> argparse.Namespace:
    parser = ArgumentParser()
    parser.add_argument("--number", type=positive)
    parser.add_argument("--seed", type=seed)
    return parser.parse_args(args)
