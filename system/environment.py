"""Drop inherited settings that were meant for other programs. Import this before Lightning.

A notebook passes its own Matplotlib backend to the commands that it starts. If their Python does not have that backend,
Matplotlib cannot be imported. Commands draw charts only to files, so they need no backend.

Under ``PYTHONWARNINGS=error``, which a CI may set for its own code, a warning from any library would end a command.

What libraries read at import, where they would end in a traceback, is refused here.
"""

import os
import sys
import warnings
from typing import NoReturn

from system.errors import shown

# what torchrun, SLURM and others tell each process
NUMBERS = ("MASTER_PORT", "WORLD_SIZE", "RANK", "LOCAL_RANK", "GROUP_RANK", "NODE_RANK", "JSM_NAMESPACE_RANK")
SLURM_NUMBERS = ("SLURM_NTASKS", "SLURM_PROCID", "SLURM_LOCALID", "SLURM_NODEID")


def refuse(what: str) -> NoReturn:
    print(f"error: {shown(what)}", file=sys.stderr)
    sys.exit(2)


if "IPython" not in sys.modules:  # a notebook that imports a model keeps its backend, to show its figures
    os.environ.pop("MPLBACKEND", None)
if "error" in os.environ.get("PYTHONWARNINGS", ""):
    entries = os.environ["PYTHONWARNINGS"].split(",")
    os.environ["PYTHONWARNINGS"] = ",".join(entry for entry in entries if not entry.strip().startswith("error"))
    warnings.filters = [entry for entry in warnings.filters if entry[0] != "error"]
for name in NUMBERS + SLURM_NUMBERS:
    if not os.environ.get(name, "0").isdecimal():
        refuse(f"the environment variable {name} is '{os.environ[name]}', must be a whole number")
try:
    import tqdm  # noqa: F401
except ValueError as error:
    refuse(f"tqdm refuses {' or '.join(name for name in os.environ if name.startswith('TQDM_'))}: {error}")
