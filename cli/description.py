"""What a run says of itself in Weights & Biases: a name, a group, tags, notes, and a config to filter by."""

import inspect
import os
import shlex
from pathlib import Path
from typing import Any

from jsonargparse import Namespace
from lightning.pytorch import Trainer

VARIABLES = {"name": "WANDB_NAME", "group": "WANDB_RUN_GROUP", "notes": "WANDB_NOTES", "tags": "WANDB_TAGS"}
NOT_FILTERED_BY = ("logger", "callbacks", "plugins", "default_root_dir")


def describe(wandb_args: Namespace, config: Namespace, typed: list[str], goes_on: bool) -> None:
    """Fill in what the user left open: ``4_shallow_adam · art-images · seed 0``, and how to repeat it.

    Args:
        wandb_args: the logger's; what the config or a ``WANDB_...`` variable says stays, and tags are added to.
        typed: the arguments of train.py.
        goes_on: the run was begun before. W&B keeps what it has, which its owner may have changed in the browser.
    """
    given = {name: wandb_args[name] or os.environ.get(variable) for name, variable in VARIABLES.items()}
    tags = given["tags"].split(",") if isinstance(given["tags"], str) else given["tags"] or []
    if tags or not goes_on:
        family = config.model.class_path.partition(".")[0]
        wandb_args.tags = list(dict.fromkeys([*tags, family, *(["demo"] if is_demo(config) else [])]))
    if not goes_on:
        group = f"{model_name(config)} · {data_name(config)}"
        repeat = f"Repeat: {shlex.join(['python', 'train.py', *typed])}"
        ours = {"group": group, "name": f"{group} · seed {config.seed_everything}", "notes": repeat}
        for name, text in ours.items():
            wandb_args[name] = wandb_args[name] or (None if given[name] else text)


def model_name(config: Namespace) -> str:
    """Return the name of the last config file, or the model's class, if that file is a run's own ``config.yaml``."""
    stem = Path(str(config.config[-1])).stem if config.config else "config"
    return config.model.class_path.rpartition(".")[2] if stem == "config" else stem


def data_name(config: Namespace) -> str:
    if is_demo(config):
        return "demo"
    root = config.get("data.init_args.root", config.data.class_path)
    return root.split("/")[1] if root.startswith("kaggle:") and "/" in root else Path(root).absolute().name


def is_demo(config: Namespace) -> bool:
    return config.get("data.init_args.root", "") is None


def what_counts(config: Namespace) -> dict[str, Any]:
    """Return the settings that decide what a run learns, as ``model.lr`` or ``data.size``.

    The only paths of the machine are the data's root, and a file with the model's weights. The Trainer's settings are
    those that differ from its defaults.
    """
    defaults = {name: parameter.default for name, parameter in inspect.signature(Trainer).parameters.items()}
    trainer = {
        name: value
        for name, value in config.trainer.as_dict().items()
        if name not in NOT_FILTERED_BY and value != defaults[name]
    }
    callbacks = config.trainer.callbacks if isinstance(config.trainer.callbacks, list) else [config.trainer.callbacks]
    names = [callback.class_path.rpartition(".")[2] for callback in callbacks if callback]
    model, data = ({"class": part.class_path, **part.get("init_args", {})} for part in (config.model, config.data))
    rest = {"seed": config.seed_everything, "compile": config.compile, "callbacks": names}
    return {"model": model, "data": data, "trainer": trainer, **rest}
