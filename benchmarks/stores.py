"""Opens a folder's image store, which is built or found: python -m benchmarks.stores FOLDER SIZE"""

import resource
import sys
import time
from pathlib import Path

from benchmarks.systems import say
from datamodules.store import open_store
from system.hardware import keep_freed_memory


def main(folder: str, size: str) -> None:
    keep_freed_memory()
    start = time.perf_counter()
    store = open_store(Path(folder), int(size), layout=None)
    seconds = time.perf_counter() - start
    worker_mb = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024  # much of it shared with this process
    say(images_per_second=len(store.pixels) / seconds, seconds=seconds, worker_mb=worker_mb)


if __name__ == "__main__":
    main(*sys.argv[1:])
