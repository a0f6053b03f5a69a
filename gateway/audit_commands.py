"""``gitlab-gateway audit``: whether the record is whole."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from typing import Any

from .app.assembly import Keyring
from .config import Config
from .core.audit_chain import Flaw, chain_key, verify

OK, FAILED = 0, 1

Command = Callable[[argparse.Namespace], int]
Add = Callable[[Any, str, Command, str], argparse.ArgumentParser]


def add(commands: Any, add_command: Add, configured: Callable[[argparse.Namespace], Config]) -> argparse.ArgumentParser:
    """The command, among those of ``gateway.cli``; ``configured`` reads the configuration its options name."""
    audit = commands.add_parser("audit", help="check the record", allow_abbrev=False)
    below = audit.add_subparsers(metavar="COMMAND", required=True)

    def run(arguments: argparse.Namespace) -> int:
        return _verify(arguments, configured(arguments))

    parser = add_command(below, "verify", run, "find lines of a chained audit that were removed, changed or moved")
    parser.add_argument("file", metavar="FILE", nargs="+", help="oldest first: a chain goes on from one to the next")
    parser.add_argument(
        "--open", action="store_true", help="the gateway still runs, or was killed: no closing line is no flaw"
    )
    parser.add_argument(
        "--partial", action="store_true", help="older files are gone: a chain that begins in the middle is no flaw"
    )
    parser.add_argument(
        "--head", action="append", default=[], metavar="NAME:SEQ:MAC", help="a line the operator's log names"
    )
    return parser


def _verify(arguments: argparse.Namespace, config: Config) -> int:
    key = chain_key(Keyring(config).audit)
    flaws = 0
    record = _Record(arguments.file)
    for flaw in verify(iter(record), key, still_open=arguments.open, partial=arguments.partial, heads=arguments.head):
        print(record.told(flaw))
        flaws += 1
    print(
        f"{' '.join(arguments.file)}: " + ("whole" if not flaws else f"{flaws} flaw{'s' if flaws != 1 else ''}"),
        file=sys.stderr,
    )
    return FAILED if flaws else OK


class _Record:
    """The lines of several files, one after the other; it knows where each began."""

    def __init__(self, paths: list[str]) -> None:
        self._paths = paths
        self._begins: list[int] = []
        for path in paths:  # a file that is not there is found before anything is said
            with open(path, "rb"):
                pass

    def __iter__(self) -> Iterator[bytes]:
        count = 0
        for path in self._paths:
            self._begins.append(count)
            with open(path, "rb") as file:
                for line in file:
                    count += 1
                    yield line.removesuffix(b"\n")

    def told(self, flaw: Flaw) -> str:
        """With the file's own number of the line."""
        if not flaw.line or len(self._paths) == 1:
            return str(flaw)
        at = max(index for index, begin in enumerate(self._begins) if begin < flaw.line)
        return f"{self._paths[at]}: {Flaw(flaw.line - self._begins[at], flaw.what)}"
