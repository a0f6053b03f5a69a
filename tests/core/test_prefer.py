"""``Prefer: wait=N``."""

from __future__ import annotations

import pytest

from gateway.core.messages import Fields
from gateway.core.prefer import preferred_wait_s


@pytest.mark.parametrize(
    ("fields", "seconds"),
    [
        pytest.param((), 0.0, id="none"),
        pytest.param(((b"Prefer", b"wait=5"),), 5.0, id="plain"),
        pytest.param(((b"PREFER", b"Wait = 5"),), 5.0, id="any-case-and-spaces"),
        pytest.param(((b"Prefer", b'respond-async, wait="10"; x=y'),), 10.0, id="among-others"),
        pytest.param(((b"Accept", b"x"), (b"Prefer", b"return=minimal"), (b"Prefer", b"wait=2")), 2.0, id="several-fields"),
        pytest.param(((b"Prefer", b"wait=2, wait=9"),), 2.0, id="the-first-holds"),
        pytest.param(((b"Prefer", b"wait=86400"),), 60.0, id="bounded"),
        pytest.param(((b"Prefer", b"wait=" + b"9" * 5000),), 0.0, id="no-number-of-ours"),
        pytest.param(((b"Prefer", b"wait=-1"),), 0.0, id="negative"),
        pytest.param(((b"Prefer", b"wait=1.5"),), 0.0, id="no-integer"),
        pytest.param(((b"Prefer", b"wait"),), 0.0, id="no-value"),
        pytest.param(((b"Prefer", b"awaiting=5"),), 0.0, id="another-name"),
        pytest.param(((b"Prefex", b"wait=5"),), 0.0, id="another-field"),
    ],
)
def test_wait_of(fields: Fields, seconds: float) -> None:
    assert preferred_wait_s(fields) == seconds
