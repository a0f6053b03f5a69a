"""The commands: read arguments, load the configuration, call, print. They decide nothing.

Exit codes: 0 success; 1 something failed while running; 2 wrong usage or a configuration that is refused; 130 interrupted.
What a person should read goes to standard error, what a program should read to standard output.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import BinaryIO, TextIO, cast

from . import __version__, audit_commands, credential_commands, explain_command, key_commands, limit_commands
from .admin_client import ADMIN, KEY, KeyUnusable, address, admin_options, place_to_ask
from .config import EMBEDDED, Config, json_schema, redacted
from .config import problems as reports
from .config.load import Loaded, load_admin_place
from .config.model import Listen
from .config.source import ConfigSource
from .core.catalogue import Catalogue, Surface
from .ports import KeyRefused, StoreUnavailable
from .state_dir import StateRefused

OK, FAILED, REFUSED, INTERRUPTED = 0, 1, 2, 130

_VERSION = f"gitlab-gateway {__version__} (Python {'.'.join(map(str, sys.version_info[:3]))})"


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command. Returns the exit code."""
    if sys.stdout is None:
        sys.stdout = _no_output()
    if sys.stderr is None:
        # Messages would be printed to standard output, among what a program reads there.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        sys.stderr = os.fdopen(2, "w")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a character that can't be encoded is no reason to fail
    try:
        arguments = _parser().parse_args(argv)
        command: Callable[[argparse.Namespace], int] = arguments.command
        code = command(arguments)
        sys.stdout.flush()
    except SystemExit as exit_:  # argparse's way to say usage (2) or help (0)
        return exit_.code if isinstance(exit_.code, int) else REFUSED
    except (_Refused, KeyRefused, KeyUnusable) as refused:
        _say(str(refused))
        return REFUSED
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        _forget_output()  # `gitlab-gateway routes | head` is no failure
        return OK
    except (OSError, StoreUnavailable, StateRefused) as error:
        _say(f"failed: {_plain(error)}")
        _forget_output()
        return FAILED
    return code


class _Refused(Exception):  # noqa: N818 — a decision, not a fault
    """Wrong usage or configuration; the message is written for the operator."""


# The commands


def _serve(arguments: argparse.Namespace) -> int:
    config, source = _load_config_and_source(arguments)
    if config.listen.workers > 1:
        from .workers import supervisor

        return supervisor.run(config, source, lambda: _read_again(source))
    from . import app

    return app.run(config)


def _check(arguments: argparse.Namespace) -> int:
    config, source = _load_config_and_source(arguments)
    from .config.catalogue_checks import catalogue_warnings
    from .config.disk_checks import disk_problems

    problems = list(disk_problems(config, source))
    for problem in problems:
        _say(str(problem))
    _refuse(problems, source.file)

    for problem in catalogue_warnings(config, _catalogue(), source):
        _say(str(problem))
    if arguments.ask_gitlab and not _credentials_are_taken(config):
        _say("failed: GitLab can't be asked, or has not taken every token")
        return FAILED
    if arguments.show:
        _print_document(redacted(config), arguments.show)
    else:
        _say(f"{arguments.config or 'the embedded default'} is in order")
    return OK


def _credentials_are_taken(config: Config) -> bool:
    from . import app

    found = app.ask_gitlab(config)
    for problem in found.problems:
        _say(problem)
    for warning in found.warnings:
        _say(f"warning: {warning}")
    return found.complete


def _explain(arguments: argparse.Namespace) -> int:
    if arguments.request is not None:
        return _explain_past(arguments)
    config = _load_config(arguments)
    known = [identity.id for identity in config.identities]
    if arguments.identity not in (*known, "passthrough"):
        raise _Refused(f"--as {arguments.identity}: no such identity; there are {', '.join(known) or 'none'}")
    from . import app

    identity, method, target, caller = arguments.identity, arguments.method, arguments.target, arguments.caller
    level_lookup = limit_commands.level_lookup(config, identity, method, target, caller)
    print(app.explain(config, identity, method, target, caller=caller, level_lookup=level_lookup))
    return OK


def _explain_past(arguments: argparse.Namespace) -> int:
    given = {
        "--as": arguments.identity,
        "--caller": arguments.caller or None,
        "--upstream": arguments.upstream,
        "METHOD": arguments.method,
        "TARGET": arguments.target,
    }
    too_many = [name for name, value in given.items() if value is not None]
    if too_many:
        raise _Refused(f"--request names a request that was made, with all that it was: leave out {', '.join(too_many)}")
    return explain_command.explain_past(_admin_place(arguments), arguments.request)


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
    from . import routes

    return routes.catalogue()


# Configuration


_NOT_FOR_KEYS = frozenset({"credentials", "rules", "limits", "cache", "admin"})
"""Parts of the configuration that are not read for keys: whoever issues keys need not hold GitLab's tokens."""


def _load_config(arguments: argparse.Namespace, without: frozenset[str] = frozenset()) -> Config:
    """The configuration that the command's options name; its warnings are printed, its errors end the command."""
    return _load_config_and_source(arguments, without)[0]


def _load_config_and_source(
    arguments: argparse.Namespace, without: frozenset[str] = frozenset()
) -> tuple[Config, ConfigSource]:
    """As ``_load_config``, with what it was read from."""
    overrides: dict[reports.Path, str] = {}
    for option, path in (
        ("upstream", ("upstream", "url")),
        ("listen", ("listen", "address")),
        ("admin", ("listen", "admin")),
        ("workers", ("listen", "workers")),
    ):
        value = getattr(arguments, option, None)
        if value is not None:
            overrides[path] = value
    if arguments.config is None and "upstream" in arguments and arguments.upstream is None:
        raise _Refused("where is GitLab? Give --upstream https://gitlab.example.com or --config FILE")
    if arguments.config is None and "upstream" not in arguments:
        raise _Refused("which configuration? Give --config FILE")
    text, file = (EMBEDDED, "") if arguments.config is None else (_read_config(arguments.config), arguments.config)
    source = ConfigSource(text, file, tuple(overrides.items()), without)
    loaded = source.load(os.environ, _reader(file))
    for problem in loaded.errors if without else loaded.problems:
        _say(str(problem))
    _refuse(loaded.problems, file)
    assert loaded.config is not None, "there is no error"
    return loaded.config, source


def _refuse(problems: Sequence[reports.Problem], file: str) -> None:
    """End the command if any of ``problems`` is an error."""
    count = sum(problem.severity is reports.Severity.ERROR for problem in problems)
    if count:
        raise _Refused(f"refused: {count} error{'s' if count != 1 else ''} in {file or 'the options'}")


def _read_again(source: ConfigSource) -> tuple[ConfigSource, Loaded]:
    """Read the configuration again, as it is now. Raises ValueError where it can't be read."""
    if source.file in {"", "-"}:
        raise ValueError("the configuration did not come from a file: there is nothing to read again")
    if Path(source.file).exists() and not Path(source.file).is_file():
        # A shell's `<(…)` gives nothing the second time, and a process that waits for it can't be told to stop.
        raise ValueError(f"--config {source.file}: is not a regular file: it can't be read again")
    try:
        text = _read_config(source.file)
    except _Refused as refused:
        raise ValueError(str(refused)) from None
    again = ConfigSource(text, source.file, source.overrides, source.without)
    return again, again.load(os.environ, _reader(source.file))


def _admin_place(arguments: argparse.Namespace) -> str:
    """Where the running gateway is asked: what the options say, or the default."""
    if arguments.admin is not None:
        return str(arguments.admin)
    if arguments.config is None:
        return ADMIN
    text, file = _read_config(arguments.config), arguments.config
    place, problems = load_admin_place(text, os.environ, _reader(file), file=file)
    for problem in problems:
        _say(str(problem))
    _refuse(problems, file)
    return place_to_ask(place)


def _load_config_for_audit(arguments: argparse.Namespace, keys_alone: bool) -> Config:
    return _load_config(arguments, _NOT_FOR_KEYS if keys_alone else frozenset())


def _read_config(path: str) -> str:
    try:
        if path == "-" and sys.stdin is None:
            raise _Refused("--config -: standard input is closed")
        # Octets in both cases: the locale, and what it does with octets that it can't decode, must not matter to a file.
        octets = sys.stdin.buffer.read() if path == "-" else Path(path).read_bytes()
        return io.StringIO(octets.decode("utf-8-sig"), newline=None).read()
    except UnicodeDecodeError:
        raise _Refused(f"--config {path}: is not UTF-8 text") from None
    except (OSError, ValueError) as error:
        raise _Refused(f"--config {path}: {_plain(error)}") from None


def _reader(config: str) -> Callable[[str], str]:
    # A relative ${file:…} is relative to the file that names it, wherever the process was started.
    beside = Path(config).parent
    return lambda path: (beside / path).read_text("utf-8")


# Printing


def _say(text: str) -> None:
    print(text, file=sys.stderr)


class _NoOutput(io.TextIOBase):
    """Standard output where it is closed: commands that print fail, and those that don't are not disturbed."""

    @property
    def buffer(self) -> BinaryIO:
        raise OSError("standard output is closed")

    def write(self, _: str) -> int:
        raise OSError("standard output is closed")


def _no_output() -> TextIO:
    try:
        os.fstat(1)
    except OSError:
        # Nothing opened later may be taken for standard output: an audit that goes to standard output would end up in it.
        os.dup2(os.open(os.devnull, os.O_RDONLY), 1)
    return cast(TextIO, _NoOutput())


def _forget_output() -> None:
    """Keep the interpreter from trying again, on exit, to print what could not be printed."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _plain(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    return str(error) or type(error).__name__


def _print_document(document: dict[str, object], form: str) -> None:
    # What standard output can't encode is escaped as JSON and YAML do it, so that it reads as the same.
    everything = (sys.stdout.encoding or "").lower().startswith("utf")
    if form == "json":
        print(json.dumps(document, indent=2, ensure_ascii=not everything))
        return
    import yaml

    print(yaml.safe_dump(document, sort_keys=False, allow_unicode=everything), end="")


# Arguments


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
    serve.add_argument("--listen", metavar="HOST:PORT", type=address, help="the data port; overrides the file's")
    serve.add_argument("--admin", metavar="HOST:PORT", type=address, help="the admin port; overrides the file's")
    serve.add_argument("--workers", metavar="N", help="number of worker processes; overrides the file's")

    check = _command(commands, "check", _check, "report everything that is wrong with a configuration")
    _config_options(check)
    check.add_argument(
        "--ask-gitlab", action="store_true", help="also ask GitLab about each credential; exit code 1 unless it takes all"
    )
    check.add_argument("--show", choices=["yaml", "json"], help="print what would be in force, without secrets")

    explain = _command(commands, "explain", _explain, "show what each stage would decide about a request; nothing is sent")
    explain.usage = (
        "%(prog)s [--config FILE] [--upstream URL] --as ID [--caller NAME] [--admin HOST:PORT] METHOD TARGET\n"
        "       %(prog)s --request ID [--config FILE | --admin HOST:PORT]"
    )
    _config_options(explain)
    identity = explain.add_argument(
        "--as", dest="identity", metavar="ID", required=True, help="the identity that would call"
    )
    explain.add_argument("--caller", metavar="NAME", default="", help="which of its callers, as `limits top` names them")
    explain.add_argument(
        "--admin", metavar="HOST:PORT", type=address, help="the running gateway's admin port; overrides the file's"
    )
    method = explain.add_argument("method", metavar="METHOD")
    target = explain.add_argument("target", metavar="TARGET", help="as on the wire: /api/v4/projects/group%%2Fproject")
    explain.add_argument(
        "--request",
        metavar="ID",
        action=explain_command.InsteadOf,
        others=(identity, method, target),
        help="instead: one of the last 2,000 requests of the running gateway, by its X-Gateway-Request-Id; what was done "
        f"with it, too. The admin key is read from {KEY}",
    )

    for keys in key_commands.add(commands, _command, lambda arguments: _load_config(arguments, _NOT_FOR_KEYS)):
        _config_option(keys)
    credential_commands.add(commands, _asking_command)
    limit_commands.add(commands, _asking_command)
    for audit in audit_commands.add(commands, _command, _load_config_for_audit):
        _config_option(audit)

    routes = _command(commands, "routes", _routes, "list the route catalogue")
    routes.add_argument(
        "--surface",
        choices=[surface.value for surface in Surface],
        metavar="SURFACE",
        help="only this surface: rest, git …",
    )
    routes.add_argument("--grep", metavar="TEXT", help="only lines that contain TEXT, ignoring case")

    _command(commands, "schema", _schema, "print the JSON Schema of the configuration")

    demo = _command(commands, "demo", _demo, "run the gateway in front of a small built-in GitLab")
    for option, place, text in (("--listen", Listen().address, "data"), ("--admin", Listen().admin, "admin")):
        words = f"the {text} port; default: {place}"
        demo.add_argument(option, metavar="HOST:PORT", type=address, default=str(place), help=words)

    _command(commands, "version", _version, "print the version")
    return parser


def _command(
    commands: argparse._SubParsersAction[argparse.ArgumentParser],
    name: str,
    command: Callable[[argparse.Namespace], int],
    text: str,
) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
    parser.set_defaults(command=command)
    return parser


def _asking_command(
    commands: argparse._SubParsersAction[argparse.ArgumentParser],
    name: str,
    command: Callable[[argparse.Namespace], int],
    text: str,
) -> argparse.ArgumentParser:
    """A command that asks a running gateway; by the time it runs, ``admin`` is where."""

    def run(arguments: argparse.Namespace) -> int:
        arguments.admin = _admin_place(arguments)
        return command(arguments)

    parser = _command(commands, name, run, text)
    admin_options(parser)
    return parser


def _config_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", metavar="FILE", help="YAML or JSON; `-` reads standard input")


def _config_options(parser: argparse.ArgumentParser) -> None:
    _config_option(parser)
    parser.add_argument(
        "--upstream", metavar="URL", help="GitLab's address; overrides the file's, or makes a file unnecessary"
    )
