"""The environment and the files that the configurations of these tests refer to."""

from __future__ import annotations

ENV = {
    "HOME": "/home/op",
    "TOKEN": "glpat-R3aderOne",
    "OTHER_TOKEN": "glpat-R3aderTwo",
    "READER_TOKEN": "glpat-R3aderOne",
    "BOT_TOKEN": "glpat-B0tOne",
    "EMPTY": "",
    "PLACEHOLDER": "glpat-xxxxxxxxxxxxxxxxxxxx",
    "SPACED": "glpat-abc\r\nX-Evil: 1",
    "QUOTED": '"glpat-R3aderOne"',
    "WEAK": "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    "GW_PEPPER": "5f0c9a7e1b3d8246ace013579bdf2468",
    "GW_KEY": "9d2e4f6a8b0c1d3e5f7a9b8c7d6e5f40",
    "GW_AUDIT": "0a1b2c3d4e5f60718293a4b5c6d7e8f9",
    "REDIS_URL": "redis://gw:s3cr3t-of-redis@redis:6379/0",
}

FILES = {
    "/run/secrets/token": "glpat-Fr0mFile\n",
    "/run/secrets/empty": "\n",
    "/etc/ca.pem": "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n",
    "/etc/not-a-ca.pem": "hello\n",
}

SECRETS = [value for name, value in ENV.items() if name not in {"HOME", "EMPTY"}] + ["glpat-Fr0mFile", "s3cr3t-of-redis"]


def read_file(path: str) -> str:
    """As the operating system would."""
    if path == "/run/secrets/binary":
        raise UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte")
    try:
        return FILES[path]
    except KeyError:
        raise FileNotFoundError(2, "No such file or directory", path) from None
