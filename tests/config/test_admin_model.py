"""What an admin key may do where the configuration says nothing, and where it does."""

from __future__ import annotations

from gateway.config.admin_model import AdminKey
from gateway.core.admin_permission import Permission

HASH = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"


def test_a_key_of_which_nothing_is_said_is_for_everything() -> None:
    key = AdminKey("ops", HASH)
    assert set(key.may) == set(Permission)
    assert key.identities is None, "every identity's, also of those that are configured later"


def test_a_narrower_key() -> None:
    key = AdminKey("portal", HASH, (Permission.KEYS,), ("bots",))
    assert (key.may, key.identities) == ((Permission.KEYS,), ("bots",))
