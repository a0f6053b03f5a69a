from __future__ import annotations

import hashlib

from gateway.config.admin_key import new_admin_key
from gateway.core.gateway_key import is_well_formed


def test_a_new_key_and_its_digest_belong_together() -> None:
    key, digest = new_admin_key()
    assert is_well_formed(key)
    assert hashlib.sha256(key.encode()).hexdigest() == digest
    assert new_admin_key()[0] != key
