"""Batches that are read while the one before is computed with."""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from torch import Tensor
from torch.utils.data import DataLoader

NUM_AHEAD = 2

Batch = TypeVar("Batch")


class ReadAhead(DataLoader[Tensor]):
    """Reads in a thread while this one launches a GPU's kernels; without ``num_workers``.

    Where the CPU itself computes, with every core, one more thread gains nothing and can keep the others waiting.
    """

    def __iter__(self) -> Iterator[Tensor]:  # type: ignore[override]
        return ahead(super().__iter__())


def ahead(batches: Iterator[Batch]) -> Iterator[Batch]:
    """Yield what ``batches`` does, taken in a thread that ends with this iterator; errors come in their turn."""
    with ThreadPoolExecutor(1) as reader:
        coming = deque(reader.submit(next, batches, None) for _ in range(NUM_AHEAD))
        while (batch := coming.popleft().result()) is not None:
            coming.append(reader.submit(next, batches, None))
            yield batch
