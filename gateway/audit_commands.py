"""``gitlab-gateway audit``: whether the record is whole."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from typing import Any

from .app.assembly import Keyring
from .config import Config
from .core.audit_chain import chain_key, verify

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
    parser.add_argument("file", metavar="FILE")
    parser.add_argument(
        "--open", action="store_true", help="the gateway still runs, or was killed: no closing line is no flaw"
    )
    parser.add_argument(
        "--head", action="append", default=[], metavar="NAME:SEQ:MAC", help="a line the operator's log names"
    )
    return parser


def _verify(arguments: argparse.Namespace, config: Config) -> int:
    key = chain_key(Keyring(config).audit)
    flaws = 0
    for flaw in verify(_lines(arguments.file), key, still_open=arguments.open, heads=arguments.head):
        print(flaw)
        flaws += 1
    print(f"{arguments.file}: " + ("whole" if not flaws else f"{flaws} flaw{'s' if flaws != 1 else ''}"), file=sys.stderr)
    return FAILED if flaws else OK


def _lines(path: str) -> Iterator[bytes]:
    with open(path, "rb") as file:
        for line in file:
            yield line.removesuffix(b"\n")
