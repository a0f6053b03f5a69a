"""Asking the admin port of a running gateway, for commands. The admin key comes from the environment."""

from __future__ import annotations

import http.client
import json
import os
from typing import Any

from .config.units import parse_host_port

KEY = "GATEWAY_ADMIN_KEY"
TIMEOUT_S = 10.0


def ask(
    admin: str, method: str, path: str, wish: dict[str, object] | None = None, *, timeout_s: float = TIMEOUT_S
) -> tuple[int, Any]:
    """Status and JSON. Raises OSError when nobody answers."""
    place = parse_host_port(admin)
    connection = http.client.HTTPConnection(place.host or "127.0.0.1", place.port, timeout=timeout_s)
    fields = {"Authorization": f"Bearer {os.environ.get(KEY, '')}", "Content-Type": "application/json"}
    try:
        connection.request(method, path, None if wish is None else json.dumps(wish), fields)
        response = connection.getresponse()
        return response.status, json.loads(response.read() or b"null")
    except (http.client.HTTPException, json.JSONDecodeError):
        raise OSError(f"{admin} does not answer as an admin port") from None
    finally:
        connection.close()
