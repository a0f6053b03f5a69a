"""GitLab's routes as a data file, with the script that makes it and the tables that a person reviewed.

No request reads anything here: ``Catalogue.decode(read())`` happens once, at start.
"""

from __future__ import annotations

from importlib.resources import files

DEFAULT = "gitlab-19.3.json"


def read(name: str = DEFAULT) -> bytes:
    """The octets of a data file inside the package."""
    return files(__name__).joinpath(name).read_bytes()
