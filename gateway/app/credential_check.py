"""Asks GitLab about the configured tokens, and serves nothing: ``check --ask-gitlab``."""

from __future__ import annotations

import asyncio
import time

import msgspec

from ..broker.static import CredentialsRefused, StaticTokenSource
from ..config import Config
from ..config import compile as compiled
from ..identity.verifier import GitlabVerifier
from ..upstream.client import HttpUpstream
from .component_settings import upstream_host, upstream_settings, validation_settings


class CredentialCheck(msgspec.Struct, frozen=True):
    """What GitLab says of the configured tokens; a line for each finding, without a secret."""

    problems: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    complete: bool = True
    """Whether GitLab takes each that was asked about, and could say what it may do."""


def ask_gitlab(config: Config) -> CredentialCheck:
    """Ask about each token, except those that are rotated: theirs are in the store, and the configured ones may be dead.
    Where none is left to ask about, GitLab must at least take a connection.

    Raises OSError if GitLab's certificate authorities can't be read.
    """
    return asyncio.run(_ask(config))


async def _ask(config: Config) -> CredentialCheck:
    rotated = {one.id for one in config.credentials if one.rotate is not None}
    every = compiled.credentials(config)
    asked = [one for one in every if (one.pool or one.id) not in rotated]
    left_out = [
        f"credential `{one.id}` is rotated: its token in use is not asked about" for one in every if one not in asked
    ]
    upstream = HttpUpstream(upstream_settings(config))
    try:
        verifier = GitlabVerifier(
            upstream,
            wall=time.time,
            prefix=validation_settings(config).prefix,
            fields=((b"Host", upstream_host(config)),),
        )
        tokens = StaticTokenSource(
            asked,
            verifier,
            verifier.fetch_username,
            partition_key=b"nothing is cached",
            monotonic=time.monotonic,
            alarm=lambda _id, _healthy: None,
        )
        warnings = await tokens.verify_at_start([one.id for one in asked])
        if not asked and (why := await upstream.try_to_connect()) is not None:
            where = upstream.origin.authority.decode("ascii")
            return CredentialCheck((f"GitLab can't be reached at {where} ({why.value})",), tuple(left_out), complete=False)
        return CredentialCheck((), (*warnings, *left_out), complete=not warnings)
    except CredentialsRefused as refused:
        return CredentialCheck(tuple(refused.problems), (*refused.warnings, *left_out), complete=False)
    finally:
        await upstream.close()
