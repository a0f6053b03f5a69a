"""Problems of a configuration: what is wrong, where, and what would have been right."""

from __future__ import annotations

import enum

import msgspec

Path = tuple[str | int, ...]


class Severity(enum.StrEnum):
    """An error keeps the gateway from starting; a warning does not."""

    ERROR = "error"
    WARNING = "warning"


class Problem(msgspec.Struct, frozen=True):
    """One finding. It never holds a secret: a value is quoted only where it can't be one."""

    path: str
    """``rules[2].for[0]``; empty for the file as a whole."""
    message: str
    file: str = ""
    line: int = 0
    """From 1; 0 if the problem belongs to no line."""
    severity: Severity = Severity.ERROR

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}: " if self.line else f"{self.file}: " if self.file else ""
        mark = "" if self.severity is Severity.ERROR else "warning: "
        subject = f"{self.path}: " if self.path else ""
        return f"{place}{mark}{subject}{self.message}"


Finding = tuple[Path, str, Severity]
"""What a check finds: where, what is wrong, and how bad that is."""


def error(path: Path, message: str) -> Finding:
    """A finding that keeps the gateway from starting."""
    return path, message, Severity.ERROR


def warning(path: Path, message: str) -> Finding:
    """A finding that does not."""
    return path, message, Severity.WARNING


def show_path(path: Path) -> str:
    """``("rules", 2, "for", 0)`` as ``rules[2].for[0]``."""
    shown = ""
    for part in path:
        if isinstance(part, int):
            shown += f"[{part}]"
        else:
            shown += f".{part}" if shown else part
    return shown
