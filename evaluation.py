"""What all models share: using a network without training it, what must be exact, and the means of an epoch."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torchmetrics import Metric


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Without gradients, and normalized by the statistics that training has gathered instead of the batch's own."""
    was_training = module.training
    module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        module.train(was_training)


@contextmanager
def exact_float32(device_type: str) -> Iterator[None]:
    """Compute in float32 as such: in nothing that autocast would put in its place, and in cuDNN not in TF32."""
    cudnn = torch.backends.cudnn
    as_set = {"enabled": cudnn.enabled, "benchmark": cudnn.benchmark, "deterministic": cudnn.deterministic}
    with torch.autocast(device_type, enabled=False), cudnn.flags(**as_set, allow_tf32=False):
        yield


class EpochMean(Metric):
    """Mean over the images of an epoch, in all processes; unlike torchmetrics' own it never waits for the device."""

    total: Tensor
    num_images: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name in ("total", "num_images"):  # bfloat16, should it be the default, would count to 256
            self.add_state(name, torch.tensor(0.0, dtype=torch.float32), dist_reduce_fx="sum")

    def update(self, total: Tensor, num_images: int | Tensor) -> None:
        self.total += total
        self.num_images += num_images

    def compute(self) -> Tensor:
        return self.total / self.num_images


class LogsMeans(LightningModule):
    """A LightningModule that logs means over all images of an epoch, and now and then the loss of a training step.

    A subclass that has hooks of the same names calls these.

    Attributes:
        means: of the epoch up to now, by the names under which they are logged at its end.
    """

    means: dict[str, EpochMean]

    def setup(self, stage: str) -> None:
        self.means = {}

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        if self.trainer._logger_connector.should_update_logs:  # else it would be logged in vain
            self.log("train/loss_step", outputs["loss"] * self.trainer.accumulate_grad_batches)

    def log_means(self, values: dict[str, Tensor], num_images: int) -> None:
        """Add means over a batch's images to those of the epoch."""
        for name, value in values.items():
            self.add_to_mean(name, value.detach() * num_images, num_images)

    def add_to_mean(self, name: str, total: Tensor, num_images: int | Tensor) -> None:
        """Add a sum over a number of images to the mean of the epoch."""
        if name not in self.means:
            self.means[name] = EpochMean().to(self.device)
        mean = self.means[name]
        if not mean.update_called:  # since then Lightning knows it; to log each value takes 0.3 ms, on a CPU
            is_loss = name.endswith("/loss")
            # the attribute is none, but without it Lightning would look for the metric among the module's parts
            self.log(name, mean, on_epoch=True, on_step=False, prog_bar=is_loss, metric_attribute="means")
        mean.update(total, num_images)
