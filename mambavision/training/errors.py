"""What a training that cannot be done raises."""

from __future__ import annotations

from pathlib import Path

from mambavision.words import reason


class TrainingError(ValueError):
    """A setting, a loader or a checkpoint that cannot be used; the message names it and what is allowed."""


class OtherTraining(TrainingError):
    """A checkpoint of other settings.

    Attributes:
        field: the setting that differs, e.g. ``"scheduler.t_initial"``.
    """

    def __init__(self, path: Path, field: str, there: object, here: object) -> None:
        self.field = field
        why = ": the scheduler differs, and it belongs to its number of epochs" if field.startswith("scheduler") else ""
        super().__init__(
            f"{path}: is of another training ({field}: {shown(there)} there, {shown(here)} here{why}); repeat its "
            "settings, choose another output, or begin anew (resume=False, --no-resume)"
        )


class TrainingDiverged(RuntimeError):
    """The loss is no longer a number."""


def shown(value: object) -> str:
    """A value as a message shows it: one line, 80 characters at most."""
    text = repr(value)
    text = " ".join(text.split()) if "\n" in text else text
    return text if len(text) <= 80 else f"{text[:77]}…"


def damaged(path: Path, error: object) -> str:
    """What is said of a checkpoint that is damaged, and how to go on without it."""
    return f"{path}: is damaged ({reason(error)}); remove it or begin anew (resume=False, --no-resume)"
