from __future__ import annotations

from gateway.config.admin_key import find_admin, new_admin_key
from gateway.config.model import AdminKey
from gateway.core.secret import Secret


def test_a_new_key_is_found_by_its_digest() -> None:
    (key, digest), (_, other) = new_admin_key(), new_admin_key()
    keys = (AdminKey(id="night", sha256=other), AdminKey(id="day", sha256=digest))
    assert find_admin(keys, Secret(key)) == "day"
    assert find_admin(keys, Secret(key[:-1])) is None
    assert find_admin((), Secret("")) is None
    assert digest not in key
