"""The study page, which needs no other file, and its figures as CSV."""

import base64
import csv
import statistics
from pathlib import Path
from typing import Any, NamedTuple

import torch
import wandb
from PIL import Image
from torch import Tensor
from wandb.util import make_artifact_name_safe

from colorization import Colorizer
from colorization.colorizer import BASELINES
from colorization.palette import NUM_HINTS
from datamodules.folder import FolderDataModule
from datamodules.store import FINDINGS
from images.drawing import data_url, grid
from resuming.loggers import go_offline_if_necessary, sync_command
from study.charts import curves_svg
from study.claims import ABOUT, CLAIMS, DEVIATION, HARDLY, PAIRS, Assessed, Figure, assess
from study.measures import Family, Tested, difference, held_out, measure, summarize
from study.runs import find_runs, model_of
from study.training import CONFIGS, as_parsed
from system.atomic import make_folders, writing
from system.errors import PigmentError, reason, shown
from system.templates import read_template
from vae import VAE

NUM_SHOWN = 8  # paintings that all models colorize
COLORIZER_METRICS = (
    "mse",
    "mae",
    "psnr",
    "ssim",
    "ciede2000",
    "colorfulness_difference",
    "colorfulness_ratio",
    "lpips",
)
HINTED = ("", *(f"{number}_hints_" for number in NUM_HINTS))  # prefixes of what ``test`` measures
VAE_METRICS = ("bits_per_dim", "sigma", "kl", "loss", "reconstruction", "psnr", "ssim")
VAE_TERMS = ("loss", "reconstruction", "kl")


class Picture(NamedTuple):
    caption: str
    uri: str  # which holds the picture itself


def write_page(study: Path) -> Path:
    """Write ``study.html`` and ``study.csv``, log them to W&B, and return the page.

    Raises:
        PigmentError: if no run in the study can be used, the files cannot be written, or W&B does not take them.
    """
    name = study.resolve().name
    page, figures = study / "study.html", study / "study.csv"
    runs, left_out = find_runs(study)
    make_folders([page, figures])
    families = measure(runs, left_out)
    if not families:
        reasons = "; ".join(f"{what}: {why}" for what, why in left_out.items())
        raise PigmentError(f"no run in '{study}' can be used. {reasons or 'It is empty.'}")
    colorizers, vaes = families.get(Colorizer), families.get(VAE)
    if colorizers:
        left_out |= {path.stem: "not trained" for path in CONFIGS if not (study / path.stem).exists()}
    context = {
        "study": name,
        "colorizers": describe_colorizers(colorizers, left_out) if colorizers else None,
        "vaes": describe_vaes(vaes, left_out) if vaes else None,
        "data": [describe_data(family.data) for family in (colorizers, vaes) if family],
        "left_out": left_out,
        "limits": {"about": f"{ABOUT:.0%}", "hardly": HARDLY, "deviation": f"{DEVIATION:.0%}"},
    }
    template = read_template(Path(__file__).with_name("page.html.jinja"))
    with writing(page, "w", encoding="utf-8") as file:
        file.write(template.render(context))
    tested = [one for family in (colorizers, vaes) if family for several in family.models.values() for one in several]
    write_csv(figures, tested)
    try:
        log_to_wandb(name, page, figures)
    except wandb.Error as error:
        raise PigmentError(f"'{page}' is written, but W&B does not take it: {reason(error)}") from error
    return page


def describe_colorizers(family: Family, left_out: dict[str, str]) -> dict[str, Any]:
    """Return what the template says about the colorizers."""
    data, models = family
    figures = {name: summarize(several) for name, several in models.items()}
    tested = next(iter(models.values()))[0].metrics
    metrics = tuple(metric for metric in COLORIZER_METRICS if metric in tested)  # LPIPS may be left out
    baselines = {name: [Figure(tested[f"{name}_{metric}"], num_seeds=0) for metric in metrics] for name in BASELINES}
    everything = {name: [one.run.history["val/mse"] for one in several] for name, several in models.items()}
    rows = side_by_side({name: several[0].model for name, several in models.items()}, held_out(data, NUM_SHOWN))
    return {
        "num_images": len(data.test_dataloader().dataset),  # type: ignore[arg-type]
        "metrics": metrics,
        "table": [describe_model(several, figures[name], metrics) for name, several in models.items()],
        "hints": [
            (name, [found[f"{prefix}ciede2000"] for prefix in HINTED])
            for name, found in figures.items()
            if f"{HINTED[-1]}ciede2000" in found
        ],
        "num_hints": (0, *NUM_HINTS),
        "baselines": baselines,
        "claims": assess_claims(family, figures),
        "all": embed("val/mse of all models", curves_svg(everything, "val/mse", width=8)),
        "losses": [draw_losses(name, several, "loss") for name, several in models.items()],
        "rows": [embed(name, grid(row, len(row))) for name, row in rows.items()],
        "films": read_films(family, "colorizations", left_out),
    }


def assess_claims(family: Family, figures: dict[str, dict[str, Figure]]) -> list[Assessed]:
    """Assess what the report claims, using only models that have the report's settings."""
    there = {}  # number: models
    for path in CONFIGS:  # unlike the report's model 7, one from scratch has no pre-trained weights
        several = family.models.get(path.stem)
        if several and model_of(several[0].run.config) == model_of(as_parsed([f"--config={path}"])):
            there[path.stem.partition("_")[0]] = several
    by_number = {number: dict(figures[several[0].run.model]) for number, several in there.items()}
    for number, other in PAIRS:
        if number in there and other in there:
            first, second = (there[one][0].model for one in (number, other))
            by_number[number][f"difference from {other}"] = Figure(difference(first, second, family.data))
    epochs = {number: several[0].run.num_epochs for number, several in there.items()}
    return [assess(claim, by_number, epochs) for claim in CLAIMS]


def side_by_side(models: dict[str, Colorizer], images: Tensor) -> dict[str, Tensor]:
    """Return the lightness of images (B, 3, H, W), what each model makes of it, and the images."""
    some_model = next(iter(models.values()))
    lightness, chroma = some_model.split(images)
    colorized = {name: model.colorize(images) for name, model in models.items()}
    return {"lightness": some_model.join(lightness, torch.zeros_like(chroma)), **colorized, "original": images}


def describe_vaes(family: Family, left_out: dict[str, str]) -> dict[str, Any]:
    """Return what the template says about the VAEs."""
    models = family.models
    losses = [draw_losses(name, several, term) for name, several in models.items() for term in VAE_TERMS]
    films = [film for name in ("reconstructions", "samples") for film in read_films(family, name, left_out)]
    return {
        "table": [describe_model(several, summarize(several), VAE_METRICS) for several in models.values()],
        "metrics": VAE_METRICS,
        "pictures": losses + films,
    }


def describe_model(several: list[Tested], figures: dict[str, Figure], metrics: tuple[str, ...]) -> dict[str, Any]:
    """Return a model's row in a table."""
    run, model, _ = several[0]
    settings = {name: value for name, value in run.config["model"]["init_args"].items() if name != "image_size"}
    minutes = [one.run.seconds / 60 for one in several if one.run.seconds is not None]
    return {
        "name": run.model,
        "settings": ", ".join([type(model).__name__, *(f"{name} {value}" for name, value in settings.items())]),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "epochs": run.num_epochs,
        "seeds": ", ".join(str(one.run.seed) for one in several),
        "minutes": f"{statistics.mean(minutes):.1f}" if minutes else "unknown",
        "figures": [figures.get(metric, "") for metric in metrics],
    }


def describe_data(data: FolderDataModule) -> dict[str, Any]:
    """Return what became of the files, in numbers."""
    counts, parts = data.store.counts, data.store.parts
    return {
        "root": data.root or f"Demo {data.kind}, drawn by the program",
        "size": data.size,
        "parts": [part or "unknown" for part in parts],
        "findings": [
            (meaning, [counts[finding].get(part, 0) for part in parts])
            for finding, meaning in FINDINGS.items()
            if finding in counts
        ],
    }


def draw_losses(model: str, several: list[Tested], term: str) -> Picture:
    """Draw how a term of the loss fell in training and validation, with a curve for each seed."""
    title = f"{model}: {term}"
    curves = {part: [one.run.history[f"{part}/{term}"] for one in several] for part in ("train", "val")}
    return embed(title, curves_svg(curves, title))


def read_films(family: Family, name: str, left_out: dict[str, str]) -> list[Picture]:
    """Return the film strips that the runs with the first seed drew at their end."""
    films = []
    for model, several in family.models.items():
        path = several[0].run.run_folder / "media" / f"{name}.png"
        try:
            with Image.open(path) as film:
                films.append(embed(f"{model}: {name}", film))
        except (OSError, SyntaxError):  # it is not there, or a kill cut it off
            left_out[f"{several[0].run}, film strip"] = f"'{path}' cannot be read"
    return films


def embed(caption: str, picture: Image.Image | str) -> Picture:
    """Encode a picture (SVG, or pixels as JPEG) so that the page can hold it."""
    if isinstance(picture, str):
        return Picture(caption, f"data:image/svg+xml;base64,{base64.b64encode(picture.encode()).decode()}")
    url = data_url(picture.convert("RGB"), "JPEG", quality=95, subsampling="4:4:4")  # color is what matters
    return Picture(caption, url)


def write_csv(path: Path, tested: list[Tested]) -> None:
    """Write a row for each run, with everything that ``train.py test`` measures."""
    names = sorted(set().union(*(one.metrics for one in tested)))
    with writing(path, "w", newline="") as file:
        rows = csv.DictWriter(file, ["model", "seed", "epochs", "seconds", *names, "folder"])
        rows.writeheader()
        for run, _, metrics in tested:
            about = {"model": run.model, "seed": run.seed, "epochs": run.num_epochs, "seconds": run.seconds}
            rows.writerow({**about, **metrics, "folder": run.run_folder})


def log_to_wandb(study: str, page: Path, figures: Path) -> None:
    """Log the page to its own W&B run, both as HTML and as a file beside its figures."""
    folder = page.parent.absolute()  # W&B's service process stays where it was started
    if offline_because := go_offline_if_necessary():
        print(shown(f"W&B: offline, {offline_because}. To upload the page later: {sync_command(folder)}"))
    with wandb.init(project="pigment", job_type="study", name=f"{study} page", dir=folder) as run:
        run.log({"study": wandb.Html(page, inject=False)})
        artifact = wandb.Artifact(make_artifact_name_safe(f"{study}-page"), type="study")
        for path in (page, figures):
            artifact.add_file(str(path))
        run.log_artifact(artifact)
