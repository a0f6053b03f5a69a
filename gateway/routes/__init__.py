"""GitLab's routes as a data file, with the script that makes it and the tables that a person reviewed.

No request reads anything here: a process calls ``catalogue()`` when it starts.
"""

from __future__ import annotations

import functools
from importlib.resources import files

from ..core.catalogue import Catalogue

DEFAULT = "gitlab-19.3.json"


def read(name: str = DEFAULT) -> bytes:
    """The octets of a data file inside the package."""
    return files(__name__).joinpath(name).read_bytes()


def catalogue() -> Catalogue:
    """The catalogue of ``DEFAULT``. Compiled once per process, which takes some 70 ms."""
    return _compiled().copy()


@functools.cache
def _compiled() -> Catalogue:
    return Catalogue.decode(read())
