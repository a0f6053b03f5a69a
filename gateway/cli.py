"""The commands. Reads arguments, loads the configuration, calls, prints; decides nothing.

Exit codes: 0 well; 1 something failed while running; 2 wrong usage or a configuration that is refused. What a person
should read goes to standard error, what a program should read to standard output.
"""

from __future__ import annotations

import argparse
import asyncio
import datetime
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from . import __version__, audit_commands, limit_commands
from .config import EMBEDDED, Config, json_schema, load, redacted
from .config import problems as reports
from .config.known import unknown_routes
from .config.units import parse_duration, parse_host_port
from .core.catalogue import Catalogue, Surface
from .ports import KeyRecord, KeyRefused, StoreUnavailable
from .state_dir import StateRefused

OK, FAILED, REFUSED = 0, 1, 2

_VERSION = f"gitlab-gateway {__version__} (Python {'.'.join(map(str, sys.version_info[:3]))})"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; the return value is the exit code."""
    try:
        arguments = _parser().parse_args(argv)
        command: Callable[[argparse.Namespace], int] = arguments.command
        code = command(arguments)
        sys.stdout.flush()
    except SystemExit as exit_:  # argparse's way to say usage (2) or help (0)
        return exit_.code if isinstance(exit_.code, int) else REFUSED
    except (_Refused, KeyRefused) as refused:
        _say(str(refused))
        return REFUSED
    except KeyboardInterrupt:
        return FAILED
    except BrokenPipeError:
        # `gitlab-gateway routes | head` is no failure; the interpreter must not try to flush again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OK
    except (OSError, StoreUnavailable, StateRefused) as error:
        _say(f"failed: {_plain(error)}")
        return FAILED
    return code


class _Refused(Exception):  # noqa: N818 — a decision, not a fault
    """Wrong usage or configuration; what it says was written for the operator."""


# The commands


def _serve(arguments: argparse.Namespace) -> int:
    config = _configured(arguments)
    from . import app

    return app.run(config)


def _check(arguments: argparse.Namespace) -> int:
    config = _configured(arguments)
    from .config import compile as compiled
    from .core.access import Rules

    catalogue = _catalogue()
    for problem in unknown_routes(config, catalogue):
        _say(str(problem))
    for finding in Rules.compile(compiled.rules(config)).findings(catalogue):
        _say(f"warning: {finding}")
    if arguments.show:
        _print_document(redacted(config), arguments.show)
    else:
        _say(f"{arguments.config or 'the embedded default'} is in order")
    return OK


def _explain(arguments: argparse.Namespace) -> int:
    config = _configured(arguments)
    known = [identity.id for identity in config.identities]
    if arguments.identity not in (*known, "passthrough"):
        raise _Refused(f"--as {arguments.identity}: no such identity; there are {', '.join(known) or 'none'}")
    from . import app

    print(app.explain(config, arguments.identity, arguments.method, arguments.target))
    return OK


def _keys_new(arguments: argparse.Namespace) -> int:
    config = _configured(arguments, _NOT_FOR_KEYS)
    key = asyncio.run(_issue(config, _issuable(config, arguments.identity), arguments.expires))
    _say(f"A key for `{arguments.identity}`. It is shown this once; the gateway keeps only a hash of it.")
    print(key)
    return OK


def _keys_rotate(arguments: argparse.Namespace) -> int:
    config = _configured(arguments, _NOT_FOR_KEYS)
    identity = _issuable(config, arguments.identity)
    older = [record for record in asyncio.run(_list(config, identity)) if record.revoked_at is None]
    key = asyncio.run(_issue(config, identity, arguments.expires))
    _say(f"A further key for `{identity}`. It is shown this once; the older ones go on working until revoked:")
    for record in older:
        _say(f"  gitlab-gateway keys revoke {record.id}" + (f" --config {arguments.config}" if arguments.config else ""))
    print(key)
    return OK


def _keys_list(arguments: argparse.Namespace) -> int:
    records = asyncio.run(_list(_configured(arguments, _NOT_FOR_KEYS), arguments.identity))
    if arguments.json:
        print(json.dumps([_record(record) for record in records], indent=2))
        return OK
    for record in records:
        row = _record(record)
        print(f"{row['id']:<20} {row['identity']:<24} {row['state']:<8} created {row['created_at']}", end="")
        print(f" expires {row['expires_at']}" if row["expires_at"] else "")
    if not records:
        _say("no keys")
    return OK


def _keys_revoke(arguments: argparse.Namespace) -> int:
    config = _configured(arguments, _NOT_FOR_KEYS)
    if not asyncio.run(_revoke(config, arguments.key)):
        raise _Refused(f"no live key has the id {arguments.key}: see `gitlab-gateway keys list`")
    _say(f"{arguments.key} is revoked")
    return OK


def _keys_admin(arguments: argparse.Namespace) -> int:
    from .config.admin_key import new_admin_key

    key, digest = new_admin_key()
    _say("Put this into the configuration; the key itself is shown this once:")
    _say(f"admin:\n  keys:\n    - {{id: {arguments.id}, sha256: {digest}}}")
    print(key)
    return OK


def _routes(arguments: argparse.Namespace) -> int:
    for operation in _catalogue().operations():
        if arguments.surface and operation.surface.value != arguments.surface:
            continue
        permissions = ",".join(operation.permissions) or "-"
        line = f"{operation.name:<90} {operation.access.value:<5} {operation.surface.value:<10} {permissions}"
        if arguments.grep and arguments.grep.lower() not in line.lower():
            continue
        print(line)
    return OK


def _schema(_: argparse.Namespace) -> int:
    _print_document(json_schema(), "json")
    return OK


def _demo(arguments: argparse.Namespace) -> int:
    from . import app

    return app.demo(arguments.listen, arguments.admin)


def _version(_: argparse.Namespace) -> int:
    print(_VERSION)
    return OK


def _catalogue() -> Catalogue:
    from .routes import read

    return Catalogue.decode(read())


# Keys


def _issuable(config: Config, identity: str) -> str:
    issued = [one.id for one in config.identities if one.key is not None]
    if identity not in issued:
        there_are = f"there are {', '.join(issued)}" if issued else "the configuration has none"
        raise _Refused(f"`{identity}` is no identity with `key: issued`; {there_are}")
    return identity


async def _issue(config: Config, identity: str, expires_s: float | None) -> str:
    from . import app

    async with app.open_key_store(config) as keys:
        return await keys.issue(identity, None if expires_s is None else time.time() + expires_s)


async def _list(config: Config, identity: str | None) -> list[KeyRecord]:
    from . import app

    async with app.open_key_store(config) as keys:
        return [record for record in await keys.list() if identity is None or record.identity == identity]


async def _revoke(config: Config, key_id: str) -> bool:
    from . import app

    async with app.open_key_store(config) as keys:
        return await keys.revoke(key_id)


def _record(record: KeyRecord) -> dict[str, str | None]:
    expired = record.expires_at is not None and record.expires_at <= time.time()
    return {
        "id": record.id,
        "identity": record.identity,
        "state": "revoked" if record.revoked_at is not None else "expired" if expired else "live",
        "created_at": _instant(record.created_at),
        "expires_at": _instant(record.expires_at) if record.expires_at is not None else None,
    }


def _instant(at: float) -> str:
    return datetime.datetime.fromtimestamp(at, datetime.UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


# Configuration


_NOT_FOR_KEYS = frozenset({"credentials", "rules", "limits", "cache", "audit", "admin"})
"""Whoever issues keys need not hold GitLab's tokens."""


def _configured(arguments: argparse.Namespace, without: frozenset[str] = frozenset()) -> Config:
    """The configuration of the command's options; its warnings are printed, its errors end the command."""
    overrides: dict[reports.Path, str] = {}
    for option, path in (
        ("upstream", ("upstream", "url")),
        ("listen", ("listen", "address")),
        ("admin", ("listen", "admin")),
    ):
        value = getattr(arguments, option, None)
        if value is not None:
            overrides[path] = value
    if arguments.config is None and "upstream" in arguments and arguments.upstream is None:
        raise _Refused("where is GitLab? Give --upstream https://gitlab.example.com or --config FILE")
    if arguments.config is None and "upstream" not in arguments:
        raise _Refused("which configuration? Give --config FILE")
    text, file = (EMBEDDED, "") if arguments.config is None else (_read_config(arguments.config), arguments.config)
    loaded = load(text, os.environ, _reader(file), file=file, overrides=overrides, without=without)
    for problem in loaded.errors if without else loaded.problems:
        _say(str(problem))
    if loaded.config is None:
        count = len(loaded.errors)
        raise _Refused(f"refused: {count} error{'s' if count != 1 else ''} in {file or 'the options'}")
    return loaded.config


def _read_config(path: str) -> str:
    try:
        return sys.stdin.read() if path == "-" else Path(path).read_text("utf-8-sig")
    except UnicodeDecodeError:
        raise _Refused(f"--config {path}: is not UTF-8 text") from None
    except (OSError, ValueError) as error:
        raise _Refused(f"--config {path}: {_plain(error)}") from None


def _reader(config: str) -> Callable[[str], str]:
    # A relative ${file:…} stands beside the file that names it, wherever the process was started.
    beside = Path(config).parent
    return lambda path: (beside / path).read_text("utf-8")


# Printing


def _say(text: str) -> None:
    print(text, file=sys.stderr)


def _plain(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    return str(error) or type(error).__name__


def _print_document(document: dict[str, object], form: str) -> None:
    if form == "json":
        print(json.dumps(document, indent=2, ensure_ascii=False))
        return
    import yaml

    print(yaml.safe_dump(document, sort_keys=False, allow_unicode=True), end="")


# Arguments


def _address(text: str) -> str:
    try:
        parse_host_port(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} {error}") from None
    return text


def _lifetime(text: str) -> float:
    try:
        seconds = parse_duration(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} {error}") from None
    if seconds <= 0:
        raise argparse.ArgumentTypeError("a key that has expired already is of no use")
    return seconds


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="gitlab-gateway",
        description="A reverse-proxy API gateway and token broker in front of self-managed GitLab.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=_VERSION, help=argparse.SUPPRESS)
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    serve = _command(commands, "serve", _serve, "run the gateway")
    _config_options(serve)
    serve.add_argument("--listen", metavar="HOST:PORT", type=_address, help="the data port, over the file's")
    serve.add_argument("--admin", metavar="HOST:PORT", type=_address, help="the admin port, over the file's")

    check = _command(commands, "check", _check, "report everything that is wrong with a configuration")
    _config_options(check)
    check.add_argument("--show", choices=["yaml", "json"], help="print what would be in force, without secrets")

    explain = _command(commands, "explain", _explain, "what each stage would decide about a request; nothing is sent")
    _config_options(explain)
    explain.add_argument("--as", dest="identity", metavar="ID", required=True, help="the identity that would call")
    explain.add_argument("method", metavar="METHOD")
    explain.add_argument("target", metavar="TARGET", help="as on the wire: /api/v4/projects/group%%2Fproject")

    _key_commands(commands)
    limit_commands.add(commands, _command)
    _config_option(audit_commands.add(commands, _command, lambda arguments: _configured(arguments, _NOT_FOR_KEYS)))

    routes = _command(commands, "routes", _routes, "list the route catalogue")
    routes.add_argument(
        "--surface", choices=[surface.value for surface in Surface], metavar="SURFACE", help="only this one: rest, git …"
    )
    routes.add_argument("--grep", metavar="TEXT", help="only lines that hold TEXT, in any letter case")

    _command(commands, "schema", _schema, "print the JSON Schema of the configuration")

    demo = _command(commands, "demo", _demo, "run the gateway in front of a small GitLab of its own")
    demo.add_argument("--listen", metavar="HOST:PORT", type=_address, default="127.0.0.1:8080")
    demo.add_argument("--admin", metavar="HOST:PORT", type=_address, default="127.0.0.1:9901")

    _command(commands, "version", _version, "print the version")
    return parser


def _key_commands(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    keys = commands.add_parser("keys", help="issue, list, rotate and revoke gateway keys", allow_abbrev=False)
    below = keys.add_subparsers(metavar="COMMAND", required=True)
    for name, command, text in (
        ("new", _keys_new, "issue a key; it is the last line of standard output"),
        ("rotate", _keys_rotate, "issue a further key beside those an identity has"),
    ):
        issue = _command(below, name, command, text)
        issue.add_argument("identity", metavar="IDENTITY")
        _config_option(issue)
        issue.add_argument("--expires", metavar="90d", type=_lifetime, help="absent: never")
    listing = _command(below, "list", _keys_list, "list keys; the keys themselves are nowhere")
    listing.add_argument("identity", metavar="IDENTITY", nargs="?")
    _config_option(listing)
    listing.add_argument("--json", action="store_true")
    revoke = _command(below, "revoke", _keys_revoke, "end a key at once")
    revoke.add_argument("key", metavar="KEY_ID", help="as `keys list` shows it")
    _config_option(revoke)
    admin = _command(below, "admin", _keys_admin, "make a key for the admin port and the lines that admit it")
    admin.add_argument("id", metavar="ID", nargs="?", default="ops")


def _command(
    commands: argparse._SubParsersAction[argparse.ArgumentParser],
    name: str,
    command: Callable[[argparse.Namespace], int],
    text: str,
) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
    parser.set_defaults(command=command)
    return parser


def _config_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", metavar="FILE", help="YAML or JSON; `-` reads standard input")


def _config_options(parser: argparse.ArgumentParser) -> None:
    _config_option(parser)
    parser.add_argument("--upstream", metavar="URL", help="GitLab's address, over the file's; alone it needs no file")
