"""Read the next batches while the device computes with the current one."""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from torch import Tensor
from torch.utils.data import DataLoader

NUM_AHEAD = 2

Batch = TypeVar("Batch")


class ReadAhead(DataLoader[Tensor]):
    """A DataLoader without workers that reads in a thread, while the main thread launches a GPU's kernels.

    It does not suit a CPU that computes with every core: one more thread gains nothing there, and can make the others
    wait.
    """

    def __iter__(self) -> Iterator[Tensor]:  # type: ignore[override]
        return ahead(super().__iter__())


def ahead(batches: Iterator[Batch]) -> Iterator[Batch]:
    """Yield the items of ``batches``, which a thread takes in advance; an error is raised in its turn.

    The thread ends together with this iterator.
    """
    with ThreadPoolExecutor(1) as reader:
        coming = deque(reader.submit(next, batches, None) for _ in range(NUM_AHEAD))
        while (batch := coming.popleft().result()) is not None:
            coming.append(reader.submit(next, batches, None))
            yield batch
