"""The nearest right name for a wrong one."""

import difflib
import pkgutil
import sys
import textwrap
from collections.abc import Collection

GONE = {"on_device", "kl_warmup_steps"}  # from the saved configs of older runs
HELPERS = {"help", "print_config", "print_shtab"}  # options that set no key


def nearest_key(key: str, known: Collection[str]) -> str:
    """The nearest known key, searched level by level; else one with the same ending; else all that could be there."""
    if key.rpartition(".")[2] in GONE:
        return "it was removed, so delete it from the config"
    elsewhere = [name for name in known if name.endswith(f".{key}")]
    path = ""
    for part in key.split("."):
        level = {name.removeprefix(path).partition(".")[0] for name in known if name.startswith(path)}
        close = difflib.get_close_matches(part, level, n=1)
        if level and not close:
            choices = textwrap.shorten(", ".join(sorted(level - HELPERS)), 100, placeholder=" ...")
            return f"did you mean {min(elsewhere, key=len)}?" if elsewhere else f"choose from {choices}"
        path += f"{close[0] if level else part}."
    return f"did you mean {path[:-1]}?"


def nearest_class(class_path: str) -> str:
    """The nearest class in its module, if that was imported, or else a module with a similar name; imports nothing."""
    module, rest = class_path.rpartition(".")[0], class_path.partition(".")[2]
    if module in sys.modules:
        names = vars(sys.modules[module]).items()
        classes = getattr(sys.modules[module], "__all__", None) or [name for name, it in names if isinstance(it, type)]
        return did_you_mean(class_path, [f"{module}.{name}" for name in classes])
    return did_you_mean(class_path, [f"{found.name}.{rest}" for found in pkgutil.iter_modules()])


def did_you_mean(name: str, known: Collection[str]) -> str:
    """A question to append to a message; empty if nothing is near."""
    close = difflib.get_close_matches(name, known, n=1)
    return f", did you mean {close[0]}?" if close and close[0] != name else ""
