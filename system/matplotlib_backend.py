"""Forget a Matplotlib backend that a notebook passes on. Import this before Lightning, which imports Matplotlib.

A notebook passes its own backend to the commands that it starts. If their Python does not have that backend, Matplotlib
cannot be imported. Commands draw charts only to files, so they need no backend.
"""

import os
import sys

if "IPython" not in sys.modules:  # a notebook that imports a model keeps its backend, to show its figures
    os.environ.pop("MPLBACKEND", None)
