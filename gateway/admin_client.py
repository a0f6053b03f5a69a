"""Requests of commands to the admin port of a running gateway. The admin key comes from the environment."""

from __future__ import annotations

import argparse
import http.client
import json
import os
from typing import Any

from .config.model import Listen
from .config.units import HostPort, parse_host_port

KEY = "GATEWAY_ADMIN_KEY"
TIMEOUT_S = 10.0
_OWN = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 — an address to listen on is none to ask at


class KeyUnusable(Exception):  # noqa: N818 — what the operator gave, not a fault
    """What the environment holds can't be an admin key; the message doesn't show it."""


def address(text: str) -> str:
    """Check HOST:PORT as the argument of a command."""
    try:
        parse_host_port(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} {error}") from None
    return text


def admin_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that say which gateway a command asks."""
    words = f"the running gateway's admin port; default: that of --config, or {ADMIN}. The admin key is read from {KEY}"
    parser.add_argument("--admin", metavar="HOST:PORT", type=address, help=words)
    words = "the gateway's configuration, of which only `listen.admin` is read; `-` reads standard input"
    parser.add_argument("--config", metavar="FILE", help=words)


def place_to_ask(admin: HostPort) -> str:
    """Where to ask a gateway of this machine whose ``listen.admin`` is ``admin``."""
    return str(HostPort(_OWN.get(admin.host, admin.host), admin.port))


ADMIN = place_to_ask(Listen().admin)
"""Where a gateway is asked whose configuration nobody gave."""


def read_admin_key() -> str:
    """The admin key in the environment, without white space around it, which a file it was read from may have. Empty: there
    is none. Raises KeyUnusable."""
    key = os.environ.get(KEY, "").strip()
    if not all("!" <= letter <= "~" for letter in key):
        raise KeyUnusable(f"{KEY} holds spaces, line ends or characters that no key has")
    return key


def ask(
    admin: str, method: str, path: str, body: dict[str, object] | None = None, *, timeout_s: float = TIMEOUT_S
) -> tuple[int, Any]:
    """Send a request; return the answer's status and JSON. Raises OSError when no admin port answers, and KeyUnusable."""
    place = parse_host_port(admin)
    connection = http.client.HTTPConnection(place.host or "127.0.0.1", place.port, timeout=timeout_s)
    fields = {"Authorization": f"Bearer {read_admin_key()}", "Content-Type": "application/json"}
    try:
        connection.request(method, path, None if body is None else json.dumps(body), fields)
        response = connection.getresponse()
        return response.status, json.loads(response.read() or b"null")
    except (http.client.HTTPException, json.JSONDecodeError):
        raise OSError(f"{admin} does not answer like an admin port") from None
    except ConnectionRefusedError as error:
        raise OSError(f"{admin}: {error.strerror}: no admin port is there; --admin names another") from None
    except OSError as error:
        raise OSError(f"{admin}: {error.strerror or error}") from None
    finally:
        connection.close()


def refusal(status: int, answer: Any, *, needs: str = "an admin key in the configuration") -> str:
    """What any status but 200 means, in words for people. ``needs``: what must be configured for the endpoint to exist."""
    if status == 404:
        return f"the admin port has no such endpoint: it needs {needs}"
    said = answer.get("message", "") if isinstance(answer, dict) else ""
    if status == 401:
        why = (
            f"the key in {KEY} is not one of `admin.keys`"
            if read_admin_key()
            else f"{KEY} is empty: put a key of `admin.keys` there"
        )
        return f"{said or status}: {why}"
    return str(said or status)
