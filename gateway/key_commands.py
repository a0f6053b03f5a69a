"""``gitlab-gateway keys``: issue, import, list, rotate and revoke gateway keys, directly in the store."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from collections.abc import Callable
from typing import Any

from .config import Config
from .config.units import parse_duration, parse_identifier, parse_network
from .core.admin_permission import Permission
from .core.key_record import KeyRecord, format_instant
from .core.secret import Secret
from .identity.key_issuer import KeyTerms
from .ports import KeyRefused, StoreUnavailable
from .state_dir import StateRefused

OK = 0
_OVERLAP_S = 86_400.0

Command = Callable[[argparse.Namespace], int]
LoadConfig = Callable[[argparse.Namespace], Config]
Add = Callable[[Any, str, Command, str], argparse.ArgumentParser]


def add(commands: Any, add_command: Add, load_config: LoadConfig) -> list[argparse.ArgumentParser]:
    """Add the commands to those of ``gateway.cli``. Returns those that need a configuration; ``load_config`` reads it."""
    keys = commands.add_parser("keys", help="issue, import, list, rotate and revoke gateway keys", allow_abbrev=False)
    below = keys.add_subparsers(metavar="COMMAND", required=True)

    def command(name: str, run: Callable[[argparse.Namespace, Config], int], text: str) -> argparse.ArgumentParser:
        return add_command(below, name, lambda arguments: run(arguments, load_config(arguments)), text)

    new = command("new", _new, "issue a key; it is the last line of standard output")
    new.add_argument("identity", metavar="IDENTITY")
    importing = command("import", _import, "admit a gateway key that was made elsewhere, by its SHA-256")
    importing.add_argument("identity", metavar="IDENTITY")
    importing.add_argument("sha256", metavar="SHA256", help="SHA-256 of the key's characters alone, in hex")
    for parser in (new, importing):
        parser.add_argument(
            "--not-before",
            metavar="2h",
            type=_positive_duration,
            help="how long until it becomes valid; default: valid at once",
        )
        parser.add_argument(
            "--cidr", metavar="NETWORK", action="append", default=[], type=_network, help="accept it from this network only"
        )
        parser.add_argument("--note", metavar="TEXT", default="")
    rotate = command("rotate", _rotate, "issue a key in place of another, which ends after the overlap")
    rotate.add_argument("identity", metavar="IDENTITY")
    rotate.add_argument("--key", metavar="KEY_ID", help="the key to replace; default: the only live one")
    rotate.add_argument(
        "--overlap",
        metavar="1d",
        type=_duration,
        default=_OVERLAP_S,
        help="how long both are valid; 0s: not at all; default: 1d",
    )
    for parser in (new, importing, rotate):
        words = (
            "how long it is valid; default: as long as the key it replaces"
            if parser is rotate
            else "how long it is valid; default: without end"
        )
        parser.add_argument("--expires", metavar="90d", type=_positive_duration, help=words)
    listing = command("list", _list, "list keys; the keys themselves are stored nowhere")
    listing.add_argument("identity", metavar="IDENTITY", nargs="?")
    listing.add_argument("--json", action="store_true")
    revoke = command("revoke", _revoke, "revoke a key at once")
    revoke.add_argument("key", metavar="KEY_ID", help="as `keys list` shows it")
    admin = add_command(below, "admin", _admin, "make a key for the admin port, and the configuration that admits it")
    admin.add_argument(
        "id", metavar="ID", nargs="?", default="ops", type=_identifier, help="its id in `admin.keys`; default: ops"
    )
    every = [permission.value for permission in Permission]
    words = f"what it may do: {', '.join(every)}; can be given several times; default: everything"
    admin.add_argument("--may", metavar="PERMISSION", action="append", default=[], choices=every, help=words)
    words = "an identity whose gateway keys it is for; can be given several times; default: all of them"
    admin.add_argument("--identity", metavar="IDENTITY", type=_identifier, action="append", default=[], help=words)
    return [new, importing, rotate, listing, revoke]


def _new(arguments: argparse.Namespace, config: Config) -> int:
    from . import app

    async def run() -> tuple[Secret, KeyRecord]:
        async with app.open_key_store(config) as keys:
            made = await keys.key_admin.issue(keys.actor, arguments.identity, _terms(arguments))
            _warn(keys.warning)
            return made

    _require_output()
    key, record = asyncio.run(run())
    words = f"A key for `{arguments.identity}`. It is shown this once; the gateway keeps only a hash of it."
    _show(key, record, config, words)
    return OK


def _import(arguments: argparse.Namespace, config: Config) -> int:
    from . import app

    async def run() -> str:
        async with app.open_key_store(config) as keys:
            record = await keys.key_admin.import_key(keys.actor, arguments.identity, arguments.sha256, _terms(arguments))
            _warn(keys.warning)
            return record.id

    _say(f"{asyncio.run(run())} is a key for `{arguments.identity}` from now on")
    return OK


def _rotate(arguments: argparse.Namespace, config: Config) -> int:
    from . import app

    async def run() -> tuple[Secret, KeyRecord, str]:
        async with app.open_key_store(config, app.KeyStoreUse.ROTATE) as keys:
            older = arguments.key or _only_live(await keys.key_admin.list(arguments.identity), arguments.identity)
            if (await keys.key_admin.get(older)).identity != arguments.identity:
                raise KeyRefused(f"{older} is not a key of `{arguments.identity}`")
            expires_at = None if arguments.expires is None else time.time() + arguments.expires
            key, record = await keys.key_admin.rotate(keys.actor, older, arguments.overlap, expires_at=expires_at)
            _warn(keys.warning)
            return key, record, older

    _require_output()
    key, record, older = asyncio.run(run())
    _show(
        key,
        record,
        config,
        f"A key for `{arguments.identity}` in place of {older}. It is shown this once.",
        f"{older} ends {format_instant(time.time() + arguments.overlap)} at the latest; to end it at once:",
        f"  gitlab-gateway keys revoke {older}" + (f" --config {arguments.config}" if arguments.config else ""),
        older=older,
    )
    return OK


def _require_output() -> None:
    if not sys.stdout.writable():
        raise KeyRefused("standard output is closed: nobody would see the key, so none is made")


def _show(key: Secret, record: KeyRecord, config: Config, *words: str, older: str = "") -> None:
    """Show the key, once. A key that could not be shown is revoked: it would stay valid, and nobody would have it."""
    try:
        for line in words:
            _say(line)
        print(key.reveal(), flush=True)
    except (OSError, KeyboardInterrupt) as error:
        why = (isinstance(error, OSError) and error.strerror) or "interrupted"
        rest = f"; {older} ends all the same: make another with gitlab-gateway keys new {record.identity}" if older else ""
        try:
            asyncio.run(_revoke_key(record.id, config))
        except (OSError, KeyRefused, StoreUnavailable, StateRefused):
            rest = f", nor revoked: gitlab-gateway keys revoke {record.id}{rest}"
        else:
            rest = f" and is revoked{rest}"
        raise OSError(f"the key {record.id} could not be shown ({why}){rest}") from None


def _only_live(records: list[KeyRecord], identity: str) -> str:
    live = [record.id for record in records if record.counted and record.is_live(time.time())]
    if len(live) == 1:
        return live[0]
    if live:
        raise KeyRefused(f"`{identity}` has several live keys: say which with --key ({', '.join(live)})")
    raise KeyRefused(f"`{identity}` has no live key to replace: gitlab-gateway keys new {identity}")


def _list(arguments: argparse.Namespace, config: Config) -> int:
    from . import app

    async def run() -> list[KeyRecord]:
        async with app.open_key_store(config, app.KeyStoreUse.READ) as keys:
            return await keys.key_admin.list(arguments.identity)

    rows = [_row(record) for record in asyncio.run(run())]
    if arguments.json:
        print(json.dumps(rows, indent=2))
        return OK
    for row in rows:
        line = f"{row['id']:<20} {row['identity']:<24} {row['state']:<8} {row['origin']:<9} created {row['created_at']}"
        instants = (("begins", "not_before"), ("expires", "expires_at"), ("last_used", "last_used_at"))
        more = [f"{word} {row[name]}" for word, name in instants if row[name]] + [f"from {one}" for one in row["cidr"]]
        print(line, *more, *([f"note {row['note']}"] if row["note"] else []))
    if not rows:
        _say("no keys")
    return OK


def _revoke(arguments: argparse.Namespace, config: Config) -> int:
    asyncio.run(_revoke_key(arguments.key, config))
    _say(f"{arguments.key} is revoked")
    return OK


async def _revoke_key(key_id: str, config: Config) -> None:
    from . import app

    async with app.open_key_store(config, app.KeyStoreUse.REVOKE) as keys:
        await keys.key_admin.revoke(keys.actor, key_id)


def _admin(arguments: argparse.Namespace) -> int:
    from .config.admin_key import new_admin_key

    _require_output()
    key, digest = new_admin_key()
    _say("Put this into the configuration; the key itself is shown this once:")
    more = f", may: [{', '.join(arguments.may)}]" if arguments.may else ""
    if arguments.identity:
        more += ", identities: [{}]".format(", ".join(f'"{one}"' for one in arguments.identity))
    _say(f'admin:\n  keys:\n    - {{id: "{arguments.id}", sha256: "{digest}"{more}}}')
    print(key)
    return OK


def _terms(arguments: argparse.Namespace) -> KeyTerms:
    now = time.time()
    begins_at = None if arguments.not_before is None else now + arguments.not_before
    expires_at = None if arguments.expires is None else now + arguments.expires
    return KeyTerms(begins_at, expires_at, tuple(arguments.cidr), arguments.note)


def _row(record: KeyRecord) -> dict[str, Any]:
    from .app.key_admin import state_of

    instants = ("created_at", "not_before", "expires_at", "revoked_at", "last_used_at")
    return {
        "id": record.id,
        "identity": record.identity,
        "state": state_of(record, time.time()),
        "origin": record.origin.value,
        **{name: format_instant(at) if (at := getattr(record, name)) is not None else None for name in instants},
        "cidr": list(record.cidr),
        "note": record.note,
        "replaced_by": record.replaced_by or None,
    }


def _say(text: str) -> None:
    print(text, file=sys.stderr)


def _warn(warning: str) -> None:
    if warning:
        _say(f"warning: {warning}")


# Arguments


def _duration(text: str) -> float:
    try:
        return parse_duration(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} {error}") from None


def _positive_duration(text: str) -> float:
    seconds = _duration(text)
    if seconds <= 0:
        raise argparse.ArgumentTypeError("must be more than 0 seconds")
    return seconds


def _identifier(text: str) -> str:
    try:
        return parse_identifier(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} {error}") from None


def _network(text: str) -> str:
    try:
        return str(parse_network(text))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} {error}") from None
