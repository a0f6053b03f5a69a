"""The last requests: found by id, told without secrets, in bounded number."""

from __future__ import annotations

from gateway.app.recent_requests import RecentRequests, describe
from gateway.core.exchange import Exchange


def seen(request_id: str, target: bytes = b"/api/v4/projects/1") -> Exchange:
    x = Exchange(request_id, 0.0, "GET", "192.0.2.1")
    x.target, x.identity, x.status = target, "bot", 403
    return x


def test_found_by_id_as_long_as_it_is_one_of_the_last() -> None:
    recent = RecentRequests(3)
    for number in range(5):
        recent.observe(seen(f"r-{number}"), 0.1)
    assert recent.find("r-1") is None
    found = recent.find("r-2")
    assert found is not None
    assert describe(found) == {
        "request_id": "r-2",
        "method": "GET",
        "target": "/api/v4/projects/1",
        "operation": "other",
        "status": 403,
        "identity": "bot",
    }


def test_of_several_by_one_id_the_last() -> None:
    recent = RecentRequests()
    recent.observe(seen("proxy", b"/a"), 0.1)
    recent.observe(seen("proxy", b"/b"), 0.1)
    found = recent.find("proxy")
    assert found is not None
    assert found.target == b"/b"


def test_a_token_in_the_wrong_place_is_not_reported() -> None:
    x = seen("r", b"/api/v4/projects?x=glpat-0123456789abcdefghij")
    x.credential_id, x.credential_subject = "token:5", "ref:glpat-0123456789abcdefghij"
    told = describe(x)
    assert "glpat-" not in str(told)
    assert (told["credential_id"], told["credential_subject"]) == ("token:5", "ref:[redacted]")
