"""Everything that a configuration was read from, so that another process can read the same one, whatever changed since."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import msgspec

from .load import Loaded, load
from .problems import Path


class ConfigSource(msgspec.Struct, frozen=True):
    """The sources of one configuration. They hold secrets if files do, so ``repr`` shows none of them."""

    text: str
    file: str = ""
    overrides: tuple[tuple[Path, str], ...] = ()
    without: frozenset[str] = frozenset()
    files: dict[str, str] = {}
    """The contents of ``${file:…}`` references and certificate files, by the path under which each was read."""

    def __repr__(self) -> str:
        return f"ConfigSource({self.file or 'the options'})"

    def recording(self, read_file: Callable[[str], str]) -> Callable[[str], str]:
        """``read_file``, with everything it reads recorded here."""

        def read(path: str) -> str:
            text = self.files[path] = read_file(path)
            return text

        return read

    def load(self, env: Mapping[str, str], read_file: Callable[[str], str] | None = None) -> Loaded:
        """Load the configuration: the first time with ``read_file``; in another process from what was recorded."""
        read = self._read_recorded if read_file is None else self.recording(read_file)
        return load(self.text, env, read, file=self.file, overrides=dict(self.overrides), without=self.without)

    def _read_recorded(self, path: str) -> str:
        if path not in self.files:
            raise FileNotFoundError(path)
        return self.files[path]
