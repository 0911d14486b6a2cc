"""Checkpoints in Weights & Biases: a run's best and last go up as artifacts, and come down to any machine."""

import itertools
import re
from functools import partial
from pathlib import Path
from typing import Any

import wandb
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.utilities import rank_zero_info

from datamodules.cache import build_once, cache_folder
from resuming.checkpoints import TO_USE, read_checkpoint
from resuming.lightning_internals import SaveBest, finished_epochs, is_within_epoch
from resuming.loggers import UPLOAD_SECONDS, need_server
from system.errors import PigmentError, reason, shown
from system.signals import Interrupted, handling, interrupt

PREFIX = "wandb:"
ADDRESS = re.compile(rf"{PREFIX}[^/:]+/[^/:]+/[^/:]+:[^/:]+")
FILE = "model.ckpt"  # in every artifact, as in those of Lightning's own logger
SLOWEST = 2**20  # bytes a second; a slower upload is not waited for


class LogCheckpoints(Callback):
    """Upload the best and the last checkpoint to W&B, as ``<run id>:best`` and ``<run id>:last``.

    That happens when a fit ends, and when a signal stops it. Offline, W&B keeps copies for ``wandb sync``.
    """

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.is_global_zero:
            for logger in trainer.loggers:
                if isinstance(logger, WandbLogger) and not logger.experiment.disabled:
                    upload(logger.experiment, trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if isinstance(exception, Interrupted) and trainer.state.fn == "fit":
            self.on_fit_end(trainer, pl_module)


def upload(run: Any, trainer: Trainer) -> None:
    """Upload a run's checkpoints, and wait until they have arrived."""
    bests = [one for one in trainer.checkpoint_callbacks if isinstance(one, SaveBest)]
    paths = {"last": Path(trainer.default_root_dir, "checkpoints", "last.ckpt")}
    if bests:
        paths["best"] = Path(bests[0].best_model_path)
    aliases: dict[int, list[str]] = {}  # by file: if the best epoch is also the last, there is only one
    for alias, path in paths.items():
        if path.is_file():  # not yet, if a signal comes early
            aliases.setdefault(path.stat().st_ino, []).append(alias)
    try:
        sent = []
        for alias, *more in aliases.values():
            artifact = wandb.Artifact(run.id, "model", metadata=describe(paths[alias], bests))
            # as a copy, since the next epoch may replace the file
            artifact.add_file(str(paths[alias]), FILE, skip_cache=True, policy="mutable")
            sent.append(run.log_artifact(artifact, aliases=[alias, *more]))
        if sent and not run.offline:
            with handling(interrupt):  # one more signal, and nobody waits
                for artifact in sent:
                    artifact.wait(UPLOAD_SECONDS + artifact.size // SLOWEST)
            names = ", or ".join(f":{alias}" for alias in sorted(itertools.chain(*aliases.values())))
            address = f"{PREFIX}{run.entity}/{run.project}/{run.id}{names}"
            rank_zero_info(shown(f"W&B: has the checkpoints; on any machine, --ckpt_path {address}"))
    except (wandb.Error, ValueError, OSError) as error:  # a failed upload is no reason to end a run
        rank_zero_info(shown(f"W&B: the checkpoints have not arrived there ({reason(error)})."))


def describe(path: Path, bests: list[SaveBest]) -> dict[str, Any]:
    """Return what W&B shows of a checkpoint: its epoch, step, and latest ``val/loss``, and the model's settings."""
    checkpoint = read_checkpoint(path, (*TO_USE, "loops"), verify=False)
    states = checkpoint.get("callbacks", {})  # none if save_weights_only is true
    scores = {best.monitor: states[best.state_key]["current_score"] for best in bests if best.state_key in states}
    settings = checkpoint["hyper_parameters"]
    model = {name: value for name, value in settings.items() if not name.startswith("_")}
    return {
        "epoch": finished_epochs(checkpoint) - (not is_within_epoch(checkpoint)),
        "step": checkpoint["global_step"],
        **{str(name): score.item() for name, score in scores.items() if score is not None},
        "model": {"class": settings["_class_path"], **model},
    }


def on_this_machine(path: str | Path) -> Path:
    """Return a checkpoint's path; one in W&B, ``wandb:entity/project/artifact:alias``, is downloaded, but only once.

    Raises:
        PigmentError: if W&B has no such artifact, or it does not arrive whole.
    """
    address = str(path)
    if not address.startswith(PREFIX):
        return Path(path)
    if not ADDRESS.fullmatch(address):
        raise PigmentError(
            f"'{address}' is not the address of a checkpoint in W&B. Such an address looks like "
            f"{PREFIX}entity/project/artifact:alias, such as {PREFIX}me/pigment/20261123-161204-6ef4:best"
        )
    need_server(f"'{address}' is on W&B's server")
    try:
        artifact = wandb.Api().artifact(address.removeprefix(PREFIX), type="model")
        return build_once(cache_folder() / "checkpoints" / artifact.digest, partial(download, artifact)) / FILE
    except (wandb.Error, ValueError, OSError) as error:
        raise PigmentError(f"'{address}' cannot be downloaded: {reason(error)}") from error


def download(artifact: Any, folder: Path) -> None:
    artifact.download(str(folder), skip_cache=True)
    artifact.verify(str(folder))
