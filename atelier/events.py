"""How the page answers: at once, or one long task after the other; and what a visitor's session holds."""

from typing import Any, TypeVar

from system.errors import PigmentError

# only the newest of quick events counts; without Gradio's queue, errors would not be shown
AT_ONCE: dict[str, Any] = {"show_progress": "hidden", "concurrency_id": "at once", "trigger_mode": "always_last"}
# for events that bring data of their own: one that was held back would come again with the data of an earlier one
EACH: dict[str, Any] = {**AT_ONCE, "trigger_mode": "multiple"}
LONG: dict[str, Any] = {"show_progress": "minimal", "concurrency_id": "long"}  # one at a time, or memory could run out

Thing = TypeVar("Thing")


def there(thing: Thing | None) -> Thing:
    """Return what a visitor's session holds.

    Raises:
        PigmentError: if it was forgotten: after an hour, after a restart of the server, or among too many visitors.
    """
    if thing is None:
        raise PigmentError("the page has forgotten what you had here; choose it once more")
    return thing
