import re
import shlex
import subprocess
from pathlib import Path

import torch
import yaml
from PIL import Image

from colorization.__main__ import main as colorize
from study.__main__ import make_parser
from study.training import plan
from tests.world import CONFIGS, tiny
from train import PigmentCLI, main
from vae.__main__ import main as play

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


COMMANDS = [line for block in blocks("bash") for line in block.splitlines()]


def test_its_python_commands_run_in_the_order_given_and_so_does_its_python(fruits: Path, paintings: Path) -> None:
    Path("configs").symlink_to(ROOT / "configs")
    commands = [line for line in COMMANDS if line.startswith("python train.py")]
    assert len(commands) >= 10
    for command in commands:
        named = command.replace("/path/to/fruits-360", str(fruits)).replace("/path/to/paintings", str(paintings))
        given = shlex.split(named)[2:]
        config = Path(given[given.index("--config") + 1])
        stage, *small = tiny(given[0], paintings if config.parent.name == "colorization" else fruits, config=config)
        assert stage == given[0]
        briefly = ["--trainer.max_epochs=1"] if stage == "fit" else []
        main([*given, *(option for option in small if option.partition("=")[0] not in given), *briefly])
    (code,) = blocks("python")
    newest = max(Path("runs").glob("*/checkpoints/last.ckpt"), key=lambda path: path.stat().st_mtime)
    names: dict[str, torch.Tensor] = {}
    exec(code.replace("runs/<run id>/checkpoints/last.ckpt", str(newest)), names)
    assert names["fruits"].shape == names["again"].shape == (8, 3, 16, 16)


def test_a_checkpoint_colorizes_files_as_it_says(paintings: Path) -> None:
    run = main(
        tiny("fit", paintings, "--trainer.max_epochs=1", config=CONFIGS / "colorization" / "4_shallow_adam.yaml")
    )
    (command,) = [line for line in COMMANDS if line.startswith("python -m colorization")]
    for name in ("old.jpg", "scans/in/1.jpg", "more/2.tif"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (30, 20), 99).save(name)
    arguments = shlex.split(command.replace("runs/<run id>", str(run.run_folder)))[3:]
    assert colorize(arguments) == 0
    assert {str(path.relative_to("colorized")) for path in Path("colorized").rglob("*.*")} == {
        "old.jpg",
        "in/1.jpg",
        "2.tif",
    }


def test_its_commands_for_a_vae_draw_what_it_says(vae_run: PigmentCLI) -> None:
    for name in ("apple.jpg", "pear.jpg"):
        Image.new("RGB", (30, 20), "red").save(name)
    commands = [line for line in COMMANDS if line.startswith("python -m vae")]
    assert len(commands) == 6
    for command in commands:
        arguments = shlex.split(command.replace("runs/<run id>", str(vae_run.run_folder)))[3:]
        assert play(arguments) == 0
        assert Path(arguments[-1]).is_file()


def test_its_table_of_colorizers_is_what_their_configs_say() -> None:
    lines = [line for line in README.splitlines() if re.match(r"\| `\d_", line)]
    assert len(lines) == 9
    nets = {"A": "Shallow", "B": "Deep", "C": "ResNet"}
    for line in lines:
        name, net, loss, optimizer, lr, epochs = (
            re.sub("[*`]", "", cell).strip() for cell in line.strip("|").split("|")
        )
        config = yaml.safe_load((CONFIGS / "colorization" / name).read_text())
        assert config["model"]["class_path"] == f"colorization.{nets[net[0]]}Colorizer"
        expected = {"loss": loss.lower(), "optimizer": optimizer.lower(), "lr": float(lr)}
        assert config["model"]["init_args"].items() >= expected.items()
        assert config["trainer"]["max_epochs"] == int(epochs)


def test_its_study_is_of_all_models() -> None:
    for line in COMMANDS:
        if line.startswith("python -m study"):
            options, more = make_parser().parse_known_args(shlex.split(line)[3:])
            assert options.out == Path("runs/study")
            if options.command == "run":
                assert [task.run.seed for task in plan(options, more)] == [0] * 9 + [1] * 9


def test_its_tenth_model_trains(paintings: Path) -> None:
    (config,) = blocks("yaml")
    Path("10_deep_sgd.yaml").write_text(config)
    run = main(tiny("fit", paintings, "--trainer.max_epochs=1", config=Path("10_deep_sgd.yaml")))
    assert (run.run_folder / "media" / "colorizations.png").is_file()


def test_its_make_commands_do_what_it_says() -> None:
    commands = [line for line in COMMANDS if line.startswith("make")]
    done = {
        command: subprocess.run([*shlex.split(command), "-n"], cwd=ROOT, capture_output=True, text=True, check=True)
        for command in commands
    }
    assert "train.py fit --config configs/vae.yaml" in done["make fit"].stdout
    assert "pytest" in done["make test"].stdout
    assert len(commands) + sum(line.startswith("python ") for line in COMMANDS) == len(COMMANDS)


def test_what_it_shows_and_names_is_there() -> None:
    for target in re.findall(r"\]\((?!http|#)(.+?)\)", README):
        assert (ROOT / target).is_file(), target
    (tree,) = (block for block in blocks("text") if "the entry point" in block)
    for name in re.findall(r"\b(\w+\.(?:py|yaml))\b", tree):
        assert list(ROOT.glob(f"[!.]*/{name}")) or (ROOT / name).is_file(), name
