"""Checkpoints: written whole, and loaded without running any code in them."""

import inspect
import json
import zipfile
import zlib
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any, TypeVar

import lightning
import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.plugins.io import TorchCheckpointIO
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from colorization import DeepColorizer, PaletteColorizer, ResNetColorizer, ShallowColorizer
from datamodules import FruitsDataModule, PaintingsDataModule
from datamodules.folder import FolderDataModule
from system.atomic import writing
from system.errors import PigmentError, reason, shown
from system.hardware import best_device
from vae import ConvVAE, ResidualVAE

# closed lists: a class is never imported just because a file names it
MODELS: tuple[type[LightningModule], ...] = (
    ShallowColorizer,
    DeepColorizer,
    ResNetColorizer,
    PaletteColorizer,
    ConvVAE,
    ResidualVAE,
)
DATA_MODULES: dict[str, type[FolderDataModule]] = {
    f"datamodules.{kind.__name__}": kind for kind in (FruitsDataModule, PaintingsDataModule)
}
TO_USE = ("state_dict", "hyper_parameters")
KEPT = ("hyper_parameters", "image_size", "curve")  # beside the tensors, in a .safetensors file
CODES = "codes."  # prefix of a VAE's codes among the tensors there
TO_GO_ON = (*TO_USE, "loops", "optimizer_states", "pytorch-lightning_version")
Model = TypeVar("Model", bound=LightningModule)


class WholeCheckpointIO(TorchCheckpointIO):
    """Write a checkpoint whole or not at all, see :func:`system.atomic.writing`.

    Raises:
        PigmentError: if it cannot be written, for example because the disk is full.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        with writing(Path(path)) as file:
            torch.save(checkpoint, file)

    def load_checkpoint(self, path: str | Path, *args: Any, **kwargs: Any) -> dict[str, Any]:
        return read_checkpoint(path) if is_safetensors(path) else super().load_checkpoint(path, *args, **kwargs)


def read_checkpoint(path: str | Path, needed: Collection[str] = TO_USE, verify: bool = True) -> dict[str, Any]:
    """Read a checkpoint on the CPU; its tensors are memory-mapped from the file, unless it is a .safetensors file.

    Args:
        needed: the keys that it must have.
        verify: check every byte against the file's checksums, which takes a while for a large one.

    Raises:
        PigmentError: if it is missing, damaged, or not a checkpoint.
    """
    if Path(path).is_dir():
        there = [*Path(path).glob("*.ckpt"), *Path(path).glob("checkpoints/*.ckpt")]
        raise PigmentError(f"'{path}' is a folder, not a checkpoint. Checkpoints in it: {listed(there)}")
    try:
        if is_safetensors(path):
            checkpoint = _read_safetensors(path)
        else:
            checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
            if verify and zipfile.ZipFile(path).testzip():
                raise ValueError("damaged")
        found = set(checkpoint.keys())
    except FileNotFoundError:
        raise PigmentError(f"there is no checkpoint '{path}'") from None
    except PermissionError as error:
        raise PigmentError(f"'{path}' cannot be read: {reason(error)}") from None
    except Exception:  # files of other kinds raise all sorts of errors
        found = set()
    if found >= set(needed):
        return checkpoint
    if found >= set(TO_USE):
        raise PigmentError(f"'{path}' holds a model without its training, so no run can go on from it; use a last.ckpt")
    folder = Path(path).parent
    others = listed(other for other in folder.glob("*.ckpt") if other != Path(path))
    raise PigmentError(f"'{path}' is not a whole checkpoint of this program. Other checkpoints in '{folder}': {others}")


def listed(paths: Iterable[Path]) -> str:
    return ", ".join(sorted(map(str, paths))) or "none"


def is_safetensors(path: str | Path) -> bool:
    return Path(path).suffix == ".safetensors"


def write_safetensors(checkpoint: dict[str, Any], path: Path, max_bytes: int) -> None:
    """Write a .safetensors file with what a model needs to be used, and say how large it is.

    Matrices and convolutions are in half precision, biases and BatchNorm's statistics as they are.

    Args:
        max_bytes: how large the file may be.

    Raises:
        PigmentError: if the path does not end in .safetensors, the file cannot be written or would be too large, or a
            number is too large for half precision or not finite.
    """
    if not is_safetensors(path):
        raise PigmentError(f"'{shown(path)}' must end in .safetensors")
    content = _to_safetensors(checkpoint)
    if len(content) > max_bytes:
        raise PigmentError(f"the model would have {len(content):,} bytes, may have {max_bytes:,}: make it smaller")
    with writing(path) as file:
        file.write(content)
    print(f"'{shown(path)}': {len(content):,} bytes")


def _to_safetensors(checkpoint: dict[str, Any]) -> bytes:
    codes = {f"{CODES}{name}": tensor for name, tensor in (checkpoint.get("codes") or {}).items()}
    tensors = {
        name: (tensor.half() if tensor.is_floating_point() and tensor.ndim > 1 else tensor).contiguous()
        for name, tensor in {**checkpoint["state_dict"], **codes}.items()
    }
    for name, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise PigmentError(f"{name} has numbers that half precision cannot hold")
    kept = {name: checkpoint[name] for name in KEPT if name in checkpoint}
    kept = {name: value.tolist() if isinstance(value, Tensor) else value for name, value in kept.items()}
    texts = {name: json.dumps(value) for name, value in {**kept, "checksum": _checksum(tensors)}.items()}
    return save(tensors, texts)


def _read_safetensors(path: str | Path) -> dict[str, Any]:
    """Read what :func:`write_safetensors` wrote as the checkpoint that it was, its matrices in half precision.

    Raises:
        ValueError: if a tensor is damaged; a file of another kind raises all sorts of errors.
    """
    with safe_open(path, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no dict
        checkpoint = {name: json.loads(text) for name, text in file.metadata().items()}
    if checkpoint.pop("checksum") != _checksum(tensors):
        raise ValueError("damaged")
    codes = {name.removeprefix(CODES): tensors.pop(name) for name in list(tensors) if name.startswith(CODES)}
    version = {"pytorch-lightning_version": lightning.__version__}  # which Lightning asks for
    return {**checkpoint, **version, "state_dict": tensors, "codes": codes or None}


def _checksum(tensors: dict[str, Tensor]) -> int:
    checksum = 0
    for name in sorted(tensors):
        checksum = zlib.crc32(tensors[name].numpy().tobytes(), checksum)
    return checksum


def load_model(
    path: str | Path, family: type[Model], device: torch.device | None = None
) -> tuple[Model, dict[str, Any]]:
    """Rebuild the model of a checkpoint from the tensors and settings in it, and return both.

    Args:
        family: a class in MODELS, or one that they inherit from.
        device: by default the GPU if there is one.

    Raises:
        PigmentError: if the file is not the checkpoint of such a model.
    """
    checkpoint = read_checkpoint(path)
    saved_class = checkpoint["hyper_parameters"].get("_class_path", "")  # only train.py stores it
    for kind in MODELS:
        if issubclass(kind, family) and saved_class.rpartition(".")[2] in ("", kind.__name__):
            try:
                model = _rebuild(kind, checkpoint)
            except MemoryError:
                raise
            except Exception as error:  # another kind's settings or weights raise all sorts of errors
                if saved_class:
                    raise PigmentError(
                        f"'{path}' holds a {saved_class} that cannot be rebuilt: {reason(error)}"
                    ) from error
                continue
            return model.to(device or best_device()), checkpoint
    what = f"a {saved_class}" if saved_class else "another kind or version"
    raise PigmentError(f"'{path}' is not the checkpoint of a {family.__name__}, but of {what}")


def _rebuild(kind: type[Model], checkpoint: dict[str, Any]) -> Model:
    model = kind(**_known(kind, checkpoint["hyper_parameters"]))
    model.on_load_checkpoint(checkpoint)
    model.load_state_dict(checkpoint["state_dict"])
    return model


def data_of(checkpoint: dict[str, Any], **changes: Any) -> FolderDataModule:
    """Return the data that a checkpoint's run was trained on, with some settings changed.

    Raises:
        PigmentError: if the checkpoint does not say, and ``changes`` has no ``root`` either; or if a setting is wrong.
    """
    settings = checkpoint.get("datamodule_hyper_parameters", {})
    kind = DATA_MODULES.get(settings.get("_class_path", ""))
    if kind is None and "_class_path" in settings:
        raise PigmentError(
            f"the checkpoint's data is a {settings['_class_path']}, not in resuming.checkpoints.DATA_MODULES"
        )
    if kind is None and "root" not in changes:
        raise PigmentError("the checkpoint does not say what it was trained on; name the folder of images with --root")
    kind = kind or FruitsDataModule
    try:
        return kind(**_known(kind, {**settings, **changes}))
    except ValueError as error:
        raise PigmentError(str(error)) from error


def training_data(checkpoint: dict[str, Any], size: int, root: str | None = None) -> FolderDataModule:
    """Return the data that a checkpoint's run was trained on, in a folder or where the run found it.

    Raises:
        PigmentError: if it has fewer than two training images.
    """
    data = data_of(checkpoint, size=size, **({} if root is None else {"root": root}))
    if (number := len(data.images("train"))) < 2:
        raise PigmentError(f"'{data.folder}' has {number} training images, needs 2 or more")
    return data


def _known(kind: type[Any], settings: dict[str, Any]) -> dict[str, Any]:
    """Return the settings that a class takes; an older version may have taken more."""
    return {name: value for name, value in settings.items() if name in inspect.signature(kind).parameters}
