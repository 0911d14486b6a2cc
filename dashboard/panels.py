"""What the dashboards show: tables of sections and panels."""

from typing import NamedTuple

STEP, EPOCH, TIME = "trainer/global_step", "epoch", "RelativeTime(Process)"
NUM_GPUS = 8  # of a machine, at most; of those that it lacks, nothing is drawn


class Curves(NamedTuple):
    """A line for each run and metric."""

    title: str
    metrics: tuple[str, ...]
    x: str = STEP
    log: bool = False


class Bars(NamedTuple):
    """A bar for each group of runs and metric: the mean, and from the least to the greatest."""

    title: str
    metrics: tuple[str, ...]


class Media(NamedTuple):
    """Pictures or pages; if there is one for each of several epochs, a slider goes through them."""

    title: str
    metrics: tuple[str, ...]


class Section(NamedTuple):
    title: str
    panels: tuple[Curves | Bars | Media, ...]
    text: str = ""
    columns: int = 3


class Dashboard(NamedTuple):
    """A page.

    Attributes:
        name: finds the page when it is saved again; letters only.
        runs: which runs it is about, in W&B's language of filters.
        ranking: what the runs table shows of each run; the first sorts it, the least on top.
    """

    name: str
    title: str
    runs: str
    ranking: tuple[str, ...]
    sections: tuple[Section, ...]


def train_and_val(term: str) -> tuple[str, str]:
    return f"train/{term}", f"val/{term}"


def beside_baselines(metric: str) -> tuple[str, ...]:
    stage, _, name = metric.partition("/")
    return metric, f"{stage}/mean_ab_{name}", f"{stage}/gray_{name}"


def of_gpus(what: str) -> tuple[str, ...]:
    return tuple(f"system/gpu.{number}.{what}" for number in range(NUM_GPUS))


SPEED = Section(
    "Speed",
    (
        Curves("Epochs by time", (EPOCH,), TIME),
        Curves("GPU: how busy, in %", of_gpus("gpu"), TIME),
        Curves("GPU: memory in use, in %", of_gpus("memoryAllocated"), TIME),
        Curves("Processors: how busy, in %", ("system/cpu",), TIME),
        Curves("Memory in use, in %", ("system/memory_percent",), TIME),
        Curves("Loss of single batches", ("train/loss_step",), log=True),
    ),
)

# metrics that only these models log, and that are never negative
OF_COLORIZERS = 'SummaryMetric("val/colorfulness") >= 0 or SummaryMetric("test/colorfulness") >= 0'
OF_VAES = 'SummaryMetric("val/kl") >= 0 or SummaryMetric("test/kl") >= 0'

COLORIZERS = Dashboard(
    "pigmentcolorizers",
    "Colorizers",
    OF_COLORIZERS,
    ("val/ciede2000.min", "val/psnr.max", "val/ssim.max", "val/colorfulness_difference", "test/ciede2000"),
    (
        Section(
            "Training against validation",
            (
                Curves("Loss", train_and_val("loss"), log=True),
                Curves("Squared error", train_and_val("mse"), log=True),
                Curves("Absolute error", train_and_val("mae"), log=True),
                Curves("The tenth: cross-entropy of its scores", train_and_val("cross_entropy"), log=True),
                Curves("The tenth: difference of its chroma", train_and_val("chroma_difference"), log=True),
            ),
        ),
        Section(
            "Quality by epoch",
            (
                Curves("Color difference, CIEDE2000: lower is better", beside_baselines("val/ciede2000"), EPOCH),
                Curves("PSNR in dB: higher is better", beside_baselines("val/psnr"), EPOCH),
                Curves("SSIM: higher is better", beside_baselines("val/ssim"), EPOCH),
                Curves("Colorfulness: below 0 is paler than the original", ("val/colorfulness_difference",), EPOCH),
            ),
            "There are two baselines: `mean_ab` gives every pixel the mean color of the training images, `gray` gives "
            "it none.",
        ),
        Section(
            "Pictures",
            (
                Media("Film strip: lightness, colorized epoch by epoch, original", ("film/colorizations",)),
                Media("Lightness, colorized, original", ("colorizations",)),
            ),
            columns=1,
        ),
        Section(
            "Test images",
            (
                Bars("Color difference, CIEDE2000", beside_baselines("test/ciede2000")),
                Bars("PSNR in dB", beside_baselines("test/psnr")),
                Bars("SSIM", beside_baselines("test/ssim")),
                Bars(
                    "The tenth: color difference with 0, 1, 10, and 100 hints",
                    ("test/ciede2000", *(f"test/{number}_hints_ciede2000" for number in (1, 10, 100))),
                ),
            ),
        ),
        SPEED,
    ),
)

VAES = Dashboard(
    "pigmentvaes",
    "VAEs",
    OF_VAES,
    ("val/bits_per_dim.min", "val/loss.min", "val/kl", "test/psnr", "test/mixture_fid"),
    (
        Section(
            "Training against validation",
            (
                Curves("Loss", train_and_val("loss"), log=True),
                Curves("Reconstruction", train_and_val("reconstruction"), log=True),
                Curves("KL divergence, in nats", train_and_val("kl"), log=True),
                Curves("Bits per color value", train_and_val("bits_per_dim"), log=True),
                Curves("Sigma, in gray levels", train_and_val("sigma"), log=True),
            ),
        ),
        Section(
            "Pictures",
            (
                Media("Film strip: original, reconstructed epoch by epoch", ("film/reconstructions",)),
                Media("Film strip: new fruits, epoch by epoch", ("film/samples",)),
                Media("New fruits: from the prior, and from the mixture", ("samples",)),
                Media("Map of the codes", ("latent_map",)),
            ),
            columns=2,
        ),
        Section(
            "Test images",
            (
                Bars("PSNR in dB", ("test/psnr",)),
                Bars("SSIM", ("test/ssim",)),
                *(
                    Bars(title, tuple(f"test/{sampler}_{measure}" for sampler in ("prior", "gaussian", "mixture")))
                    for title, measure in (
                        ("New fruits: FID, lower is better", "fid"),
                        ("New fruits: density", "density"),
                        ("New fruits: coverage", "coverage"),
                        ("New fruits: nearer to a training image than real ones", "nearer_than_real"),
                    )
                ),
            ),
        ),
        SPEED,
    ),
)

STUDY = Dashboard(
    "pigmentstudy",
    "Ten colorizers compared",
    f"{OF_COLORIZERS} or Metric(\"JobType\") == 'study'",
    ("val/ciede2000.min",),
    (
        Section(
            "Which is best",
            (
                Bars("Color difference, CIEDE2000: lower is better", ("val/ciede2000.min",)),
                Bars("PSNR in dB: higher is better", ("val/psnr.max",)),
                Bars("SSIM: higher is better", ("val/ssim.max",)),
            ),
            "A student's report of 2021 trained nine colorizers, and compared them by pictures and loss curves. "
            "`python -m study run` trains all nine, and a tenth. Here is each one's best epoch on the validation "
            "images, averaged over seeds.",
        ),
        Section(
            "How they learn",
            (
                Curves("Squared error, training", ("train/mse",), EPOCH, log=True),
                Curves("Squared error, validation", ("val/mse",), EPOCH, log=True),
                Curves("Color difference, CIEDE2000", ("val/ciede2000",), EPOCH),
            ),
            "Squared errors can be compared even if a model minimizes absolute ones. Where validation rises while "
            "training falls, a model learns its images by heart.",
        ),
        Section(
            "What they paint",
            (Media("Lightness, colorized epoch by epoch, original", ("film/colorizations",)),),
            "Each colorizes the same paintings. A model that is unsure paints brown: the mean of all the colors that "
            "it thinks possible.",
        ),
        Section(
            "Whether they have learned anything",
            (Bars("Color difference of the test images", beside_baselines("test/ciede2000")),),
            "There are two baselines: `mean_ab` gives every pixel the mean color of the training images, `gray` gives "
            "it none. A model that does not beat the first has learned nothing from the picture. `train.py test` "
            "measures all three.",
        ),
        Section(
            "What became of the report's claims",
            (Media("Study page", ("study",)),),
            "`python -m study page` tests the models on the same held-out images, and says which of the report's "
            "claims hold.",
        ),
    ),
)
