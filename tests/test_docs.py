"""What README.md and docs/*.md promise. Blocks marked bash are run here, in the order of their page; text is not."""

import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from atelier.__main__ import make_parser as atelier_parser
from benchmarks.kinds import main as compare_by_kinds
from colorization.__main__ import main as colorize
from dashboard.__main__ import main as dashboard
from study.__main__ import make_parser
from study.training import plan
from tests.world import CONFIGS, tiny
from train import main
from vae.__main__ import main as play

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").glob("*.md"))]
DRY_RUNS = {"make fit": "train.py fit --config configs/vae.yaml", "make test": "pytest", "make atelier": "-m atelier"}


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(), re.DOTALL)


def commands(page: Path) -> list[str]:
    return "".join(blocks(page, "bash")).splitlines()


def newest_run(family: str) -> str:
    """Find what a reader would put in place of ``runs/<run id>``."""
    saved = sorted(Path("runs").rglob("last.ckpt"), key=lambda path: path.stat().st_mtime)
    runs = [path.parents[1] for path in saved]
    return str([run for run in runs if f"class_path: {family}." in (run / "config.yaml").read_text()][-1])


def train_in_small(arguments: list[str], fruits: Path, paintings: Path) -> None:
    config = Path(arguments[arguments.index("--config") + 1])
    stage, *small = tiny(arguments[0], paintings if config.parent.name == "colorization" else fruits, config=config)
    briefly = ["--trainer.max_epochs=1"] if stage == "fit" else []
    if any(argument.endswith(".safetensors") for argument in arguments):  # which was trained at full size
        small = [option for option in small if not option.startswith("--model.")]
    main([*arguments, *(option for option in small if option.partition("=")[0] not in arguments), *briefly])


def colorize_pictures(arguments: list[str]) -> None:
    for name in ("old.jpg", "scans/in/1.jpg", "more/2.tif"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (30, 20), 99).save(name)
    assert colorize(arguments) == 0
    out = Path(arguments[arguments.index("--out") + 1])
    results = {"old.jpg": "old.jpg", "scans/": "in/1.jpg", "more/*.tif": "2.tif"}
    written = {str(path.relative_to(out)) for path in out.rglob("*.*")}
    assert written >= {result for given, result in results.items() if given in arguments}
    with Image.open(out / "old.jpg") as colorized:
        assert colorized.mode == "RGB"


def play_with_vae(arguments: list[str]) -> None:
    for name in ("apple.jpg", "peach.jpg"):
        Image.new("RGB", (30, 20), "red").save(name)
    assert play(arguments) == 0
    assert Path(arguments[arguments.index("--out") + 1]).is_file()


def plan_study(arguments: list[str]) -> None:
    """Check what would be done, as doing it takes too long."""
    options, more = make_parser().parse_known_args(arguments)
    assert (options.folder if options.command == "list" else options.out) == Path("runs/study")
    if options.command == "run":
        assert [task.run.seed for task in plan(options, more)] == [0] * 10 + [1] * 10


@pytest.mark.parametrize("page", [page for page in PAGES if commands(page)], ids=lambda page: page.stem)
def test_its_commands_run_in_the_order_given_and_so_does_its_python(page: Path, fruits: Path, paintings: Path) -> None:
    for folder in ("configs", "colorization/weights", "vae/weights"):
        Path(folder).parent.mkdir(exist_ok=True)
        Path(folder).symlink_to(ROOT / folder)
    for command in commands(page):
        named = command.replace("/path/to/fruits-360", str(fruits)).replace("/path/to/paintings", str(paintings))
        if "runs/<run id>" in named:
            named = named.replace("runs/<run id>", newest_run("colorization" if "-m colorization" in named else "vae"))
        match shlex.split(named):
            case ["make", _]:
                done = subprocess.run([*command.split(), "-n"], cwd=ROOT, capture_output=True, text=True, check=True)
                assert DRY_RUNS[command] in done.stdout
            case ["python", "train.py", *arguments]:
                train_in_small(arguments, fruits, paintings)
            case ["python", "-m", "colorization", *arguments]:
                colorize_pictures(arguments)
            case ["python", "-m", "vae", *arguments]:
                play_with_vae(arguments)
            case ["python", "-m", "benchmarks.kinds", *arguments]:
                assert compare_by_kinds(arguments) == 0
            case ["python", "-m", "study", *arguments]:
                plan_study(arguments)
            case ["python", "-m", "atelier", *arguments]:
                assert all(path.exists() for path in atelier_parser().parse_args(arguments).ckpt)
            case ["python", "-m", "dashboard"]:
                assert dashboard([]) == 2  # as nobody is logged in; tests/test_dashboard.py saves them
            case [".venv/bin/pip", "install", requirement]:
                assert requirement in (ROOT / "pyproject.toml").read_text()
            case _:
                pytest.fail(f"nothing here runs {command!r}")
    for code in blocks(page, "python"):
        names: dict[str, Any] = {}
        exec(code.replace("runs/<run id>", newest_run("vae")) if "<run id>" in code else code, names)
        if page.stem == "vae":
            assert names["fruits"].shape == names["again"].shape == (8, 3, 100, 100)
        else:
            assert names["colored"].shape == names["images"].shape
            assert len(names["choices"]) == 5


def test_their_commands_are_all_found() -> None:
    programs = [" ".join(command.split()[:3]) for page in PAGES for command in commands(page)]
    assert programs.count("python -m vae") == 9
    assert programs.count("python -m colorization") == 5
    assert programs.count("python -m atelier") == 2
    assert sum(program.startswith("python train.py") for program in programs) >= 11
    assert sum(len(blocks(page, "python")) for page in PAGES) == 2


def test_another_model_trains(paintings: Path) -> None:
    (config,) = blocks(ROOT / "docs" / "study.md", "yaml")
    Path("11_deep_sgd.yaml").write_text(config)
    run = main(tiny("fit", paintings, "--trainer.max_epochs=1", config=Path("11_deep_sgd.yaml")))
    assert (run.run_folder / "media" / "colorizations.png").is_file()


def test_the_table_of_colorizers_is_what_their_configs_say() -> None:
    lines = [line for line in README.read_text().splitlines() if re.match(r"\| `\d+_", line)]
    assert len(lines) == 10
    nets = {"A": "Shallow", "B": "Deep", "C": "ResNet", "[": "Palette"}
    for line in lines:
        name, net, loss, optimizer, lr, epochs = (
            re.sub("[*`]", "", cell).strip() for cell in line.strip("|").split("|")
        )
        config = yaml.safe_load((CONFIGS / "colorization" / name).read_text())
        assert config["model"]["class_path"] == f"colorization.{nets[net[0]]}Colorizer"
        expected: dict[str, object] = {"lr": float(lr)}
        if net[0] in "ABC":  # the tenth has no choice of losses and optimizers
            expected |= {"loss": loss.lower(), "optimizer": optimizer.lower()}
        assert config["model"]["init_args"].items() >= expected.items()
        assert config["trainer"]["max_epochs"] == int(epochs)


def anchors(page: Path) -> set[str]:
    """Return the anchors that GitHub makes from a page's headings."""
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_links_lead_somewhere_and_readme_leads_to_all_pages() -> None:
    linked = set()
    for page in PAGES:
        for path, anchor in re.findall(r"\]\((?!http)([^)#\s]*)#?([^)\s]*)\)", page.read_text()):
            target = (page.parent / path).resolve() if path else page
            assert target.is_file(), f"{page.name}: {path}"
            assert not anchor or anchor in anchors(target), f"{page.name}: {path}#{anchor}"
            linked |= {target} if page == README else set()
    assert linked >= set(PAGES) - {README}


def test_the_map_of_the_code_is_whole_and_names_what_is_there() -> None:
    (tree,) = (block for block in blocks(README, "text") if "the entry point" in block)
    places = set()
    folder = ROOT
    for line in tree.splitlines():
        place, said = re.fullmatch(r"(\S*) +(.+)", line).groups()
        if place:
            places.add(place.rstrip("/"))
            folder = ROOT / place
            assert folder.exists(), place
        for name in re.findall(r"[\w/]+(?:\.py|\.yaml|/)(?!\w)", said):
            assert (folder / name).exists(), f"{place}{name}"
    assert places >= {path.parent.name for path in ROOT.glob("[!.]*/*.py")}


def test_files_named_in_the_text_are_there() -> None:
    for page in PAGES:
        for name in re.findall(r"`((?:\w+/)+\w+\.(?:py|yaml))`", page.read_text()):
            assert (ROOT / name).is_file(), f"{page.name}: {name}"


def test_readme_stays_short() -> None:
    assert len(README.read_text().splitlines()) <= 150
