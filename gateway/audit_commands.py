"""``gitlab-gateway audit verify``: whether the record is whole. ``replay``: what other rules would have decided."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from typing import Any

import msgspec

from .config import Config
from .config.vocabulary import CacheMode
from .core.audit_chain import Flaw, chain_key, verify

OK, FAILED = 0, 1

Command = Callable[[argparse.Namespace], int]
LoadConfig = Callable[[argparse.Namespace, bool], Config]
Add = Callable[[Any, str, Command, str], argparse.ArgumentParser]


def add(commands: Any, add_command: Add, load_config: LoadConfig) -> list[argparse.ArgumentParser]:
    """Add the commands to those of ``gateway.cli``; ``load_config`` reads the configuration that their options name.

    Its second argument says that the configuration's secrets are needed, but nothing that is about GitLab.
    """
    audit = commands.add_parser("audit", help="check the audit", allow_abbrev=False)
    below = audit.add_subparsers(metavar="COMMAND", required=True)
    verifying = add_command(
        below,
        "verify",
        lambda arguments: _verify(arguments, load_config(arguments, True)),
        "find lines of a chained audit that were removed, changed or moved",
    )
    verifying.add_argument(
        "file", metavar="FILE", nargs="+", help="oldest first: a chain continues from one file to the next"
    )
    verifying.add_argument(
        "--open", action="store_true", help="the gateway still runs or was killed: a chain may lack its closing line"
    )
    verifying.add_argument(
        "--partial", action="store_true", help="older files are gone: what was before the first line may be missing"
    )
    verifying.add_argument(
        "--head",
        action="append",
        default=[],
        metavar="NAME:SEQ:MAC",
        help="a line that the operator's log names: it must be there",
    )
    replaying = add_command(
        commands,
        "replay",
        lambda arguments: _replay(arguments, load_config(arguments, False)),
        "list the requests of an audit that a configuration would decide differently; exit code 1 if any",
    )
    replaying.add_argument("file", metavar="AUDIT", nargs="+")
    replaying.add_argument("--json", action="store_true", help="one JSON object per line, for programs")
    return [verifying, replaying]


def _verify(arguments: argparse.Namespace, config: Config) -> int:
    from .app.keyring import Keyring

    key = chain_key(Keyring(config, make=False).audit)
    flaws = 0
    files = _AuditFiles(arguments.file)
    for flaw in verify(iter(files), key, still_open=arguments.open, partial=arguments.partial, heads=arguments.head):
        print(files.describe(flaw))
        flaws += 1
    print(
        f"{' '.join(arguments.file)}: " + ("whole" if not flaws else f"{flaws} flaw{'s' if flaws != 1 else ''}"),
        file=sys.stderr,
    )
    return FAILED if flaws else OK


# What a configuration would have made of it

_LONGEST_LINE = 1 << 20


def _replay(arguments: argparse.Namespace, config: Config) -> int:
    if config.cache.mode is CacheMode.SHARED:
        print("`cache.mode: shared` has no rules: everything is forwarded", file=sys.stderr)
        return OK
    from .app import Replay

    replay = Replay(config)
    for found in replay.run(_bounded(arguments.file)):
        if arguments.json:
            sys.stdout.buffer.write(msgspec.json.encode(found) + b"\n")
        else:
            kind = found.kind
            where = f" {kind.project}" if kind.project else ""
            print(
                f"{kind.identity} {kind.operation or kind.method}{where}: {kind.was} → {kind.now} "
                f"({found.times} time{'s' if found.times != 1 else ''}, first {found.request_id} at {found.at})"
            )
    summary = [f"{replay.different} decided differently, {replay.same} the same"]
    if replay.bodies_searched:
        summary.append(f"{replay.bodies_searched} of these would have their bodies searched for other projects")
    summary += [f"{count} cannot be judged: {reason.value}" for reason, count in sorted(replay.unclear.items())]
    if replay.unjudged:
        summary.append(f"{replay.unjudged} lines that rules had no say in")
    if replay.unreadable:
        summary.append(f"{replay.unreadable} that are not audit lines")
    print("\n".join(summary), file=sys.stderr)
    nothing = replay.unreadable and not (replay.different or replay.same or replay.unclear or replay.unjudged)
    return FAILED if replay.different or nothing else OK


def _bounded(paths: list[str]) -> Iterator[bytes]:
    for path in paths:
        with open(path, "rb") as file:
            while line := file.readline(_LONGEST_LINE):
                yield line  # a longer one comes in pieces, none of which is a line of an audit


# Several files


class _AuditFiles:
    """The lines of several files, one after the other; knows where each file began."""

    def __init__(self, paths: list[str]) -> None:
        self._paths = paths
        self._begins: list[int] = []
        for path in paths:  # a missing file is noticed before anything is printed
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

    def describe(self, flaw: Flaw) -> str:
        """``flaw`` in words, with its file and the line's number in that file."""
        if not flaw.line or len(self._paths) == 1:
            return str(flaw)
        at = max(index for index, begin in enumerate(self._begins) if begin < flaw.line)
        return f"{self._paths[at]}: {Flaw(flaw.line - self._begins[at], flaw.what)}"
