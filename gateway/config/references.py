"""``${env:NAME}`` and ``${file:/path}``: values that stand elsewhere; and secrets that can't be real ones."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

_REFERENCE = re.compile(r"\$\{(env|file):([^{}]*)\}")
_LIKE_A_REFERENCE = re.compile(r"\$\{(?:env|file):|\$\{[^}]*\}\Z")
_MISSPELT = re.compile(r"\$\{(?!(?:env|file):)[^{}]*\}")
_ENV_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_QUOTED = re.compile(r"([\"']).*\1")
_MAX_FILE_CHARS = 1 << 20

# What people copy from GitLab's documentation or ours, and forget to replace.
_PLACEHOLDER = re.compile(
    r"(?i:"
    r"(?:gl[a-z]{2,6}-)?(?:x{3,}|\*{3,}|\.{3,}|0{8,}|…)"
    r"|(?:gl[a-z]{2,6}-)?(?:change[-_ ]?(?:me|this|it)|replace[-_ ]?(?:me|this|it)|example|secret|password|token|todo|test"
    r"|my[-_ ]?(?:secret|token|password)|your[-_ ].{0,40}|insert[-_ ].{0,40}|.{0,40}[-_ ]goes[-_ ]here|<.{0,80}>)"
    r"|gl[a-z]{2,6}-"
    r")"
)


class ReferenceResolver:
    """The environment and the files that references may read."""

    def __init__(self, env: Mapping[str, str], read_file: Callable[[str], str]) -> None:
        self._env = env
        self._read_file = read_file

    def resolve(self, text: str) -> str:
        """``text``, or the value that it refers to. Raises ValueError; the message never holds a value."""
        found = _REFERENCE.fullmatch(text)
        if found is None:
            if _MISSPELT.fullmatch(text):
                raise ValueError("is no reference: write ${env:NAME} for a variable, ${file:/path} for a file")
            if _LIKE_A_REFERENCE.search(text):
                raise ValueError("holds a reference that is not the whole value: write ${env:NAME} or ${file:/path} alone")
            return text
        kind, name = found[1], found[2]
        return self._variable(name) if kind == "env" else self.read(name)

    def read(self, path: str) -> str:
        """The text of a file, without its last line end. Raises ValueError, as ``resolve``."""
        # Somebody may have pasted the secret itself instead of its path: only what looks like a path is repeated.
        shown = f"the file {path}" if "/" in path else "a file"
        if not path or "\0" in path:
            raise ValueError("names no file: write ${file:/path}")
        try:
            text = self._read_file(path)
        except UnicodeDecodeError:
            raise ValueError(f"names {shown}, which is not text") from None
        except OSError as error:
            raise ValueError(f"names {shown}, which can't be read: {error.strerror or 'unreadable'}") from None
        if len(text) > _MAX_FILE_CHARS:
            raise ValueError(f"names {shown}, which is too large")
        text = text.removesuffix("\n").removesuffix("\r")
        if not text:
            raise ValueError(f"names {shown}, which is empty")
        return text

    def _variable(self, name: str) -> str:
        if not _ENV_NAME.fullmatch(name):
            raise ValueError("names no environment variable: write ${env:NAME}")
        value = self._env.get(name)
        if value is None:
            raise ValueError(f"names the environment variable {name}, which is not set")
        if not value:
            raise ValueError(f"names the environment variable {name}, which is empty")
        return value


def is_reference(text: str) -> bool:
    """Whether the whole of ``text`` is a reference."""
    return _REFERENCE.fullmatch(text) is not None


def check_secret(value: str) -> None:
    """Raise ValueError if ``value`` can't be a real secret; the message never shows it."""
    if _PLACEHOLDER.fullmatch(value):
        raise ValueError("is a placeholder copied from documentation: put a real secret there")
    if _QUOTED.fullmatch(value):  # a shell takes them off, many readers of env files do not
        raise ValueError("is in quotation marks: take them off where the secret is set")
    # It is sent in a header field, where a line end or a space would begin something else (RFC 9110 §5.5).
    if not value.isascii() or not value.isprintable() or " " in value:
        raise ValueError("holds spaces, line ends or characters that no token has")
