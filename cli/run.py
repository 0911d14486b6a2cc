"""A run: its folder, W&B's mode, its agreement with the checkpoint it resumes from, and its closing lines."""

import errno
import os
import re
import secrets
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
import wandb
from jsonargparse import Namespace
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.accelerators import CUDAAccelerator
from lightning.pytorch.callbacks import (
    BatchSizeFinder,
    LearningRateFinder,
    ModelCheckpoint,
    RichProgressBar,
    TQDMProgressBar,
)
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.plugins.environments import SLURMEnvironment, TorchElasticEnvironment
from lightning.pytorch.utilities import rank_zero_info, rank_zero_only
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch._dynamo.exc import BackendCompilerFailed

from callbacks.progress import ProgressBar
from cli.description import VARIABLES, describe, is_demo, what_counts
from cli.parser import StrictParser
from resuming.artifacts import on_this_machine
from resuming.checkpoints import TO_GO_ON, TO_USE, read_checkpoint
from resuming.lightning_internals import cluster_environment, finished_epochs, leave_config_alone
from resuming.loggers import go_offline_if_necessary, sync_command
from system.command import Command
from system.errors import PigmentError, reason, shown
from system.hardware import computes_bfloat16, hide_gpus, start_gpu

PRECISIONS = ("32-true", "bf16-mixed", "16-mixed")
DEFAULTS = str(Path(__file__).parents[1] / "configs" / "defaults.yaml")


class SaveConfig(SaveConfigCallback):
    """Write all settings to the run's folder, and give W&B those that runs are filtered by."""

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        folder = Path(trainer.default_root_dir)  # Lightning's choice depends on which logger is first
        folder.mkdir(parents=True, exist_ok=True)
        self.parser.save(self.config, folder / self.config_filename, overwrite=True, skip_none=False, multifile=False)
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                logger.experiment.config.update(what_counts(self.config), allow_val_change=True)


class PigmentCLI(LightningCLI):
    """Lightning's command line, where every run has its own folder.

    The config's ``trainer.default_root_dir`` holds all runs; each run's Trainer gets a folder in it.

    Attributes:
        run_folder: ``<trainer.default_root_dir>/<run id>``, or the folder of the run that is resumed.
    """

    parser: StrictParser

    def __init__(self, command: Command, args: ArgsType = None) -> None:
        self.command = command
        self.offline_because: str | None = None
        self.typed = sys.argv[1:] if args is None else args if isinstance(args, list) else []
        self.goes_on = False  # whether the run was begun before
        self.given_to_wandb: list[tuple[Namespace, dict[str, Any]]] = []  # loggers' arguments, and what the user set
        super().__init__(
            save_config_callback=SaveConfig,
            save_config_kwargs={"save_to_log_dir": False},
            auto_configure_optimizers=False,  # otherwise --optimizer silently replaces the model's own
            parser_class=StrictParser,
            parser_kwargs={stage: {"default_config_files": [DEFAULTS]} for stage in self.subcommands()},
            args=args,
        )

    _parse_ckpt_path = leave_config_alone

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]  # a staticmethod there
        """Return only the subcommand that is asked for: each one's parser takes 0.1 s to build."""
        known = LightningCLI.subcommands()
        return {name: skipped for name, skipped in known.items() if name in self.typed[:1]} or known

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.link_arguments("data.init_args.size", "model.init_args.image_size")
        parser.add_argument("--compile", type=bool, default=False, help="compile the networks with torch.compile")

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        super().parse_arguments(parser, args)
        seed = self.config[self.config.subcommand].seed_everything
        if seed is not None and seed not in range(2**32):
            parser.error(f"seed_everything: must be between 0 and {2**32 - 1}, not {seed}")

    def before_instantiate_classes(self) -> None:
        config = self.config[self.subcommand]
        self._find_checkpoint(config)
        self.run_id = f"{datetime.now():%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"
        self.run_folder = Path(config.trainer.default_root_dir or "", self.run_id)
        if config.ckpt_path:
            self._agree_with_checkpoint(config)
        self.parser.check_text(str(self.run_folder.absolute()))  # which W&B's settings in the config hold
        self.command.folder = self.run_folder
        if not config.trainer.fast_dev_run:
            self._prepare_loggers(config)
        self._suit_the_hardware(config)
        config.weights_only = True  # otherwise a checkpoint could run code
        if self.subcommand == "predict":
            config.return_predictions = False  # all would stay in memory; a callback draws them

    def _suit_the_hardware(self, config: Namespace) -> None:
        trainer = config.trainer
        device_type = "cuda" if trainer.accelerator in ("auto", "gpu", "cuda") and start_gpu() else "cpu"
        if trainer.accelerator == "cpu":
            hide_gpus()  # otherwise Lightning starts CUDA all the same, to save its random state
        others = ["bf16"]  # names for it, as Lightning has it
        if device_type == "cpu" and not torch.backends.mps.is_available():
            others += ["16", "16-mixed"]
        if str(trainer.precision) in others:
            trainer.precision = "bf16-mixed"
        if trainer.precision == "bf16-mixed" and not computes_bfloat16(device_type):
            faster = " --trainer.precision 16-mixed should be faster." if device_type == "cuda" else ""
            rank_zero_info(
                f"This hardware only emulates bfloat16, which is slower: precision is 32-true instead.{faster}"
            )
            trainer.precision = "32-true"
        num_gpus = torch.cuda.device_count() if device_type == "cuda" else 0
        if is_demo(config) and trainer.devices == "auto" and num_gpus > 1 and not was_launched():
            rank_zero_info(f"The demo images are few, so one GPU is used; --trainer.devices {num_gpus} uses all.")
            trainer.devices = 1
        if self.subcommand != "fit":
            trainer.benchmark = False  # otherwise cuDNN tries its algorithms again for each size of images

    def _find_checkpoint(self, config: Namespace) -> None:
        """Replace ``last`` with the newest run's checkpoint; if there is none, a fit starts a new run.

        A checkpoint in W&B is downloaded.
        """
        if config.ckpt_path is None and self.subcommand != "fit":
            self.parser.error("--ckpt_path is missing: give a checkpoint file, or last for the newest run's")
        if config.ckpt_path == "last":
            saved = Path(config.trainer.default_root_dir or "").glob("*/checkpoints/last.ckpt")
            newest = max(saved, key=os.path.getmtime, default=None)
            config.ckpt_path = newest and str(newest)
            nothing = f"no run in '{config.trainer.default_root_dir}' has a last.ckpt"
            if newest is None and self.subcommand != "fit":
                self.parser.error(nothing)
            if newest is None:
                rank_zero_info(shown(f"Resuming: {nothing}, so a new one begins."))
        elif config.ckpt_path:
            config.ckpt_path = str(on_this_machine(config.ckpt_path))

    def _agree_with_checkpoint(self, config: Namespace) -> None:
        """Refuse a config that contradicts the checkpoint; Lightning would silently prefer the checkpoint."""
        checkpoint = read_checkpoint(config.ckpt_path, TO_GO_ON if self.subcommand == "fit" else TO_USE)
        folder = folder_of_run(Path(config.ckpt_path))
        if self.subcommand == "fit" and "run_id" in checkpoint:
            self.goes_on = True
            self.run_id = Path(checkpoint["run_id"]).name  # a file from elsewhere must not choose another folder
            self.run_folder = folder or self.run_folder.with_name(self.run_id)
            where = "" if folder else f", which is in no run's folder; the run goes on in {self.run_folder}"
            rank_zero_info(shown(f"Resuming: from {config.ckpt_path}{where}"))
        remedy = " Name another checkpoint"
        if folder:
            remedy += f", or use its run's own config: --config {folder / 'config.yaml'}"
        limit = config.trainer.max_epochs
        one_more = "StochasticWeightAveraging" in str(config.trainer.callbacks)  # which it adds
        num = finished_epochs(checkpoint) - one_more if self.subcommand == "fit" else 0
        if limit is not None and 0 <= limit < num:
            self.parser.error(f"trainer.max_epochs is {limit}, but '{config.ckpt_path}' has had {num}; give more")
        given = {**config.model.init_args, "_class_path": config.model.class_path}
        for name, value in checkpoint["hyper_parameters"].items():
            if name in given and given[name] != value:
                name, here = name.replace("_class_path", "model"), given[name]
                self.parser.error(f"{name} is {value} in '{config.ckpt_path}', but {here} in the config.{remedy}")

    def _prepare_loggers(self, config: Namespace) -> None:
        """Let all loggers write to the run's folder."""
        loggers = config.trainer.logger if isinstance(config.trainer.logger, list) else [config.trainer.logger]
        for logger in loggers:
            if isinstance(logger, Namespace) and "save_dir" in logger.init_args:
                logger.init_args.save_dir = str(self.run_folder)
            if isinstance(logger, Namespace) and logger.class_path.endswith("WandbLogger"):
                self.given_to_wandb.append((logger.init_args, {name: logger.init_args[name] for name in VARIABLES}))
                self._prepare_wandb(logger.init_args)
                describe(logger.init_args, config, self.typed, self.goes_on)

    def _prepare_wandb(self, wandb_args: Namespace) -> None:
        # absolute, because W&B's service process stays in the folder where it was started
        wandb_args.save_dir = str(self.run_folder.absolute())
        wandb_args.version = self.run_id
        wandb_args.job_type = self.subcommand
        wandb_args.resume = "allow"
        if wandb_args.mode == "online":  # a run that repeats this one from its config must not inherit the mode
            wandb_args.mode = None
        self.offline_because = go_offline_if_necessary(wandb_args.mode)

    def instantiate_classes(self) -> None:
        try:
            super().instantiate_classes()
        except ValueError as error:  # constructors check what the config says; jsonargparse wraps what they raise
            self.parser.error(str(error.__cause__ or error))
        except (MisconfigurationException, ImportError) as error:  # a strategy is not installed, say
            said, trainer = str(error), self.config[self.subcommand].trainer
            if isinstance(error, ImportError) or re.search("accelerator|devices|strategy|gpu", said):
                said += f" (trainer.accelerator is {trainer.accelerator}, devices {trainer.devices})"
            self.parser.error(said)
        # the saved config repeats the run, which then has another name, and starts from the beginning
        for wandb_args, given in self.given_to_wandb:
            vars(wandb_args).update(given)
        if self.subcommand == "fit":
            self.config.fit.ckpt_path = None

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        try:
            trainer = super().instantiate_trainer(default_root_dir=self.run_folder, **kwargs)
        except RuntimeError as error:
            if not re.search("SLURM|stateful callback", str(error)):  # no --ntasks-per-node, or two of a kind
                raise
            self.parser.error(str(error))
        self._check_processes(trainer)
        if trainer.precision not in PRECISIONS:
            self.parser.error(
                f"trainer.precision is {trainer.precision}, must be {' or '.join(PRECISIONS)}: images are float32"
            )
        if self.config[self.subcommand].trainer.sync_batchnorm and not isinstance(trainer.accelerator, CUDAAccelerator):
            self.parser.error("trainer.sync_batchnorm is true, but only GPUs can share BatchNorm's statistics")
        # not in defaults.yaml, where a progress bar would forbid trainer.enable_progress_bar: false
        callbacks = trainer.callbacks  # type: ignore[attr-defined]
        bars = (TQDMProgressBar, RichProgressBar)  # Lightning takes the latter where rich is installed, as on Colab
        if "ProgressBar" not in str(self.config[self.subcommand].trainer.callbacks):  # unless one is asked for
            callbacks[:] = [ProgressBar() if type(one) in bars else one for one in callbacks]
        if self.config[self.subcommand].ckpt_path and self.subcommand == "fit":
            for callback in callbacks:
                if isinstance(callback, LearningRateFinder | BatchSizeFinder):  # Lightning would start the run anew
                    self.parser.error(f"trainer.callbacks: {type(callback).__name__} is only for the start of a run")
        for callback in trainer.checkpoint_callbacks:
            if isinstance(callback, ModelCheckpoint) and callback.dirpath is None:
                callback.dirpath = str(self.run_folder / "checkpoints")  # Lightning's depends on which logger is first
        return trainer

    def _check_processes(self, trainer: Trainer) -> None:
        """Refuse a launcher that starts too few or too many processes: some devices would be idle, or train twice."""
        launcher, num_nodes, num_devices = cluster_environment(trainer), trainer.num_nodes, trainer.num_devices
        if isinstance(launcher, TorchElasticEnvironment | SLURMEnvironment):
            launcher.validate_settings(num_devices, num_nodes)
            if (num_processes := launcher.world_size()) != num_nodes * num_devices:
                self.parser.error(
                    f"trainer.num_nodes is {num_nodes} and trainer.devices {num_devices}, which takes "
                    f"{num_nodes * num_devices} processes, but the launcher starts {num_processes}. In SLURM, use "
                    f"#SBATCH --nodes={num_nodes} --ntasks-per-node={num_devices}, then srun"
                )

    def after_instantiate_classes(self) -> None:
        if self.config[self.subcommand].compile:
            for child in self.model.children():
                if any(True for _ in child.parameters()):  # a network, not a metric
                    child.compile()
        num_parameters = sum(parameter.numel() for parameter in self.model.parameters())
        num_processes = self.trainer.world_size
        where = f"{num_processes} x {self.trainer.strategy.root_device.type}"
        if num_processes > 1 and self.subcommand == "fit":
            num_images = num_processes * self.datamodule.batch_size * self.trainer.accumulate_grad_batches
            where += f", {num_images} images in a step"
        rank_zero_info(
            f"Model: {type(self.model).__name__}, {num_parameters:,} parameters, {self.trainer.precision} on {where}"
        )
        if self.offline_because:
            upload = sync_command(self.run_folder)
            rank_zero_info(shown(f"W&B: offline, {self.offline_because}. To upload this run later: {upload}"))

    @rank_zero_only
    def say_where_everything_is(self) -> None:
        lines = {"Run": str(self.run_folder)} if self.run_folder.exists() else {}  # none under fast_dev_run
        if self.subcommand == "fit":
            for callback in self.trainer.checkpoint_callbacks:
                if isinstance(callback, ModelCheckpoint) and Path(callback.best_model_path).is_file():
                    lines["Best"] = callback.best_model_path
            if (last := self.run_folder / "checkpoints" / "last.ckpt").exists():
                lines["Last"] = str(last)
        if (self.run_folder / "media").exists():
            lines["Pictures"] = str(self.run_folder / "media")
        if wandb.run and not wandb.run.disabled:
            lines["W&B"] = wandb.run.url or sync_command(self.run_folder)
        print(*(f"{what:10}{shown(where)}" for what, where in lines.items()), sep="\n")

    after_fit = after_validate = after_test = after_predict = say_where_everything_is


def folder_of_run(checkpoint: Path) -> Path | None:
    """Return the folder of the run that a checkpoint, or the file it links to, is in; None if it is in none."""
    if checkpoint.is_symlink() or checkpoint.parent.name != "checkpoints" or len(checkpoint.parts) < 3:
        checkpoint = checkpoint.resolve()
    folder = checkpoint.parent.parent
    is_run = checkpoint.parent.name == "checkpoints" and (folder / "config.yaml").is_file()
    return folder if is_run else None


def was_launched() -> bool:
    """Return whether torchrun or SLURM has started several processes, which asks for as many devices."""
    return any(int(os.environ.get(name, 1)) > 1 for name in ("WORLD_SIZE", "SLURM_NTASKS"))


@contextmanager
def in_plain_words() -> Iterator[None]:
    """Turn other libraries' errors that a user can do something about into a PigmentError."""
    try:
        yield
    except BackendCompilerFailed as error:
        raise PigmentError(f"cannot compile: {error.inner_exception}. Fix that, or set compile to false.") from error
    except MisconfigurationException as error:  # Lightning refuses a setting
        raise PigmentError(reason(error)) from error
    except wandb.errors.UsageError as error:
        raise PigmentError(f"W&B refuses a setting: {reason(error)}") from error
    except (RuntimeError, ValueError) as error:
        if "loading state_dict" in str(error):
            said = "the checkpoint's settings match, but its weights are not those of this model"
            raise PigmentError(said) from error
        if re.search("Early stopping conditioned|`val_check_interval`", str(error)):
            raise PigmentError(reason(error)) from error
        raise
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise PigmentError(
            f"{error}. Free some space, then resume with --ckpt_path: what the run has saved is whole."
        ) from error
