"""``gitlab-gateway credentials``: list the upstream credentials of a running gateway, or replace one of them now."""

from __future__ import annotations

import argparse
import datetime
import json
import sys
from collections.abc import Callable
from typing import Any

from .admin_client import ask, refusal

OK, FAILED, REFUSED = 0, 1, 2
_PATIENCE_S = 120.0
"""For a rotation, which asks GitLab several things."""

Command = Callable[[argparse.Namespace], int]
Add = Callable[[Any, str, Command, str], argparse.ArgumentParser]


def add(commands: Any, add_command: Add) -> None:
    """Add the commands to those of ``gateway.cli``; ``add_command`` gives each the address to ask at, as ``admin``."""
    text = "list and rotate the upstream credentials of a running gateway"
    below = commands.add_parser("credentials", help=text, allow_abbrev=False).add_subparsers(
        metavar="COMMAND", required=True
    )
    text = "list every credential with its expiry and the state of its rotation; never a token"
    listing = add_command(below, "list", _list, text)
    listing.add_argument("--json", action="store_true")
    rotate = add_command(below, "rotate", _rotate, "replace a token now, however long it is still valid")
    rotate.add_argument("credential", metavar="ID", help="as `list` shows it; a member of a pool is POOL/1, POOL/2 …")


def _list(arguments: argparse.Namespace) -> int:
    status, answer = ask(arguments.admin, "GET", "/-/credentials")
    if status != 200:
        return _refused(status, answer)
    if arguments.json:
        print(json.dumps(answer, indent=2))
        return OK
    for one in answer["credentials"]:
        print(_row(one))
    remaining = answer["under_decryption_keys"]
    if remaining != 0:
        print(f"records encrypted under one of `secrets.decryption_keys`: {'unknown' if remaining is None else remaining}")
    return OK


def _rotate(arguments: argparse.Namespace) -> int:
    body: dict[str, object] = {"credential": arguments.credential}
    status, answer = ask(arguments.admin, "POST", "/-/credentials/rotate", body, timeout_s=_PATIENCE_S)
    if status != 200:
        return _refused(status, answer)
    print(_row(answer))
    return FAILED if answer["step"] == "lost" else OK


def _row(one: dict[str, Any]) -> str:
    state = "accepted" if one["accepted"] else "refused"
    end = "never or unknown"
    if one["expires_at"] is not None:
        end = datetime.datetime.fromtimestamp(one["expires_at"], datetime.UTC).date().isoformat()
    source = f"version {one['version']}" if one["version"] else "configured"
    words = [f"{one['id']:<32} {state:<8} ends {end:<16} {source:<12} rotates: {one['rotates'] or 'no'}"]
    if one["step"]:
        words.append(f"step: {one['step']}")
    if one["failure"]:
        words.append(f"failed: {one['failure']}")
    return "  ".join(words)


def _refused(status: int, answer: Any) -> int:
    print(f"refused: {refusal(status, answer)}", file=sys.stderr)
    return REFUSED
