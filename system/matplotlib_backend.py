"""Imported for its effect, before Lightning, which imports Matplotlib: commands need no Matplotlib backend.

A notebook passes its own backend on to the commands that it starts, and Matplotlib refuses to be imported if their
Python does not have it. Charts here are drawn to files, which takes none.
"""

import os
import sys

if "IPython" not in sys.modules:  # the notebook itself, which may import a model, still shows its figures
    os.environ.pop("MPLBACKEND", None)
