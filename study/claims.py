"""What the report says about its models, and whether the measurements agree."""

import math
import statistics
from collections.abc import Mapping
from enum import StrEnum
from typing import Literal, NamedTuple

ABOUT = 0.10  # two figures are about the same if they differ by at most this fraction
HARDLY = 2.0  # pictures hardly differ if their mean CIEDE2000 is at most this
DEVIATION = 0.02  # the relative deviation over seeds to assume if no model has several

Relation = Literal["below", "above", "about"]


class Verdict(StrEnum):
    CONFIRMED = "confirmed"
    REFUTED = "refuted"
    OPEN = "not decidable"


class Figure(NamedTuple):
    """A metric's mean and standard deviation over seeds; ``num_seeds`` is 0 for baselines and constants."""

    mean: float
    deviation: float = 0.0
    num_seeds: int = 1

    def __str__(self) -> str:
        return f"{self.mean:.4g}" + (f" ± {self.deviation:.2g}" if self.num_seeds > 1 else "")


class Check(NamedTuple):
    """One comparison: a model's metric with another model's, or with a number."""

    model: str
    metric: str
    relation: Relation
    other: str | float


class Claim(NamedTuple):
    """What the report says about a model, and the checks that must all pass if it is true."""

    model: str
    text: str
    checks: tuple[Check, ...]


class Assessed(NamedTuple):
    claim: Claim
    verdict: Verdict
    evidence: list[str]  # a line for each check


def against(model: str, metric: str, relation: Relation, *others: str | float) -> tuple[Check, ...]:
    return tuple(Check(model, metric, relation, other) for other in others)


def slightly_below(model: str, metric: str, other: str) -> tuple[Check, ...]:
    return Check(model, metric, "below", other), Check(model, metric, "about", other)


# Losses are compared in the same unit: as mean squared errors and, if one of the models minimizes absolute errors, as
# absolute errors too. Pictures are better if they are closer to the truth in CIEDE2000.
CLAIMS = (
    Claim("2", "colors better than all other models", against("2", "ciede2000", "below", *"13456789")),
    Claim(
        "2",
        "... because it is deep: every deep network beats its shallow twin",
        tuple(Check(deep, "ciede2000", "below", shallow) for deep, shallow in ("21", "64", "98")),
    ),
    Claim("2", "its loss is about model 1's", against("2", "mse", "about", "1")),
    Claim("3", "its pictures are worse than model 1's", against("3", "ciede2000", "above", "1")),
    Claim(
        "3",
        "its training and validation losses end above model 1's",
        against("3", "final train/mse", "above", "1") + against("3", "final val/mse", "above", "1"),
    ),
    Claim("4", "its pictures are better than those of models 1 to 3", against("4", "ciede2000", "below", *"123")),
    Claim("4", "its loss is about model 1's", against("4", "mse", "about", "1")),
    Claim(
        "5",
        "its pictures are unsatisfying: farther from the truth than those of models 1 and 4",
        against("5", "ciede2000", "above", *"14"),
    ),
    Claim("5", "its loss falls", against("5", "final / first train/loss", "below", 1.0)),
    Claim(
        "5",
        "its loss stays above those of models 1 and 4 and below those of 2 and 3 (though 2's is said to be about 1's)",
        against("5", "mse", "above", *"14") + against("5", "mse", "below", *"23"),
    ),
    Claim(
        "7",
        "its pictures are somewhat, but not essentially, better than those of the better earlier models, 4 and 6",
        against("7", "ciede2000", "below", *"46") + against("7", "ciede2000", "about", *"46"),
    ),
    Claim("7", "its loss is about as low as those of the better models, 4 and 6", against("7", "mse", "about", *"46")),
    Claim("8", "its loss is very slightly below model 4's, as MSE", slightly_below("8", "mse", "4")),
    Claim("8", "its loss is very slightly below model 4's, as MAE", slightly_below("8", "mae", "4")),
    Claim("8", "its pictures hardly differ from model 4's", against("8", "difference from 4", "below", HARDLY)),
    Claim("9", "its loss is slightly below model 6's, as MSE", slightly_below("9", "mse", "6")),
    Claim("9", "its loss is slightly below model 6's, as MAE", slightly_below("9", "mae", "6")),
    Claim("9", "its pictures hardly differ from model 6's", against("9", "difference from 6", "below", HARDLY)),
)
PAIRS = (("8", "4"), ("9", "6"))  # the claims compare their pictures with each other

Figures = Mapping[str, Mapping[str, Figure]]  # by the model's number and the metric


def assess(claim: Claim, figures: Figures, epochs: Mapping[str, int]) -> Assessed:
    """Refute a claim if a check fails, confirm it if all pass, and leave it open otherwise."""
    verdicts, evidence = zip(*(decide(check, figures, epochs) for check in claim.checks), strict=True)
    verdict = next((one for one in (Verdict.REFUTED, Verdict.OPEN) if one in verdicts), Verdict.CONFIRMED)
    return Assessed(claim, verdict, list(evidence))


def decide(check: Check, figures: Figures, epochs: Mapping[str, int]) -> tuple[Verdict, str]:
    """Compare two figures and say what they are; a gap that chance could explain decides nothing."""
    model, metric, relation, other = check
    ours = figures.get(model, {}).get(metric)
    if isinstance(other, str):
        theirs, whose = figures.get(other, {}).get(metric), f"model {other}'s"
    else:
        theirs, whose = Figure(other, num_seeds=0), str(other)
    said = f"{metric} {relation} {whose}"
    if not ours or not theirs:
        missing = [f"model {name}" for name in (model, other) if isinstance(name, str) and name not in figures]
        models = " and ".join(missing) or "one of the two"
        return Verdict.OPEN, f"{said}: no finished run with the report's settings for {models}"
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
    """Return how far apart two figures may be by chance: two standard errors of their difference.

    The relative deviation is pooled over all models with several seeds: two or three seeds of one model say too little.
    """
    known = [found[metric] for found in figures.values() if metric in found and found[metric].num_seeds > 1]
    squares = [(figure.deviation / figure.mean) ** 2 for figure in known]
    deviation = math.sqrt(statistics.fmean(squares)) if squares else DEVIATION
    errors = [deviation * figure.mean / math.sqrt(figure.num_seeds) for figure in (ours, theirs) if figure.num_seeds]
    return 2 * math.hypot(*errors)
