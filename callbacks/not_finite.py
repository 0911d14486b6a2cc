"""Stop before a number that is not finite spoils the weights."""

import math
import textwrap
from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor
from torch.optim import Optimizer

from callbacks.media import run_folder
from datamodules.folder import FolderDataModule
from epoch_means import EpochMean, LogsMeans, of_all_processes
from system.atomic import writing
from system.errors import PigmentError

MAX_SKIPPED = 30  # steps in a row; each halves a GradScaler's scale of 65,536, so all 30 divide it by a billion


class NotFiniteError(PigmentError):
    """The loss or a gradient is not finite; the message says which, for which images, and what was saved.

    Args:
        rank: of the process. Only the first one fails: the launcher would kill it 5 s after any other did.
    """

    is_shared = True

    def __init__(self, message: str, rank: int) -> None:
        super().__init__(message)
        self.status = 0 if rank else 2


class Step(NamedTuple):
    """An optimizer step that is checked once the device has computed it."""

    number: int
    batches: list[tuple[int, Tensor]]  # number and images
    weights: list[Tensor]  # those that have a gradient
    values: Tensor  # on its way to the host: each batch's loss, the sum of all processes' losses, and ``norms``
    arrived: Any  # the event after which ``values`` have arrived


class StopWhenNotFinite(Callback):
    """Skip a step whose loss or gradient is not finite, and end the run.

    The run's folder ``not_finite`` then holds a checkpoint with the weights before the step (BatchNorm's statistics and
    a decoder's variance have already seen its batch and the next; Adam, if gradients are clipped, has moved the weights
    once more by its momentum), and for each process the batch with the paths of its images.

    The host does not wait for the result of the check. The device itself makes the optimizer skip the step, and the run
    ends one step later. All processes end together, since they share their gradients: if the loss is not finite in one
    process, the gradients are NaN in all of them.

    Under 16-mixed, infinite gradients are left to the GradScaler, which skips steps until it has found a scale that
    float16 can hold. If it skipped steps in an epoch, a line then says how many; too many in a row end the run.

    Raises:
        NotFiniteError: in training.
    """

    def __init__(self) -> None:
        self.batches: list[tuple[int, Tensor]] = []  # since the last step
        self.losses: list[Tensor] = []  # one for each of these batches
        self.norms: Tensor | None = None  # of the gradients, from an optimizer step until its batch ends
        self.unread: Step | None = None  # the last step, until it is checked
        self.num_skipped = self.num_skipped_in_a_row = 0  # steps that the GradScaler skipped

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.folder = run_folder(trainer) / "not_finite"

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        value = loss.detach()
        loss.register_hook(lambda gradient: gradient + 0 * value)  # NaN unless the loss is finite

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        self._read(trainer, pl_module)
        weights = [weight for group in optimizer.param_groups for weight in group["params"]]
        self.weights = [weight for weight in weights if weight.grad is not None]
        gradients = [weight.grad for weight in self.weights]
        self.norms = norms(gradients, pl_module.device)
        if scaler(trainer) is None:
            skip_if(~self.norms.sum().isfinite(), optimizer, gradients)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if outputs:  # otherwise the model has skipped this batch
            self.batches.append((batch_idx, batch))
            self.losses.append(outputs["loss"])  # not scaled, unlike the one in the backward pass
        if self.norms is None or not self.losses:  # gradients accumulate, or there are none
            self.norms = None
            return
        losses = torch.stack(self.losses)
        # without a scaler, the gradients already show a loss that is not finite in any process
        of_all = losses if scaler(trainer) is None else of_all_processes(losses)
        values = torch.cat([losses, of_all.sum()[None], self.norms]).to("cpu", non_blocking=True)
        arrived = torch.get_device_module(losses.device).Event()
        arrived.record()
        self.unread = Step(trainer.global_step - 1, self.batches, self.weights, values, arrived)
        self.batches, self.losses, self.norms = [], [], None

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._read(trainer, pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._read(trainer, pl_module)
        if self.num_skipped:
            skipped = f"{self.num_skipped} of the steps in epoch {trainer.current_epoch}"
            rank_zero_info(f"16-mixed: skipped {skipped}, as float16 could not hold their gradients.")
        self.num_skipped = 0

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        self._read(trainer, pl_module)  # otherwise a run that resumes from this checkpoint would never check that step

    def _read(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check the last step, and end the run if it is not finite."""
        step, self.unread = self.unread, None
        if step is None:
            return
        step.arrived.synchronize()  # meanwhile the device computes the next step, so it does not run dry
        is_finite = [math.isfinite(value) for value in step.values.tolist()]
        num_losses = len(step.batches)
        losses, (is_finite_elsewhere, *gradients) = is_finite[:num_losses], is_finite[num_losses:]
        if all(is_finite):
            self.num_skipped_in_a_row = 0
            return
        if scaler(trainer) and is_finite_elsewhere:
            self.num_skipped, self.num_skipped_in_a_row = self.num_skipped + 1, self.num_skipped_in_a_row + 1
            if self.num_skipped_in_a_row < MAX_SKIPPED:
                return
        if False in losses:
            means = pl_module.means.items() if isinstance(pl_module, LogsMeans) else ()
            terms = [name for name, mean in means if isinstance(mean, EpochMean) and not mean.total.isfinite()]
        else:
            names: dict[Tensor, str] = {weight: name for name, weight in pl_module.named_parameters()}
            judged = zip(step.weights, gradients, strict=True)
            terms = [f"the gradient of {names[weight]}" for weight, is_good in judged if not is_good]
            if trainer.world_size > 1:
                terms.insert(0, "perhaps a loss in another process")
        self._stop(trainer, step, terms, *step.batches[losses.index(False) if False in losses else -1])

    def _stop(self, trainer: Trainer, step: Step, terms: list[str], batch_idx: int, batch: Tensor) -> None:
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        files = data.training_files(batch_idx) if isinstance(data, FolderDataModule) else []
        name = f"step_{step.number:06}"
        trainer.save_checkpoint(self.folder / f"{name}.ckpt", weights_only=False)
        with writing(self.folder / f"{name}_batch_rank_{trainer.global_rank}.pt") as file:
            torch.save({"batch": batch, "files": files}, file)
        trainer.strategy.barrier()  # the first process to end takes the others with it
        raise NotFiniteError(
            f"not finite in step {step.number:,} (epoch {trainer.current_epoch}, batch {batch_idx}): "
            f"{textwrap.shorten(', '.join(terms), 300, placeholder=' …')}. "
            f"Its {len(batch)} images: {textwrap.shorten(', '.join(files), 1000, placeholder=' …')}. "
            f"They and the weights before the step are in '{self.folder}'; the last checkpoint stays as it was.",
            trainer.global_rank,
        )


def scaler(trainer: Trainer) -> Any:
    """Return the GradScaler of 16-mixed, or None."""
    return getattr(trainer.precision_plugin, "scaler", None)


def norms(gradients: list[Tensor], device: torch.device) -> Tensor:
    """Return each gradient's norm, or on a CPU its sum: finite if the gradient is. In float32: float16 may overflow."""
    if not gradients:  # in the last epoch of StochasticWeightAveraging, which only renews BatchNorm's statistics
        return torch.zeros(0, device=device)
    if gradients[0].is_cpu:  # where a sum takes half of a norm's time
        return torch.stack([gradient.sum(dtype=torch.float32) for gradient in gradients])
    return torch.stack(torch._foreach_norm(gradients, dtype=torch.float32))  # a few kernels for all


def skip_if(bad: Tensor, optimizer: Optimizer, gradients: Iterable[Tensor]) -> None:
    """Make the optimizer's next step leave the weights as they are if ``bad``, a boolean on the device, is true.

    An optimizer that is not fused gets gradients of 0 instead. With RMSprop and SGD, that has the same effect; Adam
    would still move the weights once, by its momentum.
    """
    if getattr(optimizer, "_step_supports_amp_scaling", False):  # how PyTorch marks fused optimizers
        optimizer.grad_scale, optimizer.found_inf = None, bad.float()  # type: ignore[attr-defined]
    else:
        for gradient in gradients:
            gradient.masked_fill_(bad, 0)
