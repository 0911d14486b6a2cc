"""The report of a study: one page that needs nothing else, the same in Markdown, and its figures as CSV."""

import base64
import csv
import statistics
from collections.abc import Callable, Iterable
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import torch
import wandb
import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from callbacks.images import grid
from callbacks.loggers import go_offline_if_necessary
from colorization import Colorizer
from colorization.colorizer import PREFIXES
from datamodules.folder import FolderDataModule
from datamodules.store import FINDINGS
from study.charts import curves_svg
from study.claims import ABOUT, CLAIMS, DEVIATION, HARDLY, PAIRS, Figure, Judged, judge
from study.measures import difference, held_out, load_data, load_model, test
from study.runs import PICTURES, Curve, Run, StudyError, find_runs, reason
from study.training import CONFIGS
from vae import ConvVAE

NUM_SHOWN = 8  # paintings that all models colorize
COLORIZER_METRICS = ("mse", "mae", "psnr", "ssim", "ciede2000", "colorfulness_difference")
VAE_METRICS = ("bits_per_dim", "sigma", "kl", "loss", "reconstruction", "psnr", "ssim")
METRICS = """\
mse, mae: squared and absolute errors of a and b, divided by 128. psnr (dB), ssim: of the RGB images, higher is better.
ciede2000: how different the colors look; up to about 1 they can hardly be told apart. colorfulness difference: below 0
paler than the truth."""
VERDICTS = f"""\
A claim is confirmed if all its figures bear it out, and refuted if one contradicts it, in both cases by more than two
standard errors. Their deviation over seeds is that of all models with several seeds together, or {DEVIATION:.0%} where
none has. About the same is what differs by up to {ABOUT:.0%}; pictures hardly differ if their colors do by a CIEDE2000
of up to {HARDLY} on average. Errors are compared in the same unit, whichever a model minimizes. A model without the
report's settings, such as model 7 without pre-trained weights, decides nothing."""


class Trained(NamedTuple):
    """A finished run, its model, and what ``test`` says of it."""

    run: Run
    model: Any  # of the first seed alone; else None
    metrics: dict[str, float]


class Picture(NamedTuple):
    caption: str
    path: str  # below the study
    uri: str  # the picture itself


Family = dict[str, list[Trained]]  # of each model, by seed
Save = Callable[[str, str, Image.Image | str], Picture]


def write_report(study: Path) -> Path:
    """Write ``report.html``, ``report.md``, ``report.csv`` and their pictures, log them to W&B, and return the page.

    Raises:
        StudyError: if there is nothing to report.
    """
    runs, left_out = find_runs(study)
    colorizers, paintings = measure(runs, Colorizer, left_out)
    vaes, vae_data = measure(runs, ConvVAE, left_out)
    for name in [path.stem for path in CONFIGS if colorizers]:
        if not (study / name).exists():
            left_out[name] = "not trained"
    if not colorizers and not vaes:
        reasons = "; ".join(f"{what}: {why}" for what, why in left_out.items())
        raise StudyError(f"no run in '{study}' can be reported. {reasons or 'It is empty.'}")
    save = partial(save_picture, study)
    context = {
        "study": study.name,
        "colorizers": describe_colorizers(colorizers, paintings, save, left_out) if colorizers else None,
        "vaes": describe_vaes(vaes, save, left_out) if vaes else None,
        "data": [describe_data(data) for data in (paintings, vae_data) if data],
        "left_out": left_out,
        "about": METRICS,
        "verdicts": VERDICTS,
    }
    templates = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=select_autoescape(["html.jinja"]),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    for name in ("report.html", "report.md"):
        (study / name).write_text(templates.get_template(f"{name}.jinja").render(context))
    write_csv(study / "report.csv", [trained for several in (colorizers | vaes).values() for trained in several])
    log_to_wandb(study)
    return study / "report.html"


def measure(runs: list[Run], kind: type[Any], left_out: dict[str, str]) -> tuple[Family, Any]:
    """Test all models of a kind on the images of the first, and return these too; ``left_out`` gets who cannot be."""
    family: Family = {}
    runs, data = [run for run in runs if issubclass(run.kind, kind)], None
    for run in tqdm(runs, f"Testing {kind.__name__}", unit=" models"):
        try:
            if run.data != runs[0].data:
                raise StudyError(f"trained on other images, {run.data}, than {runs[0]}, {runs[0].data}")
            others = family.get(run.model, [])
            if others and run.recipe != others[0].run.recipe:
                raise StudyError(f"trained in another way than {others[0].run}")
            data = data or load_data(run)
            model = load_model(run)
            metrics = test(model, run, data)
            family[run.model] = [*others, Trained(run, None if others else model, metrics)]
        except Exception as error:  # what is damaged, or of another version, can raise nearly anything
            left_out[str(run)] = reason(error)
    return family, data


def describe_colorizers(family: Family, data: FolderDataModule, save: Save, left_out: dict[str, str]) -> dict[str, Any]:
    """Return what the templates say of the colorizers."""
    figures = {name: summarize(several) for name, several in family.items()}
    tested = next(iter(family.values()))[0].metrics
    baselines = {
        name: {metric: Figure(tested[prefix + metric], num_seeds=0) for metric in COLORIZER_METRICS}
        for name, prefix in PREFIXES.items()
        if prefix
    }
    all_curves = {name: curves(several, "val/mse") for name, several in family.items()}
    rows = side_by_side({name: several[0].model for name, several in family.items()}, held_out(data, NUM_SHOWN))
    return {
        "num_images": len(data.test_files()),
        "metrics": COLORIZER_METRICS,
        "table": [describe_model(several, figures[name], COLORIZER_METRICS) for name, several in family.items()],
        "baselines": {name: list(values.values()) for name, values in baselines.items()},
        "claims": judge_claims(family, figures, data),
        "all": save("loss of all", "val/mse of all models", curves_svg(all_curves, "val/mse", width=8)),
        "losses": [save(f"loss {name}", name, curves_svg(losses(several), name)) for name, several in family.items()],
        "rows": [save(f"row {name}", name, grid(row, len(row))) for name, row in rows.items()],
        "films": films(family, "colorizations", save, left_out),
    }


def judge_claims(
    family: Family,
    figures: dict[str, dict[str, Figure]],
    data: FolderDataModule,
) -> list[Judged]:
    """Judge what the report claims, by those of its models that are there and have its settings."""
    there = {}  # number and name
    for path in CONFIGS:
        as_reported = yaml.safe_load(path.read_text())["model"]  # a pre-trained network from scratch is not
        if path.stem in family and family[path.stem][0].run.config["model"] == as_reported:
            there[path.stem.partition("_")[0]] = path.stem
    by_number = {number: dict(figures[name]) for number, name in there.items()}
    for number, other in PAIRS:
        if number in there and other in there:
            ours, theirs = (family[there[one]][0].model for one in (number, other))
            by_number[number][f"difference from {other}"] = Figure(difference(ours, theirs, data))
    epochs = {number: family[name][0].run.num_epochs for number, name in there.items()}
    return [judge(claim, by_number, epochs) for claim in CLAIMS]


def side_by_side(models: dict[str, Colorizer], images: Tensor) -> dict[str, Tensor]:
    """Return the lightness of images (B, 3, H, W), what each model makes of it, and the images."""
    some_model = next(iter(models.values()))
    lightness, chroma = some_model.split(images)
    colorized = {name: model.colorize(images) for name, model in models.items()}
    return {"lightness": some_model.join(lightness, torch.zeros_like(chroma)), **colorized, "original": images}


def describe_vaes(family: Family, save: Save, left_out: dict[str, str]) -> dict[str, Any]:
    """Return what the templates say of the VAEs."""
    terms = ("loss", "reconstruction", "kl")
    return {
        "table": [describe_model(several, summarize(several), VAE_METRICS) for several in family.values()],
        "metrics": VAE_METRICS,
        "losses": [
            save(f"{term} {name}", f"{name}: {term}", curves_svg(losses(several, term), f"{name}: {term}"))
            for name, several in family.items()
            for term in terms
        ],
        "films": [film for name in ("reconstructions", "samples") for film in films(family, name, save, left_out)],
    }


def describe_model(several: list[Trained], figures: dict[str, Figure], metrics: Iterable[str]) -> dict[str, Any]:
    """Return a model's line in a table."""
    run, model = several[0].run, several[0].model
    settings = {name: value for name, value in run.config["model"]["init_args"].items() if name != "image_size"}
    minutes = [one.run.seconds / 60 for one in several if one.run.seconds is not None]
    return {
        "name": run.model,
        "settings": ", ".join([type(model).__name__, *(f"{name} {value}" for name, value in settings.items())]),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "epochs": run.num_epochs,
        "seeds": ", ".join(str(one.run.seed) for one in several),
        "minutes": f"{statistics.mean(minutes):.1f}" if minutes else "unknown",
        "figures": [str(figures[metric]) if metric in figures else "" for metric in metrics],
    }


def describe_data(data: FolderDataModule) -> dict[str, Any]:
    """Return what the store's manifest says in sum."""
    counts, parts = data.store.counts, data.store.parts
    return {
        "root": data.root or f"demo {data.kind}, drawn by the program",
        "size": data.size,
        "parts": [part or "unknown" for part in parts],
        "findings": [
            (meaning, [counts[finding].get(part, 0) for part in parts])
            for finding, meaning in FINDINGS.items()
            if finding in counts
        ],
    }


def summarize(several: list[Trained]) -> dict[str, Figure]:
    """Return the figures of a model over its seeds: those of ``test``, and how its curves end."""
    values = [dict(one.metrics) for one in several]
    for one, of in zip(several, values, strict=True):
        of |= {f"final {name}": curve[-1][1] for name, curve in one.run.history.items()}
        losses = [loss for _, loss in one.run.history["train/loss"]]
        of["final / first train/loss"] = losses[-1] / losses[0]
    return {name: summary([of[name] for of in values]) for name in values[0] if all(name in of for of in values)}


def summary(values: list[float]) -> Figure:
    return Figure(statistics.mean(values), statistics.stdev(values) if len(values) > 1 else 0.0, len(values))


def curves(several: list[Trained], metric: str) -> list[Curve]:
    return [one.run.history[metric] for one in several]


def losses(several: list[Trained], term: str = "loss") -> dict[str, list[Curve]]:
    return {part: curves(several, f"{part}/{term}") for part in ("train", "val")}


def films(family: Family, name: str, save: Save, left_out: dict[str, str]) -> list[Picture]:
    """Return the film strips that the runs with the first seed have made of themselves."""
    strips = []
    for model, several in family.items():
        path = several[0].run.run_folder / "media" / f"{name}.png"
        try:
            with Image.open(path) as strip:
                strips.append(save(f"film {name} {model}", f"{model}: {name}", strip))
        except (OSError, SyntaxError):  # it is not there, or a kill has cut it off
            left_out[f"{several[0].run}, film strip"] = f"'{path}' cannot be read"
    return strips


def save_picture(study: Path, name: str, caption: str, picture: Image.Image | str) -> Picture:
    """Write a picture (SVG, or pixels as JPEG) for the Markdown, and return it for the page, too."""
    if isinstance(picture, str):
        content, kind, suffix = picture.encode(), "image/svg+xml", "svg"
    else:
        jpeg = BytesIO()
        picture.convert("RGB").save(jpeg, "JPEG", quality=95, subsampling="4:4:4")  # color is what matters
        content, kind, suffix = jpeg.getvalue(), "image/jpeg", "jpg"
    path = Path(PICTURES, f"{name.replace(' ', '_').replace('/', '_')}.{suffix}")
    (study / path).parent.mkdir(exist_ok=True)
    (study / path).write_bytes(content)
    return Picture(caption, str(path), f"data:{kind};base64,{base64.b64encode(content).decode()}")


def write_csv(path: Path, trained: list[Trained]) -> None:
    """Write a line for each run, with all that ``test`` says of it."""
    names = sorted(set().union(*(one.metrics for one in trained)))
    with path.open("w", newline="") as file:
        lines = csv.DictWriter(file, ["model", "seed", "epochs", "seconds", *names, "folder"])
        lines.writeheader()
        for run, _, metrics in trained:
            about = {"model": run.model, "seed": run.seed, "epochs": run.num_epochs, "seconds": run.seconds}
            lines.writerow({**about, **metrics, "folder": str(run.run_folder)})


def log_to_wandb(study: Path) -> None:
    """Log the report as a page and as files, in a run of its own."""
    if offline_because := go_offline_if_necessary():
        print(f"W&B: offline, {offline_because}. To upload the report later: wandb sync {study}/wandb/offline-run-*")
    folder = study.absolute()  # W&B's service process stays where it was started
    with wandb.init(project="pigment", job_type="study", name=f"{study.name} report", dir=folder) as run:
        run.log({"report": wandb.Html(study / "report.html", inject=False)})
        artifact = wandb.Artifact(f"{study.name}-report", type="report")
        for path in study.glob("report.*"):
            artifact.add_file(str(path))
        artifact.add_dir(str(study / PICTURES), name=PICTURES)
        run.log_artifact(artifact)
