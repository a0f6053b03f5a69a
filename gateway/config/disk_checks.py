"""Problems that only the disk shows: a file where a directory should be, an audit that can't be written to its file,
certificates that can't be used.

For ``check``, in addition to what ``load`` finds: ``serve`` meets them by itself when it opens the files.
"""

from __future__ import annotations

import os
import ssl
import time
from collections.abc import Iterator

from .model import Config
from .problems import Finding, Path, Problem, error, warning
from .source import ConfigSource
from .tree import parse_tree
from .units import StoreUrl

_DAY_S = 86_400.0
_SOON_S = 7 * _DAY_S


def disk_problems(config: Config, source: ConfigSource) -> Iterator[Problem]:
    """Find such problems of ``config``. Lines are those of the text that ``source`` holds."""
    tree = parse_tree(source.text, source.file, dict(source.overrides))
    found = (*_state_dir(config), *_sink(config), *_authorities(config), *_certificate(config), *_stores(config))
    for path, message, severity in found:
        yield tree.problem(path, message, severity)


def _state_dir(config: Config) -> Iterator[Finding]:
    if os.path.lexists(config.state_dir) and not os.path.isdir(config.state_dir):
        elsewhere = all(store is not None and store.shared for store in (config.stores.keys, config.stores.credentials))
        # Where nothing else is kept there, what lacks is the audit's spool.
        find = warning if elsewhere else error
        yield find(("state_dir",), f"names {config.state_dir}, which is not a directory")


def _sink(config: Config) -> Iterator[Finding]:
    kind, _, file = config.audit.sink.partition(":")
    if kind != "file":
        return
    path, directory = ("audit", "sink"), os.path.dirname(file)
    if os.path.isdir(file):
        yield error(path, f"names {file}, which is a directory")
    elif os.path.isdir(directory):
        return
    elif os.path.lexists(directory):
        yield error(path, f"names a file in {directory}, which is not a directory")
    else:
        # It may exist where the gateway runs: configurations are also checked on other machines.
        message = f"names a file in {directory}, which is not there: the gateway makes the file, not its directory"
        yield warning(path, message)


def _authorities(config: Config) -> Iterator[Finding]:
    files: list[tuple[Path, str | None]] = [(("upstream", "ca_file"), config.upstream.ca_file)]
    for index, identity in enumerate(config.identities):
        if identity.oidc is not None:
            files.append((("identities", index, "oidc", "ca_file"), identity.oidc.ca_file))
    for path, file in files:
        if file is not None:
            try:
                ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(file)
            except OSError:
                yield error(path, f"names {file}, which holds no certificate that can be read")


def _certificate(config: Config) -> Iterator[Finding]:
    tls = config.listen.tls
    if tls is not None:
        from ..edge.tls import ListenerTls

        try:
            left_s = ListenerTls(tls.cert_file, tls.key_file).expires_at - time.time()
        except OSError as fault:
            yield error(("listen", "tls", "key_file"), fault.strerror or str(fault))
        else:
            if left_s < _SOON_S:
                how = f"expires in {left_s / _DAY_S:.1f} days" if left_s > 0 else "has expired: clients refuse it"
                yield warning(("listen", "tls", "cert_file"), f"names {tls.cert_file}, which {how}")


def _stores(config: Config) -> Iterator[Finding]:
    from ..stores.redis_address import parse_address

    seen: set[str] = set()
    for name in ("shared", "keys", "credentials"):
        store: StoreUrl | None = getattr(config.stores, name)
        if store is not None and os.path.isdir(store.path):
            yield error(("stores", name), f"names {store.path}, which is a directory")
        if store is None or not store.encrypted or store.url.reveal() in seen:
            continue
        seen.add(store.url.reveal())
        try:
            parse_address(store.url.reveal())
        except OSError as fault:
            yield error(("stores", name), str(fault))
