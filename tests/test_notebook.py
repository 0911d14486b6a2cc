"""docs/notebook.ipynb, run by a real kernel with real commands; and commands, started from any notebook."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell

from datamodules.demo import fruits, paintings

ROOT = Path(__file__).parents[1]
NOTEBOOK = ROOT / "docs" / "notebook.ipynb"


@pytest.fixture
def few_demo_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw so few demo images that it takes a second; the commands, in their own processes, find them drawn."""
    monkeypatch.setattr(fruits, "NUM_IMAGES", {"Training": 2, "Test": 1})
    monkeypatch.setattr(paintings, "NUM_IMAGES", {"training_set": 16, "validation_set": 8})
    fruits.demo_fruits()
    paintings.demo_paintings()


def run(cells: Callable[[NotebookNode], list[NotebookNode]], folder: Path, **parameters: str | int) -> NotebookNode:
    """Run these cells of the notebook in a folder, with other values after those in its cell of parameters."""
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    notebook.cells = cells(notebook)
    (first,) = (i for i, cell in enumerate(notebook.cells) if "parameters" in cell.metadata.get("tags", []))
    values = "\n".join(f"{name} = {value!r}" for name, value in parameters.items())
    notebook.cells.insert(first + 1, new_code_cell(values))
    kernel = NotebookClient(notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": folder}})
    return kernel.execute()


def said(cell: NotebookNode) -> str:
    return "".join(output.text for output in cell.outputs if output.output_type == "stream")


def num_pictures(cell: NotebookNode) -> int:
    return sum("image/png" in output.get("data", {}) for output in cell.outputs)


def test_it_trains_shows_colorizes_and_resumes(few_demo_images: None, tmp_path: Path) -> None:
    notebook = run(lambda it: it.cells, NOTEBOOK.parent, RUNS=str(tmp_path / "runs"), EPOCHS=1, SIZE=32)
    cells = {cell.id: cell for cell in notebook.cells if cell.cell_type == "code"}
    everything = "".join(map(said, cells.values()))
    assert not re.search("error|Traceback", everything), everything
    assert {name: num for name, cell in cells.items() if (num := num_pictures(cell))} == {
        "show-vae": 2,
        "train-colorizer": 1,
        "colorize": 3,
        "resume": 1,
    }
    assert said(cells["install"]) == ""  # all is there, nothing is replaced
    assert "2 colorized" in said(cells["colorize"])
    (fruit_run,), (painting_run,) = (list((tmp_path / "runs" / name).iterdir()) for name in ("fruits", "paintings"))
    assert "a new one begins" in said(cells["train-vae"])
    assert f"Resuming: from {painting_run}" in said(cells["resume"])
    assert (fruit_run / "checkpoints" / "last.ckpt").is_file()
    epochs = [line.split(",")[0] for line in (painting_run / "metrics.csv").read_text().splitlines()]
    assert {"0", "1"} <= set(epochs)


def test_it_clones_the_project_if_it_is_not_there(tmp_path: Path) -> None:
    source = tmp_path / "source"
    subprocess.run(["git", "init", "--quiet", source], check=True)
    shutil.copy(ROOT / "train.py", source)
    commit = ["-c", "user.name=a", "-c", "user.email=a@b", "commit", "--quiet", "--message=all"]
    for arguments in (["add", "train.py"], commit):
        subprocess.run(["git", "-C", source, *arguments], check=True)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()

    def until_found(notebook: NotebookNode) -> list[NotebookNode]:
        last = next(i for i, cell in enumerate(notebook.cells) if cell.id == "find")
        return [*notebook.cells[: last + 1], new_code_cell("print(Path.cwd())")]

    assert said(run(until_found, elsewhere, REPOSITORY=str(source)).cells[-1]).strip() == str(elsewhere / "pigment")


def test_it_is_committed_without_outputs() -> None:
    code = [cell for cell in nbformat.read(NOTEBOOK, as_version=4).cells if cell.cell_type == "code"]
    assert {(len(cell.outputs), cell.execution_count) for cell in code} == {(0, None)}


def test_files_named_in_its_text_are_there() -> None:
    cells = nbformat.read(NOTEBOOK, as_version=4).cells
    text = "\n".join(cell.source for cell in cells)
    names = set(re.findall(r"(?:\w+/)+\w+\.yaml", text))
    links = set(re.findall(r"\]\((?!http)([^)#]+)", text))
    assert len(names) == 2
    assert len(links) == 3
    assert all((ROOT / name).is_file() for name in names | {f"docs/{link}" for link in links})


ROOMS = ("colorization", "vae", "study", "benchmarks")


@pytest.mark.slow
@pytest.mark.parametrize("command", ["train.py", *(f"-m {room}" for room in ROOMS)])
def test_a_command_starts_whatever_backend_a_notebook_passes_on_to_it(command: str) -> None:
    backend = {"MPLBACKEND": "inline_elsewhere"}  # IPython's is installed here
    arguments = [sys.executable, *command.split(), "--help"]
    done = subprocess.run(arguments, cwd=ROOT, env=os.environ | backend, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert "--help" in done.stdout
