from __future__ import annotations

import pytest

from gateway.core.immutable import is_immutable

SHA, LONG = b"0123456789abcdef0123456789ABCDEF01234567", b"a" * 64
BELOW = b"/api/v4/projects/1/repository"


@pytest.mark.parametrize(
    ("template", "target", "verdict"),
    [
        ("tree", b"/tree?ref=" + SHA, True),
        ("tree", b"/tree?path=x&ref=" + LONG + b"&page=2", True),
        ("tree", b"/tree?ref=main", False),
        ("tree", b"/tree", False),
        ("tree", b"/tree?ref=" + SHA[:39], False),
        ("tree", b"/tree?ref=" + SHA + b"0", False),
        ("tree", b"/tree?ref=" + SHA + b"&ref=main", False),
        ("tree", b"/tree?ref=" + SHA + b"&ref[]=main", False),
        ("tree", b"/tree?ref=" + SHA + b";ref=main", False),
        ("tree", b"/tree?ref=" + SHA + b"%0a", False),
        ("files/:file_path", b"/files/a%2Fb?ref=" + SHA, True),
        ("compare", b"/compare?from=" + SHA + b"&to=" + SHA, True),
        ("compare", b"/compare?from=" + SHA + b"&to=main", False),
        ("blobs/:sha", b"/blobs/" + SHA, True),
        ("blobs/:sha", b"/blobs/" + SHA[:8], False),
        ("commits/:sha/diff", b"/commits/" + SHA + b"/diff?x=1", True),
        ("commits/:sha/diff", b"/commits/main/diff", False),
        ("commits/:sha", b"/commits/" + SHA, False),
        ("branches", b"/branches?ref=" + SHA, False),
    ],
)
def test_what_a_full_sha_names_does_not_change(template: str, target: bytes, verdict: bool) -> None:
    assert is_immutable(f"GET /api/v4/projects/:id/repository/{template}", BELOW + target) is verdict
