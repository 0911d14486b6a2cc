"""What the report says of its models, and whether the figures bear it out."""

import math
import statistics
from collections.abc import Mapping
from enum import StrEnum
from typing import Literal, NamedTuple

ABOUT = 0.10  # two figures are about the same if they differ by no more than this share
HARDLY = 2.0  # CIEDE2000: pictures that differ by no more on average hardly differ
DEVIATION = 0.02  # relative, of a figure over seeds, where no model was trained with more than one

Relation = Literal["below", "above", "about"]


class Verdict(StrEnum):
    CONFIRMED = "confirmed"
    REFUTED = "refuted"
    OPEN = "not decidable"


class Figure(NamedTuple):
    """A metric of a model: its mean and standard deviation over seeds. Of what is no model's, there are 0 seeds."""

    mean: float
    deviation: float = 0.0
    num_seeds: int = 1

    def __str__(self) -> str:
        return f"{self.mean:.4g}" + (f" ± {self.deviation:.2g}" if self.num_seeds > 1 else "")


class Check(NamedTuple):
    """A part of a claim: how a metric of a model stands to that of another, or to a number."""

    model: str
    metric: str
    relation: Relation
    other: str | float


class Claim(NamedTuple):
    """What the report says of a model, and the checks that all have to hold if it is true."""

    model: str
    text: str
    checks: tuple[Check, ...]


class Judged(NamedTuple):
    claim: Claim
    verdict: Verdict
    evidence: list[str]  # a line for each check


def against(model: str, metric: str, relation: Relation, *others: str | float) -> tuple[Check, ...]:
    return tuple(Check(model, metric, relation, other) for other in others)


def slightly_below(model: str, metric: str, other: str) -> tuple[Check, ...]:
    return Check(model, metric, "below", other), Check(model, metric, "about", other)


# Losses are compared in the same unit: as mean squared errors, and where one of the models does not minimize that, as
# absolute errors, too. Better pictures are those nearer to the truth in CIEDE2000.
CLAIMS = (
    Claim("2", "colors better than the other models", against("2", "ciede2000", "below", *"13456789")),
    Claim(
        "2",
        "... because it is deep: so do all deep networks, each against its shallow twin",
        (
            *against("2", "ciede2000", "below", "1"),
            *against("6", "ciede2000", "below", "4"),
            *against("9", "ciede2000", "below", "8"),
        ),
    ),
    Claim("2", "loss about model 1's", against("2", "mse", "about", "1")),
    Claim("3", "worse pictures than model 1", against("3", "ciede2000", "above", "1")),
    Claim(
        "3",
        "final train and validation loss above model 1's",
        (*against("3", "final train/mse", "above", "1"), *against("3", "final val/mse", "above", "1")),
    ),
    Claim("4", "better pictures than models 1 to 3", against("4", "ciede2000", "below", *"123")),
    Claim("4", "loss about model 1's", against("4", "mse", "about", "1")),
    Claim(
        "5",
        "unsatisfying pictures: farther from the truth than those of models 1 and 4",
        against("5", "ciede2000", "above", *"14"),
    ),
    Claim("5", "loss falls", against("5", "final / first train/loss", "below", 1.0)),
    Claim(
        "5",
        "loss stays above that of models 1 and 4, and below that of 2 and 3 (though model 2's is said to be about 1's)",
        (*against("5", "mse", "above", *"14"), *against("5", "mse", "below", *"23")),
    ),
    Claim(
        "7",
        "somewhat better pictures, no essential difference, than the better models before, 4 and 6",
        (*against("7", "ciede2000", "below", *"46"), *against("7", "ciede2000", "about", *"46")),
    ),
    Claim("7", "loss about that of the better models, 4 and 6", against("7", "mse", "about", *"46")),
    Claim("8", "loss very slightly below model 4's, as MSE", slightly_below("8", "mse", "4")),
    Claim("8", "loss very slightly below model 4's, as MAE", slightly_below("8", "mae", "4")),
    Claim("8", "pictures hardly differ from model 4's", against("8", "difference from 4", "below", HARDLY)),
    Claim("9", "loss slightly below model 6's, as MSE", slightly_below("9", "mse", "6")),
    Claim("9", "loss slightly below model 6's, as MAE", slightly_below("9", "mae", "6")),
    Claim("9", "pictures hardly differ from model 6's", against("9", "difference from 6", "below", HARDLY)),
)
PAIRS = (("8", "4"), ("9", "6"))  # of which the difference is measured

Figures = Mapping[str, Mapping[str, Figure]]  # of each model, by its number, and metric


def judge(claim: Claim, figures: Figures, epochs: Mapping[str, int]) -> Judged:
    """Decide a claim: refuted if one of its checks is, confirmed if all are, and else not decidable."""
    verdicts, evidence = zip(*(decide(check, figures, epochs) for check in claim.checks), strict=True)
    if Verdict.REFUTED in verdicts:
        verdict = Verdict.REFUTED
    else:
        verdict = Verdict.OPEN if Verdict.OPEN in verdicts else Verdict.CONFIRMED
    return Judged(claim, verdict, list(evidence))


def decide(check: Check, figures: Figures, epochs: Mapping[str, int]) -> tuple[Verdict, str]:
    """Compare two figures, and say what they are; what chance alone might have done is not decidable."""
    model, metric, relation, other = check
    ours = figures.get(model, {}).get(metric)
    theirs = Figure(other, num_seeds=0) if isinstance(other, float) else figures.get(other, {}).get(metric)
    whose = other if isinstance(other, float) else f"model {other}'s"
    said = f"{metric} {relation} {whose}"
    if not ours or not theirs:
        lacking = [f"model {name}" for name in (model, other) if isinstance(name, str) and name not in figures]
        of = " and ".join(lacking) or "one of the two"
        return Verdict.OPEN, f"{said}: no finished run, with the report's settings, of {of}"
    said += f": {ours} against {theirs}"
    if isinstance(other, str) and epochs[model] != epochs[other]:
        said += f", after {epochs[model]} against {epochs[other]} epochs"
    gap, margin = ours.mean - theirs.mean, margin_of(ours, theirs, metric, figures)
    if relation == "about":
        said += f" ({gap / theirs.mean:+.1%})"
        allowed = ABOUT * theirs.mean
        holds, is_certain = abs(gap) <= allowed, abs(abs(gap) - allowed) > margin
    else:
        holds, is_certain = (gap < 0) == (relation == "below"), abs(gap) > margin
    if not is_certain:
        return Verdict.OPEN, f"{said}: within chance"
    return (Verdict.CONFIRMED, f"{said}: yes") if holds else (Verdict.REFUTED, f"{said}: no")


def margin_of(ours: Figure, theirs: Figure, metric: str, figures: Figures) -> float:
    """Return how far two figures may lie apart by chance: two standard errors of their difference.

    The relative standard deviation is that of the metric over seeds, pooled over all models with several of them, since
    two or three seeds of one model alone say too little.
    """
    known = [found[metric] for found in figures.values() if metric in found and found[metric].num_seeds > 1]
    squares = [(figure.deviation / figure.mean) ** 2 for figure in known]
    deviation = math.sqrt(statistics.fmean(squares)) if squares else DEVIATION
    errors = [deviation * figure.mean / math.sqrt(figure.num_seeds) for figure in (ours, theirs) if figure.num_seeds]
    return 2 * math.hypot(*errors)
