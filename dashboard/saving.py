"""The tables of panels.py as W&B's own objects, saved in place of those that were saved before."""

import math

import wandb
import wandb_workspaces.reports.v2 as wr
import wandb_workspaces.workspaces as ws
from wandb_workspaces import expr
from wandb_workspaces.reports.v2.interface import BlockTypes, MetricType, PanelTypes

from dashboard.panels import COLORIZERS, STUDY, VAES, Bars, Curves, Dashboard, Media, Section
from system.errors import PigmentError

GRID = 24  # columns of a report's grid of panels


def save_all(project: str) -> dict[str, str]:
    """Save all dashboards, and return their addresses by their titles.

    Raises:
        PigmentError: if there is no such project.
    """
    wandb.termsetup(wandb.Settings(silent=True), None)  # it would say the addresses, too
    api = wandb.Api()
    entity = str(api.settings["entity"] or api.default_entity)
    if project not in {one.name for one in api.projects(entity)}:
        raise PigmentError(
            f"'{entity}' has no project '{project}' in W&B. Train a model online first, or give --project."
        )
    saved = {one.title: save_workspace(make_workspace(one, entity, project), one.name) for one in (COLORIZERS, VAES)}
    return {**saved, STUDY.title: save_report(make_report(STUDY, entity, project))}


def make_panel(panel: Curves | Bars | Media) -> wr.LinePlot | wr.BarPlot | wr.MediaBrowser:
    if isinstance(panel, Media):
        return wr.MediaBrowser(title=panel.title, media_keys=list(panel.metrics), num_columns=1)
    metrics: list[MetricType] = [wr.Metric(name) for name in panel.metrics]
    if isinstance(panel, Curves):
        return wr.LinePlot(title=panel.title, x=wr.Metric(panel.x), y=metrics, log_y=panel.log)
    return wr.BarPlot(
        title=panel.title,
        metrics=metrics,
        aggregate=True,
        groupby="Group",
        groupby_aggfunc="mean",
        groupby_rangefunc="minmax",
    )


def make_workspace(dashboard: Dashboard, entity: str, project: str) -> ws.Workspace:
    best, *_ = columns = [expr.Summary(name) for name in dashboard.ranking]
    return ws.Workspace(
        entity,
        project,
        dashboard.title,
        [make_section(section) for section in dashboard.sections],
        runset_settings=ws.RunsetSettings(
            filters=dashboard.runs,
            order=[expr.Ordering(best, ascending=True)],
            pinned_columns=[f"summary:{column.name}" for column in columns],
        ),
    )


def make_section(section: Section) -> ws.Section:
    panels: list[PanelTypes] = [make_panel(panel) for panel in section.panels]
    if section.text:
        panels.append(wr.MarkdownPanel(markdown=section.text))
    num_rows = math.ceil(len(panels) / section.columns)
    return ws.Section(
        section.title, panels, is_open=True, layout_settings=ws.SectionLayoutSettings(section.columns, num_rows)
    )


def make_report(dashboard: Dashboard, entity: str, project: str) -> wr.Report:
    order = [wr.OrderBy(wr.SummaryMetric(dashboard.ranking[0]), ascending=True)]
    blocks: list[BlockTypes] = []
    for section in dashboard.sections:
        runs = wr.Runset(entity, project, dashboard.title, filters=dashboard.runs, order=order)
        side_by_side: list[PanelTypes] = []
        for index, panel in enumerate(map(make_panel, section.panels)):
            width = GRID // len(section.panels)
            panel.layout = wr.Layout(index * width, 0, width, 8)
            side_by_side.append(panel)
        blocks += [wr.H2(section.title), wr.MarkdownBlock(section.text), wr.PanelGrid([runs], panels=side_by_side)]
    return wr.Report(project, entity, dashboard.title, blocks=blocks, width="fluid")


def save_workspace(workspace: ws.Workspace, name: str) -> str:
    """Save a workspace in place of the one with this name, and return its address."""
    workspace._internal_name = f"nw-{name}-v"  # otherwise the library would take a new one every time
    try:
        workspace._internal_id = ws.Workspace.from_url(workspace.url)._internal_id
    except ValueError as error:
        if "not found in project" not in str(error):
            raise
    return workspace.save().url


def save_report(report: wr.Report) -> str:
    """Save a report in place of the one with this title, and return its address."""
    for earlier in wandb.Api().reports(f"{report.entity}/{report.project}"):
        if earlier.display_name == report.title:
            report.id = earlier.id
    return report.save().url
