"""What a configuration was read from, whole: to read the very same one again in another process, whatever changed since."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import msgspec

from .load import Loaded, load
from .problems import Path


class Given(msgspec.Struct, frozen=True):
    """Holds secrets where files do: never shown."""

    text: str
    file: str = ""
    overrides: tuple[tuple[Path, str], ...] = ()
    without: frozenset[str] = frozenset()
    files: dict[str, str] = {}
    """What ``${file:…}`` and certificates held: by the path as it was asked for."""

    def __repr__(self) -> str:
        return f"Given({self.file or 'the options'})"

    def reading(self, read_file: Callable[[str], str]) -> Callable[[str], str]:
        """``read_file``, remembered here."""

        def read(path: str) -> str:
            text = self.files[path] = read_file(path)
            return text

        return read

    def load(self, env: Mapping[str, str], read_file: Callable[[str], str] | None = None) -> Loaded:
        """Read it: with ``read_file`` the first time, from what was remembered in another process."""
        read = self._remembered if read_file is None else self.reading(read_file)
        return load(self.text, env, read, file=self.file, overrides=dict(self.overrides), without=self.without)

    def _remembered(self, path: str) -> str:
        if path not in self.files:
            raise FileNotFoundError(path)
        return self.files[path]
