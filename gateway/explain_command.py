"""``gitlab-gateway explain --request``: what was done with one of the last requests, and what would be done now."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from .admin_client import ask, refusal
from .core.redaction import escape_unprintable

OK, REFUSED = 0, 2
_NEEDS = "an admin key in the configuration, and another `cache.mode` than `shared`"


class InsteadOf(argparse.Action):
    """An option in whose place others are required.

    Positional arguments with ``nargs="?"`` would do for some, but no option could stand between two of those any more.
    """

    def __init__(self, *, others: Sequence[argparse.Action], **how: Any) -> None:
        super().__init__(**how)
        self._others = others

    def __call__(
        self, _: argparse.ArgumentParser, namespace: argparse.Namespace, values: object, option: str | None = None
    ) -> None:
        setattr(namespace, self.dest, values)
        for other in self._others:
            other.required = False


def explain_past(admin: str, request_id: str) -> int:
    """Print what the gateway whose admin port is at ``admin`` knows of one of its last requests."""
    status, answer = ask(admin, "POST", "/-/explain", {"request_id": request_id})
    if status != 200:
        print(f"refused: {refusal(status, answer, needs=_NEEDS)}", file=sys.stderr)
        return REFUSED
    for line in _lines(answer):
        print(escape_unprintable(line))  # a target is whatever its caller sent, and this is somebody's terminal
    return OK


def _lines(answer: dict[str, Any]) -> Iterator[str]:
    yield "What was done, in the words of the audit:"
    for name, fact in answer["request"].items():
        yield f"{name:<19}  {fact}"
    yield ""
    if "stages" not in answer:
        yield "What would be done now can't be said: its caller or its target was never known."
        return
    yield "What each stage would do now:"
    for one in answer["stages"]:
        yield f"{one['stage']:<10}  {one['said']}"
