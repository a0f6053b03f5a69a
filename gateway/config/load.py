"""Text in, configuration or all its problems out. Environment and files are passed in: nothing here looks for them."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import msgspec

from .checks import findings
from .decode import UNREADABLE, Decoder
from .model import Config, Listen
from .problems import Finding, Path, Problem, Severity, error, show_path
from .references import ReferenceResolver
from .tree import Mapping as MappingNode
from .tree import Scalar, Tree, parse_tree
from .units import HostPort, parse_store_url

EMBEDDED = "version: 1\n"
"""What is read when no file is given: everything at its default."""

_MAX_CHARS = 64 << 20


class Loaded(msgspec.Struct, frozen=True):
    """The result of reading a text."""

    config: Config | None
    """None if any problem is an error."""
    problems: tuple[Problem, ...] = ()
    """Errors and warnings, in the order of the file."""

    @property
    def errors(self) -> tuple[Problem, ...]:
        """The problems that keep the gateway from starting."""
        return tuple(problem for problem in self.problems if problem.severity is Severity.ERROR)

    @property
    def warnings(self) -> tuple[Problem, ...]:
        """The problems that do not."""
        return tuple(problem for problem in self.problems if problem.severity is Severity.WARNING)


def load(
    text: str,
    env: Mapping[str, str],
    read_file: Callable[[str], str],
    *,
    file: str = "",
    overrides: Mapping[Path, str] | None = None,
    without: frozenset[str] = frozenset(),
) -> Loaded:
    """Read a configuration.

    Args:
        text: YAML (JSON is YAML).
        env: For ``${env:NAME}``, and for the default of ``state_dir``.
        read_file: For ``${file:/path}`` and for PEM files (``upstream.ca_file``); may raise OSError or UnicodeDecodeError.
        file: The name of the text in problems.
        overrides: Values from the command line, by path; they take precedence over those of the text.
        without: Top-level keys that are not read and keep their defaults: references that a command does not need then
            need not resolve.
    """
    if len(text) > _MAX_CHARS:
        return Loaded(None, (Problem("", "is too large to be a configuration", file),))
    tree = parse_tree(text, file, overrides or {})
    if tree.problems and not tree.root.entries:
        return Loaded(None, tuple(tree.problems))
    for key in without:
        tree.root.entries.pop(key, None)
    resolver = ReferenceResolver(env, read_file)
    decoder = Decoder(tree, resolver)
    config = decoder.section(Config, tree.root, ())
    problems = [*tree.problems, *decoder.problems]
    if isinstance(config, Config):
        config = _with_defaults(config, env)
        reported = {problem.path for problem in problems}
        for path, message, severity in (*findings(config), *_check_pem_files(config, resolver)):
            # A value that could not be read has its default here, so a finding about it would mean nothing; and warnings
            # can wait until the errors are gone.
            if reported and (severity is Severity.WARNING or _overlaps(show_path(path), reported)):
                continue
            problems.append(tree.problem(path, message, severity))
    problems += _inline_passwords(tree)
    problems.sort(key=lambda problem: (problem.line, problem.path))
    broken = config is UNREADABLE or any(problem.severity is Severity.ERROR for problem in problems)
    return Loaded(None if broken else config, tuple(problems))


def load_admin_place(
    text: str, env: Mapping[str, str], read_file: Callable[[str], str], *, file: str = ""
) -> tuple[HostPort, tuple[Problem, ...]]:
    """Read ``listen.admin`` and nothing else: who asks a running gateway need not be able to read its secrets.

    With problems, the place is the default and means nothing.
    """
    tree = parse_tree(text, file, {})
    decoder = Decoder(tree, ReferenceResolver(env, read_file))
    listen = tree.root.entries.get("listen", MappingNode({}, {}, 0))
    if isinstance(listen, MappingNode):
        admin = {key: node for key, node in listen.entries.items() if key == "admin"}
        listen = msgspec.structs.replace(listen, entries=admin)
    found = decoder.value(Listen, listen, ("listen",))
    place = Listen().admin if found is UNREADABLE else found.admin
    return place, (*tree.problems, *decoder.problems)


def _with_defaults(config: Config, env: Mapping[str, str]) -> Config:
    state_dir = config.state_dir or _state_dir(env)
    stores = config.stores
    if stores.keys is None:
        keys = stores.shared if stores.shared.shared else parse_store_url(f"sqlite://{state_dir}/keys.db")
        stores = msgspec.structs.replace(stores, keys=keys)
    if stores.credentials is None:
        credentials = stores.shared if stores.shared.shared else parse_store_url(f"sqlite://{state_dir}/credentials.db")
        stores = msgspec.structs.replace(stores, credentials=credentials)
    return msgspec.structs.replace(config, state_dir=state_dir, stores=stores)


def _state_dir(env: Mapping[str, str]) -> str:
    # The XDG Base Directory Specification says that a relative path is ignored.
    state = env.get("XDG_STATE_HOME", "")
    if state.startswith("/"):
        return f"{state.rstrip('/')}/gitlab-gateway"
    home = env.get("HOME", "")
    return f"{home.rstrip('/')}/.local/state/gitlab-gateway" if home.startswith("/") else "/var/lib/gitlab-gateway"


def _check_pem_files(config: Config, resolver: ReferenceResolver) -> list[Finding]:
    tls = config.listen.tls
    files: list[tuple[Path, str | None, str, str]] = [
        (("upstream", "ca_file"), config.upstream.ca_file, "-----BEGIN CERTIFICATE-----", "certificate")
    ]
    if tls is not None:
        files.append((("listen", "tls", "cert_file"), tls.cert_file, "-----BEGIN CERTIFICATE-----", "certificate"))
        files.append((("listen", "tls", "key_file"), tls.key_file, "PRIVATE KEY-----", "private key"))
    for index, identity in enumerate(config.identities):
        if identity.oidc is not None:
            where: Path = ("identities", index, "oidc", "ca_file")
            files.append((where, identity.oidc.ca_file, "-----BEGIN CERTIFICATE-----", "certificate"))
    found: list[Finding] = []
    for path, file, mark, what in files:
        if file is None:
            continue
        try:
            if mark not in resolver.read(file):
                found.append(error(path, f"holds no PEM {what}"))
        except ValueError as unreadable:
            found.append(error(path, str(unreadable)))
    return found


def _inline_passwords(tree: Tree) -> list[Problem]:
    # A store's URL is no secret unless it holds a password; then, like every secret, it must not stand in the file.
    stores = tree.root.entries.get("stores")
    if not isinstance(stores, MappingNode):
        return []
    found = []
    for key in ("shared", "keys", "credentials"):
        node = stores.entries.get(key)
        if isinstance(node, Scalar) and "@" in node.text and "${" not in node.text:
            message = "holds a password: put the whole URL elsewhere and write ${env:NAME}"
            found.append(tree.problem(("stores", key), message))
    return found


def _overlaps(path: str, reported: set[str]) -> bool:
    return any(_within(path, known) or _within(known, path) for known in reported if known)


def _within(path: str, section: str) -> bool:
    return path == section or path.startswith((section + ".", section + "["))
