"""Stop before a number that is not finite spoils the weights."""

import textwrap
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.optim import Optimizer

from callbacks.media import run_folder
from datamodules.folder import FolderDataModule
from epoch_means import EpochMean, LogsMeans
from system.atomic import writing
from system.errors import PigmentError


class NotFiniteError(PigmentError):
    """The loss or a gradient is not finite; the message says which, for which images, and what was saved.

    Args:
        rank: of the process. Only the first one fails: the launcher would kill it 5 s after any other did.
    """

    def __init__(self, message: str, rank: int) -> None:
        super().__init__(message)
        self.status = 0 if rank else 2


class StopWhenNotFinite(Callback):
    """End the run before a step whose loss or gradient is not finite.

    The run's folder ``not_finite`` then holds a checkpoint with the weights before the step (BatchNorm's statistics and
    a decoder's variance have already seen its batch), and for each process the batch with the paths of its images.
    Under 16-mixed, infinite gradients are left to the GradScaler.

    Raises:
        NotFiniteError: in training.
    """

    def __init__(self) -> None:
        self.batches: list[tuple[int, Tensor, Tensor]] = []  # since the last step: number, batch and loss

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.folder = run_folder(trainer) / "not_finite"

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self.batch_idx, self.batch = batch_idx, batch

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        self.batches.append((self.batch_idx, self.batch, loss.detach()))

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        checked = [loss for *_, loss in self.batches]
        if getattr(trainer.precision_plugin, "scaler", None) is None:
            # any term that is not finite shows in the sum, which on a CPU takes a tenth of the maximum's time
            weights = [weight for group in optimizer.param_groups for weight in group["params"]]
            gradients = [weight.grad for weight in weights if weight.grad is not None]
            checked += [gradient.sum(dtype=torch.float32) for gradient in gradients]  # float16 might not hold it
        is_finite = torch.stack(checked).isfinite().tolist()  # waits for the device
        if trainer.strategy.reduce_boolean_decision(not all(is_finite), all=False):
            first = is_finite.index(False) if False in is_finite[: len(self.batches)] else -1
            self._stop(trainer, pl_module, *self.batches[first][:2])
        self.batches.clear()

    def _stop(self, trainer: Trainer, pl_module: LightningModule, batch_idx: int, batch: Tensor) -> None:
        means = pl_module.means.items() if isinstance(pl_module, LogsMeans) else ()
        terms = [name for name, mean in means if isinstance(mean, EpochMean) and not mean.total.isfinite()]
        gradients = {name: weight.grad for name, weight in pl_module.named_parameters() if weight.grad is not None}
        spoiled = [name for name, gradient in gradients.items() if not gradient.isfinite().all()]
        terms += [f"the gradient of {name}" for name in spoiled if not terms]
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        files = data.training_files(batch_idx) if isinstance(data, FolderDataModule) else []
        name = f"step_{trainer.global_step:06}"
        trainer.save_checkpoint(self.folder / f"{name}.ckpt", weights_only=False)
        with writing(self.folder / f"{name}_batch_rank_{trainer.global_rank}.pt") as file:
            torch.save({"batch": batch, "files": files}, file)
        raise NotFiniteError(
            f"not finite in step {trainer.global_step:,} (epoch {trainer.current_epoch}, batch {batch_idx}): "
            f"{textwrap.shorten(', '.join(terms), 300, placeholder=' …') or 'in another process'}. "
            f"Its {len(batch)} images: {textwrap.shorten(', '.join(files), 1000, placeholder=' …')}. "
            f"They and the weights before the step are in '{self.folder}'; the last checkpoint stays as it was.",
            trainer.global_rank,
        )
