import re
import sys
import tomllib
from pathlib import Path

import pytest
import wandb
import wandb_workspaces.reports.v2 as wr
import wandb_workspaces.workspaces as ws
from matplotlib.axes import Axes

from dashboard import saving
from dashboard.__main__ import main as dashboard
from dashboard.drawing import draw
from dashboard.drawing import main as draw_page
from dashboard.panels import COLORIZERS, STUDY, VAES, Dashboard, Media
from dashboard.saving import make_report, make_workspace, save_report, save_workspace
from resuming.loggers import read_metrics
from tests.wandb_server import WandbServer
from tests.world import CONFIGS, last, tiny
from train import PigmentCLI, main

ROOT = Path(__file__).parents[1]


def test_what_is_saved_is_what_the_library_reads_back(server: WandbServer) -> None:
    for table in (COLORIZERS, VAES):
        made = make_workspace(table, "me", "pigment")
        read = ws.Workspace.from_url(save_workspace(made, table.name))
        assert (read.name, read.sections, read.settings) == (table.title, made.sections, made.settings)
        assert repr(read.runset_settings) == repr(made.runset_settings)  # == of its metrics compares nothing
        assert [section.name for section in read.sections] == [section.title for section in table.sections]
    report = make_report(STUDY, "me", "pigment")
    again = wr.Report.from_url(save_report(report))
    assert again.title == STUDY.title
    assert len(again.blocks) == len(report.blocks)
    for block, built in zip(again.blocks, report.blocks, strict=True):
        if isinstance(block, wr.PanelGrid):
            assert block.panels == built.panels
            (read_runs,), (made_runs,) = block.runsets, built.runsets  # after reading, they have private fields, too
            assert (read_runs.filters, read_runs.project) == (made_runs.filters, made_runs.project)
        else:
            assert block == built
    texts = [block.text for block in again.blocks if isinstance(block, wr.MarkdownBlock)]
    assert texts == [section.text for section in STUDY.sections]


def test_saved_again_they_replace_themselves(
    server: WandbServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert dashboard([]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [re.split(" +http", line)[0] for line in lines] == [one.title for one in (COLORIZERS, VAES, STUDY)]
    before = {name: view["displayName"] for name, view in server.views.items()}
    for name in ("COLORIZERS", "VAES", "STUDY"):
        table: Dashboard = getattr(saving, name)
        monkeypatch.setattr(saving, name, table._replace(sections=table.sections[:1]))
    assert dashboard([]) == 0
    assert {name: view["displayName"] for name, view in server.views.items()} == before
    for view in server.views.values():
        assert "Loss of single batches" not in view["spec"]
        assert "Test images" not in view["spec"]
        assert "What they paint" not in view["spec"]


@pytest.mark.parametrize("mode", ["online", "offline", "disabled"])
@pytest.mark.usefixtures("wandb_offline")
def test_without_a_login_one_line_says_what_to_do(
    mode: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    for name, value in {"WANDB_MODE": mode, "WANDB_SILENT": "false", "HOME": str(tmp_path)}.items():
        monkeypatch.setenv(name, value)
    assert dashboard([]) == 2
    said = capfd.readouterr()
    (line,) = said.err.splitlines()
    assert line.startswith("error: ")
    assert "wandb login" in line
    assert not said.out


def test_a_project_that_does_not_exist_is_named(server: WandbServer, capsys: pytest.CaptureFixture[str]) -> None:
    assert dashboard(["--project=fruits"]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    assert "'fruits'" in line
    assert not server.views


def test_without_the_library_the_error_says_how_to_install_it(
    server: WandbServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "dashboard.saving", None)
    assert dashboard([]) == 2
    (wanted,) = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]["dashboards"]
    assert f"pip install '{wanted}'" in capsys.readouterr().err


def test_every_panel_shows_what_runs_log(vae_run: PigmentCLI, fruits: Path, paintings: Path) -> None:
    vaes = [vae_run, main(tiny("test", fruits, f"--ckpt_path={last(vae_run)}"))]
    nine, tenth = (CONFIGS / "colorization" / name for name in ("4_shallow_adam.yaml", "10_palette.yaml"))
    colorizers = [main(tiny("fit", paintings, "--trainer.max_epochs=1", config=config)) for config in (nine, tenth)]
    for stage in ("validate", "test"):
        colorizers.append(main(tiny(stage, paintings, f"--ckpt_path={last(colorizers[1])}", config=tenth)))
    for table, runs in ((VAES, vaes), (COLORIZERS, colorizers), (STUDY, colorizers)):
        logged = {name for run in runs for row in read_metrics(run.run_folder / "metrics.csv") for name in row}
        media = runs[0].run_folder / "media"
        drawn = {f"film/{path.stem}" for path in media.glob("*.png")} | {path.name for path in media.iterdir()}
        panels = [panel for section in table.sections for panel in section.panels]
        shown = {name for panel in panels if not isinstance(panel, Media) for name in panel.metrics} | {*table.ranking}
        shown |= set(re.findall(r'SummaryMetric\("(.*?)"\)', table.runs))
        metrics = {re.sub(r"\.(min|max)$", "", name) for name in shown if not name.startswith("system/")}
        assert metrics - logged == set()
        pictures = {name for panel in panels if isinstance(panel, Media) for name in panel.metrics}
        assert pictures - drawn - {"study"} == set()  # study page logs that one, see tests/test_study.py

    places = {place.get_title(): place for place in draw(COLORIZERS, [Path("runs")]).findobj(Axes)}
    assert places.keys() >= {panel.title for section in COLORIZERS.sections for panel in section.panels}
    assert len(places["PSNR in dB: higher is better"].lines) == 3  # with the two baselines
    assert len(places["PSNR in dB"].patches) == 3
    assert len(places["Lightness, colorized, original"].images) == 1
    assert draw_page(["runs", "--out=page.jpg"]) == 0
    assert Path("page.jpg").is_file()
    assert draw_page(["runs", "--out=."]) == 2


def test_panels_of_the_machine_show_what_weights_and_biases_samples() -> None:
    """Its own process lists the names, as patterns."""
    core = (Path(wandb.__file__).parent / "bin" / "wandb-core").read_bytes().decode("latin-1")
    sampled = re.findall(r"\^([\w\\.+]+)\(/l:\.\+\)\?\$", core)
    panels = [panel for table in (COLORIZERS, VAES) for section in table.sections for panel in section.panels]
    names = {name.removeprefix("system/") for panel in panels for name in panel.metrics if name.startswith("system/")}
    assert {"gpu.0.gpu", "gpu.7.memoryAllocated", "cpu", "memory_percent"} <= names
    assert [name for name in names if not any(re.fullmatch(pattern, name) for pattern in sampled)] == []
