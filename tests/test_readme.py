import re
import shlex
import subprocess
from pathlib import Path

import pytest
import torch

from tests.world import tiny
from train import main

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


COMMANDS = [line for block in blocks("bash") for line in block.splitlines()]


def test_its_python_commands_run_in_the_order_given_and_so_does_its_python(
    fruits: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("configs").symlink_to(ROOT / "configs")
    commands = [line for line in COMMANDS if line.startswith("python train.py")]
    assert len(commands) >= 8
    for command in commands:
        given = shlex.split(command.replace("/path/to/fruits-360", str(fruits)))[2:]
        stage, *small = tiny(given[0], fruits)
        assert stage == given[0]
        briefly = ["--trainer.max_epochs=1"] if stage == "fit" else []
        main([*given, *(option for option in small if option.partition("=")[0] not in given), *briefly])
    (code,) = blocks("python")
    newest = max(Path("runs").glob("*/checkpoints/last.ckpt"), key=lambda path: path.stat().st_mtime)
    names: dict[str, torch.Tensor] = {}
    exec(code.replace("runs/<run id>/checkpoints/last.ckpt", str(newest)), names)
    assert names["fruits"].shape == names["again"].shape == (8, 3, 16, 16)


def test_its_make_commands_do_what_it_says() -> None:
    commands = [line for line in COMMANDS if line.startswith("make")]
    done = {
        command: subprocess.run([*shlex.split(command), "-n"], cwd=ROOT, capture_output=True, text=True, check=True)
        for command in commands
    }
    assert "train.py fit --config configs/vae.yaml" in done["make fit"].stdout
    assert "pytest" in done["make test"].stdout
    assert len(commands) + sum(line.startswith("python train.py") for line in COMMANDS) == len(COMMANDS)


def test_what_it_shows_and_names_is_there() -> None:
    for target in re.findall(r"\]\((?!http)(.+?)\)", README):
        assert (ROOT / target).is_file(), target
    (tree,) = (block for block in blocks("text") if "the entry point" in block)
    for name in re.findall(r"\b(\w+\.(?:py|yaml))\b", tree):
        assert list(ROOT.glob(f"[!.]*/{name}")) or (ROOT / name).is_file(), name
