import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FLOORS = (  # a module imports from its own room and from lower floors, here to the left
    ("system", "modes", "epoch_means"),
    ("images", "learning_rate"),
    ("colorization", "vae", "datamodules"),
    ("resuming",),
    ("callbacks",),
    ("cli",),
    ("train",),
    ("study", "benchmarks", "dashboard"),
    ("atelier",),
)
FLOOR_OF = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
MODULES = [
    path
    for path in sorted(ROOT.rglob("*.py"))
    if path.relative_to(ROOT).parts[0] != "tests" and not any(part[0] == "." for part in path.relative_to(ROOT).parts)
]
LOOPS = {"fit_loop", "epoch_loop", "val_loop", "batch_progress", "epoch_progress", "validate_loop", "test_loop"}


def room_of(module: Path) -> str:
    return module.relative_to(ROOT).with_suffix("").parts[0]


def imports(module: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(module.read_text())):
        yield from imported(node)


def imported(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.ImportFrom):
        yield (node.module or "").partition(".")[0]
    elif isinstance(node, ast.Import):
        yield from (alias.name.partition(".")[0] for alias in node.names)


def test_every_module_has_a_room() -> None:
    assert {room_of(module) for module in MODULES} == set(FLOOR_OF)


@pytest.mark.parametrize("module", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_lead_down(module: Path) -> None:
    room = room_of(module)
    floor = len(FLOORS) if module.name == "__main__.py" else FLOOR_OF[room]  # commands may import everything
    for other in imports(module):
        assert other == room or FLOOR_OF.get(other, -1) < floor, f"{room} may not import {other}"


@pytest.mark.parametrize("module", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_inside_of_lightning_is_leaned_on_in_one_file(module: Path) -> None:
    attributes = [node for node in ast.walk(ast.parse(module.read_text())) if isinstance(node, ast.Attribute)]
    private = {node.attr for node in attributes if "trainer" in ast.unparse(node.value) and node.attr[0] == "_"}
    found = private | {node.attr for node in attributes if node.attr in LOOPS}
    assert (found != set()) == (module.name == "lightning_internals.py"), found


def test_a_light_module_is_imported_lightly() -> None:
    loaded = "import sys, datamodules.cache; print(*{name.partition('.')[0] for name in sys.modules})"
    done = subprocess.run([sys.executable, "-c", loaded], cwd=ROOT, capture_output=True, text=True, check=True)
    assert {"kornia", "imagecodecs", "tifffile", "torchvision", "skimage", "sklearn", "wandb"} & set(
        done.stdout.split()
    ) == set()


def test_no_module_imports_timm_before_it_is_used() -> None:
    """It takes seconds, which only those should wait for who build a network of it."""
    at_once = {
        module: [node for node in ast.parse(module.read_text()).body if isinstance(node, ast.Import | ast.ImportFrom)]
        for module in MODULES
    }
    assert [
        module for module, nodes in at_once.items() if "timm" in {name for one in nodes for name in imported(one)}
    ] == []
