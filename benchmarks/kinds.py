"""How far a VAE's fruit is from real fruit, to a classifier of kinds: python -m benchmarks.kinds --root FOLDER"""

import math
import sys
from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import OneCycleLR
from torchmetrics.image.fid import FrechetInceptionDistance
from tqdm import trange

from cli.arguments import ArgumentParser, local_path
from datamodules.folder import Images, in_batches
from resuming.checkpoints import load_model, training_data
from system.command import Command
from system.errors import PigmentError, shown
from system.hardware import keep_freed_memory
from vae import VAE
from vae.metrics import Features
from vae.weights import FRUIT

WIDTHS = (3, 32, 64, 128, 256)  # channels of an image, and after each convolution
NUM_FEATURES = 128
EPOCHS, LR, BATCH = 8, 2e-3, 128  # of the classifier; LR is its peak


class Classifier(nn.Module):
    """Map images (B, 3, H, W) in [0, 1] to features (B, NUM_FEATURES), and these to logits (B, num_kinds)."""

    def __init__(self, num_kinds: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for before, after in pairwise(WIDTHS):  # each halves height and width
            layers += [nn.Conv2d(before, after, 3, stride=2, padding=1), nn.BatchNorm2d(after), nn.ReLU()]
        layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(WIDTHS[-1], NUM_FEATURES), nn.ReLU()]
        self.features, self.logits = nn.Sequential(*layers), nn.Linear(NUM_FEATURES, num_kinds)

    def forward(self, images: Tensor) -> Tensor:
        return self.logits(self.features(images))


def main(args: Sequence[str] | None = None) -> int:
    parser = ArgumentParser("python -m benchmarks.kinds", description=__doc__, allow_abbrev=False)
    parser.add_argument("--root", required=True, help="folder with Training/KIND and Test/KIND, such as Fruits-360")
    parser.add_argument(
        "--ckpt",
        action="append",
        type=local_path,
        help="checkpoint of a VAE to use instead of the one that comes with Pigment; repeat it to compare several",
    )
    with Command() as command:
        options = parser.parse_args(args)
        keep_freed_memory()
        measure(options.root, options.ckpt or [FRUIT])
    return command.status


def measure(root: str, checkpoints: Sequence[Path]) -> None:
    """Train a classifier, and print Fréchet distances to the test images by its features."""
    vaes = {shown(path): load_model(path, VAE)[0].eval() for path in checkpoints}
    size, *others = sorted({vae.image_size for vae in vaes.values()})
    if others:
        raise PigmentError(f"some VAEs draw images of {size} px, others of {others[0]} px: compare those of one size")
    data = training_data({}, size, root)
    training, test = data.images("train"), data.images("val")
    kinds, test_kinds = kinds_of(training), kinds_of(test)
    names = sorted(set(kinds))
    if len(names) < 2 or names != sorted(set(test_kinds)) or len(test) < 4:  # each half needs two for a covariance
        raise PigmentError(
            f"'{data.folder}' must have two or more kinds, the same in Training/KIND and Test/KIND, and 4 test images. "
            f"Kinds to train on: {len(names)}; to test on: {len(set(test_kinds))}, in {len(test)} images."
        )
    # first, as a VAE without a mixture is refused
    codes = {name: vae.draw(len(test), seed=0, sampler="mixture") for name, vae in vaes.items()}
    labels, test_labels = (torch.tensor([names.index(kind) for kind in part]) for part in (kinds, test_kinds))
    device = next(iter(vaes.values())).device
    classifier = train(training, labels, device)

    def features(batches: Iterable[Tensor]) -> Tensor:
        return torch.cat([classifier.features(images) for images in batches])

    with torch.no_grad():
        real = features(in_batches(test, device, "Test images"))
        accuracy = (classifier.logits(real).argmax(dim=1).cpu() == test_labels).float().mean()
        print(f"The classifier names the kind of {accuracy:.1%} of {len(test):,} test images.")
        print("Fréchet distance to the test images by its features:")
        # every other image, so that both halves have as many of each kind: in random ones these numbers differ most
        say("every other test image, to the rest", frechet_distance(real[::2], real[1::2]))
        for name, vae in vaes.items():
            reconstructions = map(vae.reconstruct, in_batches(test, device, "Reconstructing"))
            say(f"{name}, reconstructions", frechet_distance(features(reconstructions), real))
            samples = (vae.decode(part.to(device)) for part in codes[name].split(BATCH))
            say(f"{name}, samples of the mixture", frechet_distance(features(samples), real))


def say(compared: str, distance: float) -> None:
    print(f"{distance:8.2f}  {compared}")


def kinds_of(images: Images) -> list[str]:
    """Return the name of each image's folder."""
    paths = images.store.paths()
    return [Path(paths[row]).parent.name for row in images.rows]


def train(images: Images, labels: Tensor, device: torch.device) -> Classifier:
    torch.manual_seed(0)
    classifier = Classifier(len(labels.unique())).to(device)
    optimizer = AdamW(classifier.parameters())
    schedule = OneCycleLR(optimizer, LR, epochs=EPOCHS, steps_per_epoch=math.ceil(len(images) / BATCH))
    for _ in trange(EPOCHS, desc="Training a classifier", unit="epoch"):
        for indices in torch.randperm(len(images)).split(BATCH):
            batch = images.__getitems__(indices.tolist()).to(device) / 255
            optimizer.zero_grad()
            F.cross_entropy(classifier(batch), labels[indices].to(device)).backward()
            optimizer.step()
            schedule.step()
    return classifier.eval()


def frechet_distance(features: Tensor, real: Tensor) -> float:
    distance = FrechetInceptionDistance(Features(NUM_FEATURES)).to(real.device)
    distance.update(features.double(), real=False)
    distance.update(real.double(), real=True)
    return float(distance.compute())


if __name__ == "__main__":
    sys.exit(main())
