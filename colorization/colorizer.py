"""How a colorizer is judged, how the report's nine learn, and the three classes they need: one for each network."""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor, nn
from torch.optim import SGD, Adam, Optimizer, RMSprop

from colorization.color import LAB_SCALE, lab_to_rgb, rgb_to_lab
from colorization.metrics import ciede2000
from colorization.networks import DeepNet, ResNetNet, ShallowNet
from epoch_means import LogsMeans, of_all_processes
from images.colorfulness import colorfulness
from images.similarity import psnr, ssim
from modes import evaluating
from system.errors import check_choice

OptimizerName = Literal["rmsprop", "adam", "sgd"]
LossName = Literal["mse", "mae"]
OPTIMIZERS: dict[OptimizerName, Callable[..., Optimizer]] = {
    # as in Keras, where these networks come from: with PyTorch's alpha of 0.99 the first step is ten times the learning
    # rate instead of three, which on paintings saturated the deep network's tanh for good, in 3 seeds out of 3
    "rmsprop": partial(RMSprop, alpha=0.9, eps=1e-7),
    "adam": Adam,
    "sgd": SGD,
}
ERRORS: dict[LossName, Callable[[Tensor, Tensor], Tensor]] = {"mse": F.mse_loss, "mae": F.l1_loss}
BASELINES = ("gray", "mean_ab")


class Colorizer(LogsMeans):
    """Predict the a and b of an image from its lightness, in Lab divided by ``lab_scale``: *chroma* from here on.

    Two errors are logged, ``mse`` and ``mae``, whatever is minimized, so that runs can be compared. All metrics of
    validation and test are logged for two baselines as well: ``gray``, and ``mean_ab``, the average of the training
    images' chroma. ``fit`` measures them in its first validation, and logs the same values with all others.

    A subclass defines how to train, and ``forward``: from lightness (B, 1, H, W) in [0, 1] of any size to the predicted
    chroma (B, 2, H, W), float32.

    Args:
        net: does most of that, for H and W that are multiples of ``net.stride``.
        lr: learning rate.

    Attributes:
        image_size: shorter side of the training images, in pixels; 0 before training.
        baselines: the metrics of the baselines, as ``fit`` has measured them; empty until then.

    Raises:
        ValueError: if ``lr`` is not positive.
    """

    lab_scale: Tensor  # (3, 1, 1); in the checkpoint, so old ones stay right if LAB_SCALE changes
    num_trained: Tensor  # images in all steps
    mean_chroma: Tensor  # (2, 1, 1); in a checkpoint over all these images, in training over this process's

    def __init__(self, net: nn.Module, lr: float) -> None:
        super().__init__()
        if not lr > 0:
            raise ValueError(f"model.init_args.lr is {lr}, must be over 0.")
        self.net = net.to(memory_format=torch.channels_last)  # convolutions are twice as fast
        self.lr = lr
        self.image_size = 0
        self.baselines: dict[str, float] = {}
        self.register_buffer("lab_scale", torch.tensor(LAB_SCALE).view(3, 1, 1))
        self.register_buffer("num_trained", torch.tensor(0))
        self.register_buffer("mean_chroma", torch.zeros(2, 1, 1))
        self._ddp_params_and_buffers_to_ignore = ["mean_chroma"]  # otherwise DDP copies the first process's to all

    def split(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Convert RGB (B, 3, H, W) in [0, 1] to lightness (B, 1, H, W) in [0, 1] and chroma (B, 2, H, W)."""
        lightness, chroma = (rgb_to_lab(images) / self.lab_scale).split([1, 2], dim=1)
        return lightness, chroma

    def join(self, lightness: Tensor, chroma: Tensor) -> Tensor:
        """Convert lightness (B, 1, H, W) and chroma (B, 2, H, W) to RGB (B, 3, H, W) in [0, 1]."""
        return lab_to_rgb(torch.cat([lightness, chroma], dim=1) * self.lab_scale)

    def predict(self, lightness: Tensor) -> Any:
        """Return what the network says about lightness (B, 1, H, W) in [0, 1]: all that takes long in ``forward``."""
        return self(lightness)

    def compose(self, prediction: Any, lightness: Tensor) -> Tensor:
        """Return the chroma (B, 2, H, W) that follows what :meth:`predict` returned."""
        return prediction

    def colorize(self, images: Tensor) -> Tensor:
        """Give RGB images (B, 3, H, W) in [0, 1] the colors that their lightness suggests, as in evaluation."""
        with evaluating(self):
            lightness, _ = self.split(images)
            return self.join(lightness, self(lightness))

    def compare(self, images: Tensor, colored: Tensor) -> dict[str, Tensor]:
        """Return images, colorized images, (B, 3, H, W) in [0, 1], and how close these come, (B,), by their names."""
        lightness, chroma = self.split(images)
        return {
            "lightness": self.join(lightness, torch.zeros_like(chroma)),
            "prediction": colored,
            "truth": images,
            "CIEDE2000": ciede2000(rgb_to_lab(colored), rgb_to_lab(images)).mean(dim=(1, 2)),
            "PSNR": psnr(colored, images),
        }

    def validation_step(self, images: Tensor, batch_idx: int) -> Tensor:
        return self._evaluate("val/", images)

    def test_step(self, images: Tensor, batch_idx: int) -> Tensor:
        return self._evaluate("test/", images)

    def predict_step(self, images: Tensor, batch_idx: int) -> Tensor:
        return self.colorize(images)

    def setup(self, stage: str) -> None:
        super().setup(stage)
        self.baselines = {}  # those of an earlier fit

    def on_validation_start(self) -> None:
        if self.trainer.state.fn is TrainerFn.FITTING:  # and not later, when averaged weights bring their own buffers
            self.mean_ab = of_all_processes(self.mean_chroma).mean(dim=0)

    def on_validation_epoch_start(self) -> None:
        for name, value in self.baselines.items():
            self.add_to_mean(name, torch.tensor(value, device=self.device), 1)

    def on_validation_epoch_end(self) -> None:
        if self.trainer.state.fn is TrainerFn.FITTING and not (self.baselines or self.trainer.sanity_checking):
            names = tuple(f"val/{name}_" for name in BASELINES)
            metrics = self.trainer.callback_metrics.items()
            self.baselines = {name: value.item() for name, value in metrics if name.startswith(names)}

    def on_train_end(self) -> None:
        self.mean_chroma.copy_(of_all_processes(self.mean_chroma).mean(dim=0))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["image_size"], checkpoint["baselines"] = self.image_size, self.baselines
        by_process = of_all_processes(self.mean_chroma)
        checkpoint["mean_chroma_by_process"] = by_process
        checkpoint["state_dict"]["mean_chroma"] = by_process.mean(dim=0)  # all have seen equally many images

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        kept = checkpoint["state_dict"].pop("image_size", 0)  # older checkpoints have it there, as a tensor
        self.image_size = int(checkpoint.get("image_size", kept))
        trainer = self._trainer
        if not trainer or trainer.state.fn is not TrainerFn.FITTING:
            return
        self.baselines = checkpoint.get("baselines", {})  # older ones have none
        by_process = checkpoint.get("mean_chroma_by_process", ())
        if len(by_process) == trainer.world_size:
            averaged, not_averaged = checkpoint["state_dict"], checkpoint.get("current_model_state", {})
            for state in (averaged, not_averaged):
                state["mean_chroma"] = by_process[trainer.global_rank]

    def _describe_training(self, chroma: Tensor) -> None:
        """Record what the baseline and colorizing need to know about the training images."""
        self.image_size = min(chroma.shape[2:])
        num_images = len(chroma) * self.trainer.world_size  # each process has a batch of the same size
        self.num_trained.add_(num_images)
        self.mean_chroma.lerp_(chroma.mean(dim=(0, 2, 3)).view(2, 1, 1), num_images / self.num_trained)

    def _evaluate(self, prefix: str, images: Tensor) -> Tensor:
        """Log how good the colors are, and return the colorized images."""
        lightness, chroma = self.split(images)
        return self._judge(prefix, {"": self(lightness)}, lightness, chroma, images)

    def _judge(
        self, prefix: str, candidates: dict[str, Tensor], lightness: Tensor, chroma: Tensor, images: Tensor
    ) -> Tensor:
        """Log how good some predictions are, by their names, and the baselines, too, unless ``fit`` has measured them.

        Returns:
            what the prediction "" looks like, (B, 3, H, W) in [0, 1].
        """
        if not (self.baselines or self.trainer.sanity_checking):
            mean_ab = self.mean_ab if self.trainer.state.fn is TrainerFn.FITTING else self.mean_chroma
            baselines = {"gray_": torch.zeros_like(chroma), "mean_ab_": mean_ab.expand_as(chroma)}
            candidates = candidates | baselines
        for name, candidate in candidates.items():
            colored = self.join(lightness, candidate)
            measured = self._errors(candidate, chroma) | self._quality(colored, images)
            self.log_means(f"{prefix}{name}", measured, len(images))
            if name == "":
                result = colored
        return result

    def _errors(self, predicted: Tensor, chroma: Tensor) -> dict[str, Tensor]:
        return {name: error(predicted, chroma) for name, error in ERRORS.items()}

    def _quality(self, colored: Tensor, images: Tensor) -> dict[str, Tensor]:
        """Return how close and how vivid RGB images (B, 3, H, W) in [0, 1] are, averaged over the batch."""
        colors = colorfulness(colored)
        quality = {
            "psnr": psnr(colored, images),
            "ssim": ssim(colored, images),
            "ciede2000": ciede2000(rgb_to_lab(colored), rgb_to_lab(images)).mean(dim=(1, 2)),
            "colorfulness": colors,
            "colorfulness_difference": colors - colorfulness(images),  # negative if paler
        }
        return {name: values.mean() for name, values in quality.items()}


class ReportColorizer(Colorizer):
    """A network that predicts chroma by itself, and learns it as the report says.

    Args:
        net: maps lightness to chroma (B, 2, H, W) in [-1, 1].
        optimizer: with PyTorch's defaults, except ``lr`` and what OPTIMIZERS says.
        lr: learning rate, constant through training.
        loss: what is minimized, the mean over images, pixels, a and b.

    Raises:
        ValueError: if ``lr`` is not positive, or a name is unknown.
    """

    net: ShallowNet | DeepNet | ResNetNet

    def __init__(
        self, net: ShallowNet | DeepNet | ResNetNet, optimizer: OptimizerName, lr: float, loss: LossName
    ) -> None:
        super().__init__(net, lr)
        check_choice("model.init_args.optimizer", optimizer, OptimizerName)
        check_choice("model.init_args.loss", loss, LossName)
        self.save_hyperparameters(ignore="net")
        self.optimizer, self.loss = optimizer, loss

    def forward(self, lightness: Tensor) -> Tensor:
        height, width = lightness.shape[2:]
        chroma = self.net(pad(lightness, self.net.stride))[..., :height, :width]
        # in Lab's memory layout, as errors across two layouts take twice as long
        return chroma.float(memory_format=torch.contiguous_format)

    def training_step(self, images: Tensor, batch_idx: int) -> Tensor:
        lightness, chroma = self.split(images)
        self._describe_training(chroma)
        errors = self._errors(self(lightness), chroma)
        self.log_means("train/", errors, len(images))
        return errors["loss"]

    def configure_optimizers(self) -> Optimizer:
        # fused saves a CPU most of its time, but Lightning cannot clip its gradients under mixed precision
        fuse = self.optimizer != "rmsprop" and self.trainer.gradient_clip_val is None
        return OPTIMIZERS[self.optimizer](self.parameters(), lr=self.lr, **({"fused": True} if fuse else {}))

    def _errors(self, predicted: Tensor, chroma: Tensor) -> dict[str, Tensor]:
        """Return both errors of a batch, and ``loss``: the one that is minimized."""
        errors: dict[str, Tensor] = {
            name: error(predicted if name == self.loss else predicted.detach(), chroma)
            for name, error in ERRORS.items()
        }
        return {**errors, "loss": errors[self.loss]}


def pad(lightness: Tensor, stride: int) -> Tensor:
    """Extend images (B, 1, H, W) to the right and below to multiples of ``stride``, repeating their last pixels."""
    height, width = lightness.shape[2:]
    margin = (0, -width % stride, 0, -height % stride)
    return F.pad(lightness, margin, mode="replicate") if any(margin) else lightness


class ShallowColorizer(ReportColorizer):
    """Models 1, 3, 4, 5 and 8 of the report."""

    def __init__(self, optimizer: OptimizerName, lr: float, loss: LossName) -> None:
        super().__init__(ShallowNet(), optimizer, lr, loss)


class DeepColorizer(ReportColorizer):
    """Models 2, 6 and 9 of the report."""

    def __init__(self, optimizer: OptimizerName, lr: float, loss: LossName) -> None:
        super().__init__(DeepNet(), optimizer, lr, loss)


class ResNetColorizer(ReportColorizer):
    """Model 7 of the report.

    Args:
        weights: torchvision's name for the weights that the encoder starts a new fit with; None draws them at random.
            Before that fit they are always random.

    Raises:
        PigmentError: when such a fit starts, if the weights cannot be loaded.
    """

    net: ResNetNet

    def __init__(
        self, optimizer: OptimizerName, lr: float, loss: LossName, weights: str | None = "IMAGENET1K_V1"
    ) -> None:
        super().__init__(ResNetNet(), optimizer, lr, loss)
        self.weights = weights

    def on_fit_start(self) -> None:
        if self.weights and not self.num_trained:  # a checkpoint, which is restored by now, has its own
            self.net.load_pretrained_encoder(self.weights)
