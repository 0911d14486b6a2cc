"""What all models share: using a network without training it, what must be exact, and the means of an epoch."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn


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


def log_means(module: LightningModule, values: dict[str, Tensor], num_images: int) -> None:
    """Log means over a batch's images; at the end of the epoch they become means over all images of all processes."""
    for name, value in values.items():
        module.log(
            name,
            value,
            on_step=False,
            on_epoch=True,
            sync_dist=True,
            # not as an integer, of which Lightning takes the mean over the processes as an integer, too
            batch_size=float(num_images),  # type: ignore[arg-type]
            prog_bar=name.endswith("/loss"),
        )
