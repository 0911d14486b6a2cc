"""Drop inherited settings that were meant for other programs. Import this before Lightning.

A notebook passes its own Matplotlib backend to the commands that it starts. If their Python does not have that backend,
Matplotlib cannot be imported. Commands draw charts only to files, so they need no backend.

Under ``PYTHONWARNINGS=error``, which a CI may set for its own code, a warning from any library would end a command.
"""

import os
import sys
import warnings

if "IPython" not in sys.modules:  # a notebook that imports a model keeps its backend, to show its figures
    os.environ.pop("MPLBACKEND", None)
if os.environ.pop("PYTHONWARNINGS", None):
    warnings.resetwarnings()
