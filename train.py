"""Train, validate, test or use any model here: python train.py fit --config configs/vae.yaml"""

import ctypes
import errno
import logging
import os
import platform
import secrets
import signal
import sys
import warnings
import zipfile
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
import wandb
from jsonargparse import Namespace
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.accelerators import CUDAAccelerator
from lightning.pytorch.callbacks import ModelCheckpoint, TQDMProgressBar
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.utilities import rank_zero_info, rank_zero_only
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch._dynamo.exc import BackendCompilerFailed

from callbacks.checkpoints import CheckpointError
from callbacks.loggers import go_offline_if_necessary
from callbacks.not_finite import NotFiniteError
from callbacks.progress import ProgressBar
from callbacks.resuming import interrupt
from cli import StrictParser
from colorization.networks import WeightsError
from datamodules.store import DataError
from vae.metrics import FeaturesError

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of malloc.h
DEFAULTS = str(Path(__file__).parent / "configs" / "defaults.yaml")
QUIET = (  # warnings that tell the user nothing
    "`isinstance.treespec, LeafSpec.` is deprecated",  # Lightning 2.6 with torch 2.15
    "Precision bf16-mixed is not supported by the model summary",  # it counts float32, which the weights are
    "The dirpath has changed",  # a run that was copied elsewhere keeps the best of its own epochs from then on
    "You're resuming from a checkpoint that ended before the epoch ended",  # where the data goes on, too
    "The .* does not have many workers",  # a store needs none
    "Checkpoint directory .* exists and is not empty",  # a resumed run goes on in its own
    "Metric `Kernel Inception Distance` will save all extracted features",  # a few MB
    "The number of training batches .* is smaller than the logging interval",  # epoch means are logged all the same
)
said_by_lightning = logging.getLogger("lightning.pytorch.utilities.rank_zero")
said_by_lightning.addFilter(lambda record: "litlogger" not in record.getMessage())  # an advertisement


class SaveConfig(SaveConfigCallback):
    """Store the resolved config, defaults and overrides included, in the run's folder and in W&B."""

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                logger.log_hyperparams({"config": self.config.as_dict()})


class PigmentCLI(LightningCLI):
    """Lightning's command line, where every run has a folder of its own: <trainer.default_root_dir>/<run id>/."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.link_arguments("data.init_args.size", "model.init_args.image_size")
        parser.add_argument("--compile", type=bool, default=False, help="compile the networks with torch.compile")

    def before_instantiate_classes(self) -> None:
        config = self.config[self.subcommand]
        run_id = self.resumed_run or f"{datetime.now():%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"
        self.run_folder = Path(config.trainer.default_root_dir or "", run_id)
        self.offline_because: str | None = None
        loggers = config.trainer.logger if isinstance(config.trainer.logger, list) else [config.trainer.logger]
        for logger in loggers if not config.trainer.fast_dev_run else []:
            if isinstance(logger, Namespace) and "save_dir" in logger.init_args:
                logger.init_args.save_dir = str(self.run_folder)
            if isinstance(logger, Namespace) and logger.class_path.endswith("WandbLogger"):
                self._prepare_wandb(logger.init_args, run_id, is_demo=config.get("data.init_args.root", "") is None)
        if config.trainer.precision == "bf16-mixed" and not computes_bfloat16(config.trainer.accelerator):
            rank_zero_info("This hardware only emulates bfloat16, slower than float32: precision is 32-true instead.")
            config.trainer.precision = "32-true"
        config.weights_only = True  # a checkpoint may hold a program otherwise
        if self.subcommand == "predict":
            config.return_predictions = False  # they would all stay in memory; a callback draws them

    def _prepare_wandb(self, wandb_args: Namespace, run_id: str, is_demo: bool) -> None:
        # absolute, because W&B's service process stays in the folder in which it was started
        wandb_args.save_dir = str(self.run_folder.absolute())
        wandb_args.version = run_id
        wandb_args.job_type = self.subcommand
        wandb_args.resume = "allow"
        # neither tag nor mode may stick to a run that repeats this one from its config
        wandb_args.tags = [*(tag for tag in wandb_args.tags or [] if tag != "demo"), *(["demo"] if is_demo else [])]
        if wandb_args.mode in (None, "online"):
            self.offline_because, wandb_args.mode = go_offline_if_necessary(), None

    def instantiate_classes(self) -> None:
        try:
            super().instantiate_classes()
        except ValueError as error:  # constructors check what the config says; jsonargparse wraps what they raise
            self.parser.error(str(error.__cause__ or error))
        except MisconfigurationException as error:
            trainer = self.config[self.subcommand].trainer
            self.parser.error(f"{error} (trainer.accelerator is {trainer.accelerator}, devices {trainer.devices})")
        if self.subcommand == "fit":
            self.config.fit.ckpt_path = None  # the config that is saved describes the run, not where it went on

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        trainer = super().instantiate_trainer(default_root_dir=self.run_folder, **kwargs)
        if self.config[self.subcommand].trainer.sync_batchnorm and not isinstance(trainer.accelerator, CUDAAccelerator):
            self.parser.error("trainer.sync_batchnorm is true, but only GPUs can share BatchNorm's statistics")
        if isinstance(trainer.accelerator, CUDAAccelerator):
            torch.set_float32_matmul_precision("high")  # TF32, in which PyTorch lets cuDNN's convolutions be anyway
        # not in defaults.yaml, where one would forbid trainer.enable_progress_bar: false
        callbacks = trainer.callbacks  # type: ignore[attr-defined]
        callbacks[:] = [ProgressBar() if type(one) is TQDMProgressBar else one for one in callbacks]
        for callback in trainer.checkpoint_callbacks:
            if isinstance(callback, ModelCheckpoint) and callback.dirpath is None:
                callback.dirpath = str(self.run_folder / "checkpoints")  # Lightning's depends on which logger is first
        return trainer

    def after_instantiate_classes(self) -> None:
        for child in self.model.children() if self.config[self.subcommand].compile else ():
            if any(True for _ in child.parameters()):  # a network, not a metric
                child.compile()
        if self.offline_because:
            upload = f"wandb sync {self.run_folder}/wandb/offline-run-*"
            rank_zero_info(f"W&B: offline, {self.offline_because}. To upload this run later: {upload}")

    @rank_zero_only
    def say_where_everything_is(self) -> None:
        lines = {"Run": str(self.run_folder)}
        for callback in self.trainer.checkpoint_callbacks if self.subcommand == "fit" else []:
            if isinstance(callback, ModelCheckpoint) and callback.best_model_path:
                lines["Best"] = callback.best_model_path
        if self.subcommand == "fit" and (last := self.run_folder / "checkpoints" / "last.ckpt").exists():
            lines["Last"] = str(last)
        if (self.run_folder / "media").exists():
            lines["Pictures"] = str(self.run_folder / "media")
        if wandb.run and not wandb.run.disabled:
            lines["W&B"] = wandb.run.url or f"wandb sync {self.run_folder}/wandb/offline-run-*"
        print(*(f"{what:10}{where}" for what, where in lines.items()), sep="\n")

    after_fit = after_validate = after_test = after_predict = say_where_everything_is

    def _parse_ckpt_path(self) -> None:
        """Refuse a config that contradicts the checkpoint, where Lightning would let the checkpoint win in silence."""
        config = self.config[self.config.subcommand]
        self.resumed_run: str | None = None
        if config.ckpt_path is None and self.config.subcommand != "fit":
            self.parser.error("--ckpt_path is missing: the file of a checkpoint, or last for that of the newest run")
        if config.ckpt_path == "last":
            saved = Path(config.trainer.default_root_dir or "").glob("*/checkpoints/last.ckpt")
            newest = max(saved, key=os.path.getmtime, default=None)
            nothing = f"no run in '{config.trainer.default_root_dir}' has a last.ckpt"
            if newest is None and self.config.subcommand != "fit":
                self.parser.error(nothing)
            if newest is None:
                rank_zero_info(f"Resuming: {nothing}, so a new one begins.")
            config.ckpt_path = newest and str(newest)
        if config.ckpt_path is None:
            return
        try:
            checkpoint = torch.load(config.ckpt_path, map_location="cpu", weights_only=True, mmap=True)
            needed = {"pytorch-lightning_version", "state_dict", "loops", "optimizer_states"}
            if zipfile.ZipFile(config.ckpt_path).testzip() or not needed <= checkpoint.keys():
                raise ValueError("it is damaged, or something is missing")
            remembered = checkpoint["hyper_parameters"]
            if self.config.subcommand == "fit" and "run_id" in checkpoint:
                self.resumed_run = Path(checkpoint["run_id"]).name  # a file from elsewhere must not lead elsewhere
            saved_class = remembered.pop("_class_path", config.model.class_path)  # only train.py stores it
        except FileNotFoundError:
            self.parser.error(f"there is no checkpoint '{config.ckpt_path}'")
        except Exception:  # a file that is not ours can raise nearly anything
            others = sorted(str(path) for path in Path(config.ckpt_path).parent.glob("*.ckpt"))
            beside = ", ".join(path for path in others if path != config.ckpt_path) or "none"
            self.parser.error(f"'{config.ckpt_path}' is not a whole checkpoint of this program. Beside it: {beside}")
        config_of_run = Path(config.ckpt_path).parent.parent / "config.yaml"
        remedy = f"Its run's own config agrees with it: --config {config_of_run}" if config_of_run.is_file() else ""
        if saved_class != config.model.class_path:
            self.parser.error(
                f"the model of '{config.ckpt_path}' is {saved_class}, not {config.model.class_path}. {remedy}"
            )
        for name, value in remembered.items():
            given = config.model.init_args.get(name, value)
            if given != value:
                self.parser.error(f"{name} is {value} in '{config.ckpt_path}', but {given} in the config. {remedy}")


def computes_bfloat16(accelerator: str) -> bool:
    """Whether the hardware that training will run on computes bfloat16 itself."""
    if accelerator != "cpu" and torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))


def keep_freed_memory() -> None:
    """Let glibc hand out freed memory again; zeroing fresh pages from the system can cost a third of a CPU step."""
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_MAX, 0)  # blocks
        libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)  # bytes, the most there can be


def main(args: ArgsType = None) -> PigmentCLI:
    keep_freed_memory()
    for message in QUIET:
        warnings.filterwarnings("ignore", message)
    handlers = {signum: signal.signal(signum, interrupt) for signum in (signal.SIGINT, signal.SIGTERM)}
    try:
        return PigmentCLI(
            save_config_callback=SaveConfig,
            save_config_kwargs={"overwrite": True},  # by a resumed run
            auto_configure_optimizers=False,  # or --optimizer would silently replace the model's own
            parser_class=StrictParser,
            parser_kwargs={stage: {"default_config_files": [DEFAULTS]} for stage in LightningCLI.subcommands()},
            args=args,
        )
    except (DataError, WeightsError, FeaturesError, CheckpointError, NotFiniteError) as error:
        print(f"error: {error}", file=sys.stderr)
        rank = rank_zero_only.rank  # type: ignore[attr-defined]
        # the launcher kills the first process 5 s after another has failed, which here all have
        raise SystemExit(0 if isinstance(error, NotFiniteError) and rank else 2) from None
    except BackendCompilerFailed as error:
        print(f"error: cannot compile: {error.inner_exception}. Mend that, or set compile to false.", file=sys.stderr)
        raise SystemExit(2) from None
    except RuntimeError as error:
        if "loading state_dict" not in str(error):
            raise
        print("error: the checkpoint's weights are not those of this model, though its settings are.", file=sys.stderr)
        raise SystemExit(2) from None
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        print(
            f"error: {error}. The last checkpoint is whole; make room, and go on with --ckpt_path last.",
            file=sys.stderr,
        )
        raise SystemExit(2) from None
    finally:
        # or the next call in this process would go on with its run
        wandb.finish(exit_code=int(sys.exc_info()[0] is not None))
        for signum, handler in handlers.items():
            signal.signal(signum, handler)


if __name__ == "__main__":
    main()
