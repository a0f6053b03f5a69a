"""``gitlab-gateway limits``: what the admin port says and does about limits. The admin key comes from the environment."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from .admin_client import KEY, KeyUnusable, ask, place_to_ask, read_admin_key, refusal
from .config import Config
from .config.units import parse_duration

if TYPE_CHECKING:
    from . import app  # costs a third of a second: imported where a command needs it

OK, FAILED, REFUSED = 0, 1, 2
_LIVE = {"levels", "bucket", "pace"}
_NEEDS = "an admin key and limits in the configuration"

Command = Callable[[argparse.Namespace], int]
Add = Callable[[Any, str, Command, str], argparse.ArgumentParser]


def add(commands: Any, add_command: Add) -> None:
    """Add the commands to those of ``gateway.cli``; ``add_command`` gives each the address to ask at, as ``admin``."""
    limits = commands.add_parser(
        "limits", help="list the hottest callers; change one bucket for a limited time", allow_abbrev=False
    )
    below = limits.add_subparsers(metavar="COMMAND", required=True)
    top = add_command(below, "top", _top, "list the hottest callers of the last minute, with the state of their buckets")
    top.add_argument("--count", metavar="N", type=int, default=20, help="how many; default: 20")
    top.add_argument("--json", action="store_true")
    change = add_command(below, "set", _set, "raise, lower or pause one bucket for a limited time")
    how = change.add_mutually_exclusive_group(required=True)
    how.add_argument(
        "--factor", metavar="X", type=float, help="multiply the configured rate and burst: 2 doubles them, 0.5 halves them"
    )
    how.add_argument("--pause", action="store_true", help="suspend the limit: nothing is refused by it")
    change.add_argument(
        "--for", dest="lasting", metavar="1h", type=_seconds, default=3600.0, help="how long, a week at most; default: 1h"
    )
    reset = add_command(below, "reset", _reset, "fill one bucket, and undo what was set")
    for parser in (change, reset):
        parser.add_argument("limit", metavar="LIMIT")
        parser.add_argument("subject", metavar="SUBJECT", help="as `top` names it: a caller, a team, a project or `all`")


def level_lookup(config: Config, identity: str, method: str, target: str, caller: str) -> app.LevelLookup:
    """Where to look up the levels of a request's buckets: in Redis, or at the admin port of the running gateway."""
    from . import app

    def of_redis(found: app.Explained) -> Iterable[tuple[str, str]]:
        return app.describe(found, asyncio.run(app.shared_levels(config, found)))

    def of_gateway(found: app.Explained) -> Iterable[tuple[str, str]]:
        body: dict[str, object] = {"identity": identity, "method": method, "target": target, "caller": caller}
        stages = _live(config, body)
        return app.describe(found, app.Levels(unknown=stages)) if isinstance(stages, str) else stages

    return of_redis if config.stores.shared.shared else of_gateway


def _live(config: Config, body: dict[str, object]) -> list[tuple[str, str]] | str:
    """What the running gateway says about the buckets, or why it says nothing."""
    try:
        key = read_admin_key()
    except KeyUnusable as unusable:
        return f"they are in the running gateway's memory, and {unusable}"
    if not key:
        return f"they are in the running gateway's memory: to see them, put an admin key into {KEY}"
    place = place_to_ask(config.listen.admin)
    try:
        status, answer = ask(place, "POST", "/-/explain", body)
    except OSError:
        return f"they are in the running gateway's memory, and no gateway answers at its admin port {place}"
    if status != 200:
        return f"the admin port {place} refuses: {refusal(status, answer, needs=_NEEDS)}"
    return [(one["stage"], one["said"]) for one in answer["stages"] if one["stage"] in _LIVE]


def _top(arguments: argparse.Namespace) -> int:
    status, answer = ask(arguments.admin, "GET", f"/-/limits/top?count={arguments.count}")
    if status != 200:
        return _refused(status, answer)
    if arguments.json:
        print(json.dumps(answer, indent=2))
        return OK
    for caller in answer["callers"]:
        buckets = ", ".join(f"{one['limit']} {one['remaining']:g}/{one['burst']:g}" for one in caller["buckets"])
        print(f"{caller['caller']:<32} asked {caller['asked']:<8} refused {caller['refused']:<8} {buckets}".rstrip())
    if not answer["callers"]:
        print("nobody has asked lately", file=sys.stderr)
    for changed in answer["changed"]:
        effect = "paused" if changed["pause"] else f"set to {changed['factor']:g} times"
        print(f"{changed['limit']} of {changed['subject']}: {effect} for a limited time")
    return OK


def _set(arguments: argparse.Namespace) -> int:
    how: dict[str, object] = {"pause": True} if arguments.pause else {"factor": arguments.factor}
    return _change(arguments, {**how, "seconds": arguments.lasting})


def _reset(arguments: argparse.Namespace) -> int:
    return _change(arguments, {"reset": True})


def _change(arguments: argparse.Namespace, how: dict[str, object]) -> int:
    body = {"limit": arguments.limit, "subject": arguments.subject, **how}
    status, answer = ask(arguments.admin, "POST", "/-/limits", body)
    if status != 200:
        return _refused(status, answer)
    print(json.dumps(answer))
    return OK


def _refused(status: int, answer: Any) -> int:
    print(f"refused: {refusal(status, answer, needs=_NEEDS)}", file=sys.stderr)
    return REFUSED


def _seconds(text: str) -> float:
    try:
        return parse_duration(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} {error}") from None
