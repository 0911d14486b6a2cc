"""A simulated GPU: its tensors lie in main memory, and it notes everything that would make the host wait for a GPU.

A :class:`GPUTensor` says that it is on ``cuda:0``, but its values lie on the CPU, which computes everything. So
train.py runs to its end, with real numbers, pictures and checkpoints. PyTorch's own FakeTensor would not do: it has no
values, and its gradients need a driver. Like a real GPU, this one refuses tensors of two devices in one operation.
"""

import json
import os
import sys
import threading
import traceback
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, optim
from torch.utils import _foreach_utils
from torch.utils._python_dispatch import TorchDispatchMode

from train import main

ROOT = Path(__file__).parents[1]
aten = torch.ops.aten
LOOK_UPS = {aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_, aten._unsafe_index}
# how large the result is, or what the program does next, depends on values
WAITING = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}


class Notes:
    """What this process did, by the phase of the run: ``train <epoch> <batch>``, ``test 0 <batch>``, and so on."""

    def __init__(self) -> None:
        self.phase = ""
        self.found: dict[str, list[str]] = defaultdict(list)

    def add(self, what: str) -> None:
        self.found[self.phase].append(f"{what}: {place()}")


notes = Notes()


def place() -> str:
    """Return the innermost line of this repository that is running, and the innermost of a library that it called."""
    frame, lines = sys._getframe(2), []
    while frame:
        file = frame.f_code.co_filename
        if file != __file__ and "/torch/" not in file:
            lines.append(f"{file.rpartition('site-packages/')[2].removeprefix(f'{ROOT}/')}:{frame.f_lineno}")
            if file.startswith(str(ROOT)) and "site-packages" not in file:
                break
        frame = frame.f_back  # type: ignore[assignment]
    return " < ".join(dict.fromkeys([lines[0], lines[-1]]))


class NotePhases(Callback):
    """Tell the notes in which phase the run is."""

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        notes.phase = f"train {trainer.current_epoch} {batch_idx}"
        notes.found[notes.phase] = []

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        notes.phase = f"{trainer.state.stage.value} {trainer.current_epoch} {batch_idx}"

    on_test_batch_start = on_predict_batch_start = on_validation_batch_start

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        notes.phase = ""

    on_train_epoch_end = on_test_epoch_end = on_predict_epoch_end = on_validation_epoch_end


class GPUTensor(Tensor):
    """A tensor on ``cuda:0`` that holds its values on the CPU.

    PyTorch's C++ takes it for a tensor on the CPU, because a gradient on CUDA would ask the driver for its stream.
    Python and autocast take it for one on the GPU.
    """

    held: Tensor

    @staticmethod
    def __new__(cls: type["GPUTensor"], held: Tensor) -> "GPUTensor":
        tensor = torch.Tensor._make_wrapper_subclass(
            cls,
            held.shape,
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            _extra_dispatch_keys=torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastCUDA),
        )
        tensor.held = held
        return tensor

    device = property(lambda self: torch.device("cuda", 0))
    is_cuda = property(lambda self: True)
    is_cpu = property(lambda self: False)

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Do here what C++ would get wrong: it takes this for a CPU tensor, and does not ask the dispatcher."""
        kwargs = kwargs or {}
        with torch._C.DisableTorchFunctionSubclass():
            if func is Tensor.numpy:
                raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() first.")
            if func in (Tensor.tolist, Tensor.__repr__, Tensor.__format__):
                return func(aten._to_copy(args[0], device="cpu"), *args[1:], **kwargs)
            if func is Tensor.cpu:
                return aten._to_copy(args[0], device="cpu")
            if func is Tensor.to:
                tensor, *where = args
                if where and isinstance(where[0], Tensor):
                    where[:1] = where[0].device, where[0].dtype
                copy = {"copy": kwargs.pop("copy", False)}
                device, dtype, non_blocking, memory_format = torch._C._nn._parse_to(*where, **kwargs)
                how = {"dtype": dtype or tensor.dtype, "memory_format": memory_format or torch.preserve_format}
                if device and device.type != tensor.device.type:
                    return aten._to_copy(tensor, device=device, non_blocking=non_blocking, **how)
                args, kwargs = (tensor,), {**how, **copy}
            return func(*args, **kwargs)

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        return compute(func, args, kwargs or {})  # in a thread without the mode

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.detach().cpu().__reduce_ex__(protocol)  # a checkpoint


class FakeGPU(TorchDispatchMode):
    """Handle operations that do not start from a tensor on the GPU, such as ``torch.zeros(3, device="cuda:0")``."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if torch.is_inference_mode_enabled():  # PyTorch then leaves it to modes to take operations apart
            with self:
                result = func.decompose(*args, **kwargs)
            if result is not NotImplemented:
                return result
        return compute(func, args, kwargs)


pinned: dict[int, torch.UntypedStorage] = {}  # by their identity, which nothing else can get as long as they are here


def is_pinned(tensor: Tensor) -> bool:
    return tensor.untyped_storage()._cdata in pinned


def pin(tensor: Tensor) -> Tensor:
    storage = tensor.untyped_storage()
    pinned[storage._cdata] = storage
    return tensor


def change(kind: type[Tensor], how: Callable[[Any], Any], value: Any) -> Any:
    """Change all tensors of a kind in an operation's arguments or results; PyTorch's tree_map takes far longer."""
    if isinstance(value, kind):
        return how(value)
    return type(value)(change(kind, how, one) for one in value) if isinstance(value, list | tuple) else value


def compute(func: Any, args: Any, kwargs: Any) -> Any:
    """Compute an operation on either device, or refuse it, and note it if the host would wait for the GPU."""
    if func is aten.is_pinned.default:
        return is_pinned(args[0])
    if func is aten._pin_memory.default:
        return pin(args[0].clone())
    if kwargs.get("pin_memory"):
        return pin(func(*args, **{**kwargs, "pin_memory": False}))
    tensors: list[Tensor] = []

    def hold(tensor: Tensor) -> Tensor:
        tensors.append(tensor)
        return tensor.held if isinstance(tensor, GPUTensor) else tensor

    held_args = change(Tensor, hold, args)
    held_kwargs = {name: change(Tensor, hold, value) for name, value in kwargs.items()}
    ours = {id(tensor.held): tensor for tensor in tensors if isinstance(tensor, GPUTensor)}
    device = kwargs.get("device")
    on_gpu = bool(ours) if device is None else torch.device(device).type == "cuda"
    if not (ours or on_gpu):
        return func(*args, **kwargs)
    if device is not None:
        held_kwargs["device"] = "cpu"
    if func is aten.copy_.default:
        on_gpu = isinstance(args[0], GPUTensor)
    elif func is not aten._to_copy.default:
        check(func, args, tensors)
    result = func(*held_args, **held_kwargs)
    if func is aten.copy_.default:
        note_transfer(args[1], result, on_gpu, non_blocking=len(args) > 2 and args[2])
    elif func is aten._to_copy.default:
        non_blocking = kwargs.get("non_blocking", False)
        if non_blocking and not on_gpu:
            pin(result)  # as PyTorch does
        note_transfer(args[0], result, on_gpu, non_blocking)
    if not on_gpu:
        return result
    # what was changed in place stays the same object
    return change(Tensor, lambda one: ours[id(one)] if id(one) in ours else GPUTensor(one), result)


def check(func: Any, args: Any, tensors: list[Tensor]) -> None:
    """Refuse tensors on two devices, and note an operation that reads values in order to go on."""
    indices = [one for one in args[1] if one is not None] if func.overloadpacket in LOOK_UPS else []
    elsewhere = [tensor for tensor in tensors if not isinstance(tensor, GPUTensor)]
    for tensor in elsewhere:
        is_scalar = tensor.dim() == 0 and torch.Tag.pointwise in func.tags
        if not is_scalar and not any(tensor is index for index in indices):
            raise RuntimeError(f"Expected all tensors to be on the same device, but {func} got cuda:0 and cpu")
    if indices:
        masks = [index for index in indices if index.dtype in (torch.bool, torch.uint8)]
        waits = bool(masks) or any(index is tensor for index in indices for tensor in elsewhere)
    else:
        waits = not WAITING.isdisjoint(func.tags)
    if waits:
        notes.add(str(func))


def note_transfer(source: Tensor, result: Tensor, to_gpu: bool, non_blocking: bool) -> None:
    """Note a copy from one device to the other, unless the host goes on meanwhile."""
    if isinstance(source, GPUTensor) == to_gpu:
        return
    if not (non_blocking and is_pinned(source if to_gpu else result)):
        notes.add("copy to the GPU" if to_gpu else "copy from the GPU")
    elif not to_gpu:  # until somebody waits for it, nothing is there
        values = result.clone()
        arriving[id(values)] = result, values
        result.zero_()


arriving: dict[int, tuple[Tensor, Tensor]] = {}  # where to, and what


class Event:
    """Stands in for ``torch.cuda.Event``. Waiting for an earlier step's event is fine: the GPU has this step to do."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.record()

    def record(self, stream: Any = None) -> None:
        self.phase, self.arriving = notes.phase, set(arriving)

    def synchronize(self) -> None:
        if self.phase == notes.phase:
            notes.add("Event.synchronize")
        for key in self.arriving & arriving.keys():
            there, values = arriving.pop(key)
            there.copy_(values)


group_tensors = optim.Optimizer._group_tensors_by_device_and_dtype


def group_as_in_python(tensors: Any, with_indices: bool = False) -> Any:
    """Group an optimizer's tensors by the device that Python sees."""
    grouped = group_tensors(tensors, with_indices)
    return {(group[0][0][0].device, dtype): group for (_, dtype), group in grouped.items()}


def pretend() -> None:
    """Make this process see a GPU until it ends. Devices need an index: without one, C++ asks the driver."""
    cuda: Any = torch.cuda
    cuda._lazy_init = lambda: None  # PyTorch calls it before anything on CUDA
    cuda.is_available = lambda: True  # Lightning, autocast, GradScaler and DataLoader ask
    cuda.device_count = lambda: 1  # Lightning counts
    cuda.set_device = cuda.manual_seed = cuda.manual_seed_all = lambda *args: None
    cuda.current_device = lambda: 0
    cuda.get_device_capability = lambda *args: (9, 0)
    cuda.is_bf16_supported = lambda *args, **kwargs: True
    cuda.synchronize = lambda *args: notes.add("torch.cuda.synchronize")
    cuda.Event = Event
    cuda.is_current_stream_capturing = lambda: False  # optimizers ask, as they work differently in a CUDA graph
    accelerator: Any = torch.accelerator
    accelerator.current_stream = lambda *args: SimpleNamespace(is_capturing=lambda: False)
    torch._C._set_only_lift_cpu_tensors(True)  # else torch.tensor(…, device=…) would copy without asking us
    torch.__future__.set_swap_module_params_on_conversion(True)  # Module.to would keep only a GPUTensor's C++ part
    _foreach_utils._foreach_supported_types.append(GPUTensor)  # optimizers treat other classes one by one
    optimizer: Any = optim.Optimizer
    optimizer._group_tensors_by_device_and_dtype = staticmethod(group_as_in_python)
    thread: Any = threading.Thread
    run_thread, mode = thread.run, FakeGPU()

    def run(self: threading.Thread) -> None:
        with mode:  # which threads do not inherit
            run_thread(self)

    thread.run = run
    mode.__enter__()


def run_on_fake_gpu(folder: Path, arguments: list[str]) -> dict[str, list[str]]:
    """Run train.py in a folder, in a process that has called :func:`pretend`, and return what was noted."""
    os.chdir(folder)
    notes.found.clear()
    main([*arguments, f"--trainer.callbacks+={__name__}.NotePhases"])
    return dict(notes.found)


def evaluate(expression: str) -> bool:
    """Return whether the host waits while an expression of ``x``, three numbers on the GPU, is evaluated."""
    x = torch.arange(3.0, device="cuda:0")
    notes.found.clear()
    eval(expression, {"x": x, "torch": torch})
    return bool(notes.found)


def arrive() -> tuple[list[float], list[float]]:
    """Copy three numbers to the host, and return what has arrived before an event and after it."""
    x, event = torch.arange(3.0, device="cuda:0").to("cpu", non_blocking=True), torch.cuda.Event()
    event.record()
    before = x.tolist()
    event.synchronize()
    return before, x.tolist()


class NoteCollectives(NotePhases):
    """Note what processes say to each other, and leave it in ``notes_<rank>.json``."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.mode = Collectives()
        self.mode.__enter__()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.mode.__exit__(None, None, None)
        Path(f"notes_{trainer.global_rank}.json").write_text(json.dumps(notes.found))


class Collectives(TorchDispatchMode):
    """Note every collective, whoever calls it; DDP reduces gradients during the backward pass."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "c10d":
            frames = traceback.walk_stack(sys._getframe())
            is_backward = any(frame.f_code.co_name == "_engine_run_backward" for frame, _ in frames)
            notes.add("gradients" if is_backward else func.name())
        return func(*args, **(kwargs or {}))
