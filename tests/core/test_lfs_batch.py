"""LFS batches: which of them read; and their answers: no credential of the gateway's, no address beside the gateway."""

from __future__ import annotations

import json
from typing import Any

import pytest

from gateway.core.catalogue import Access, Operation, Surface
from gateway.core.errors import Code, Rejection
from gateway.core.lfs_batch import is_batch, parse_batch_intent, rewrite_batch
from gateway.core.messages import RequestHead
from gateway.core.request_intent import ParsingDeferred
from gateway.core.target import parse_target

INSIDE = "https://gitlab.internal/"
OUTSIDE = "https://public/"


def rewrite_url(address: str) -> str | None:
    return OUTSIDE + address.removeprefix(INSIDE) if address.startswith(INSIDE) else None


def rewritten(answer: Any, own: str | None = "Basic mine", *, brokered: bool = True) -> Any:
    return json.loads(rewrite_batch(json.dumps(answer).encode(), rewrite_url, own, brokered=brokered))


def answer(href: str = INSIDE + "a", **header: str) -> dict[str, Any]:
    action = {"href": href, "header": header} if header else {"href": href}
    return {"transfer": "basic", "objects": [{"oid": "a", "authenticated": True, "actions": {"download": action}}]}


def action_of(found: Any) -> Any:
    return found["objects"][0]["actions"]["download"]


def test_a_credential_becomes_the_callers_own_where_the_address_leads_back() -> None:
    found = rewritten(answer(authorization="Basic broker", Accept="x"))
    assert action_of(found) == {"href": OUTSIDE + "a", "header": {"Accept": "x", "Authorization": "Basic mine"}}
    assert found["objects"][0]["authenticated"] is True


@pytest.mark.parametrize(("href", "own"), [(INSIDE + "a", None), ("https://storage/a", "Basic mine")])
def test_a_credential_is_dropped_where_the_caller_has_none_or_another_would_get_it(href: str, own: str | None) -> None:
    found = rewritten(answer(href, Authorization="Basic broker"), own)
    assert action_of(found)["header"] == {}
    assert "authenticated" not in found["objects"][0]


@pytest.mark.parametrize("name", ["Authorization", "AUTHORIZATION", "Private-Token", "Job_Token", "Cookie"])
def test_no_spelling_of_a_credential_stays(name: str) -> None:
    assert "secret" not in json.dumps(rewritten(answer(**{name: "secret"})))


def test_a_presigned_address_keeps_its_fields() -> None:
    found = rewritten(answer("https://storage/a?X-Amz-Signature=1", **{"x-amz-date": "1"}))
    assert action_of(found) == {"href": "https://storage/a?X-Amz-Signature=1", "header": {"x-amz-date": "1"}}
    assert found["objects"][0]["authenticated"] is True


def test_where_gitlab_gave_no_credential_none_is_given() -> None:
    found = rewritten(answer(Accept="x"))
    assert action_of(found) == {"href": OUTSIDE + "a", "header": {"Accept": "x"}}


def test_an_own_token_keeps_what_gitlab_minted_for_it() -> None:
    found = rewritten(answer(Authorization="Basic minted"), brokered=False)
    assert action_of(found) == {"href": OUTSIDE + "a", "header": {"Authorization": "Basic minted"}}


def test_the_old_name_of_actions_is_looked_into_as_well() -> None:
    found = rewritten({"objects": [{"_links": {"upload": {"href": INSIDE, "header": {"Authorization": "broker"}}}}]})
    assert found["objects"][0]["_links"]["upload"]["header"] == {"Authorization": "Basic mine"}


def test_objects_without_actions_and_errors_pass() -> None:
    errors = {
        "message": "no",
        "objects": [{"oid": "a", "size": 1, "error": {"code": 404, "message": "x"}, "actions": None}],
    }
    assert rewritten(errors) == errors
    assert rewritten({"message": "no"}) == {"message": "no"}


def test_an_action_that_is_none_and_an_address_that_is_no_text_pass() -> None:
    odd = {"objects": [{"actions": {"download": None, "upload": {"href": 7}}}]}
    assert rewritten(odd) == odd


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"{",
        b"\xff",
        b'{"objects":{}}',
        b'{"objects":[{},7]}',
        b'{"objects":[1]}',
        b'{"objects":[{"actions":[]}]}',
        b'{"objects":[{"actions":{"download":{"href":"x","header":"Authorization: x"}}}]}',
        b'{"objects":' + b"[" * 100_000,
    ],
)
def test_what_is_not_understood_never_passes(body: bytes) -> None:
    with pytest.raises(Rejection) as refusal:
        rewrite_batch(body, rewrite_url, None, brokered=True)
    assert (refusal.value.code, refusal.value.status) == (Code.UPSTREAM_PROTOCOL, 502)


def test_only_the_batch_is_a_batch() -> None:
    def named(path: str) -> Operation:
        return Operation(f"POST /*repository_path.git{path}", Access.WRITE, Surface.LFS)

    assert is_batch(named("/info/lfs/objects/batch"))
    assert not is_batch(named("/info/lfs/locks"))


# As git-lfs 3.3 sends it.
LFS = b"application/vnd.git-lfs+json; charset=utf-8"
FETCHES = b'{"operation":"download","objects":[{"oid":"a","size":7}],"ref":{"name":"refs/heads/main"},"hash_algo":"sha256"}'


def intent_of(body: bytes, of: bytes = LFS, query: bytes = b"", room: int = 1, coding: bytes = b"identity") -> Access:
    target = b"/g/p.git/info/lfs/objects/batch" + query
    head = RequestHead("POST", target, ((b"Content-Type", of), (b"Content-Encoding", coding)))
    found = parse_batch_intent(head, parse_target(target), body, room=room)
    assert found.operations == 1
    return found.access


@pytest.mark.parametrize("of", [LFS, b"application/vnd.git-lfs+json", b"application/json"])
@pytest.mark.parametrize("body", [FETCHES, b' {"objects": [], "oper\\u0061tion": "download"}'])
def test_one_that_asks_for_objects_reads(of: bytes, body: bytes) -> None:
    assert intent_of(body, of) is Access.READ


@pytest.mark.parametrize(
    "body",
    [
        FETCHES.replace(b"download", b"upload"),
        FETCHES.replace(b"download", b"Download"),
        FETCHES.replace(b'"download"', b'["download"]'),
        b'{"operation":"download","operation":"upload","objects":[]}',
        b'{"operation":"upload","operation":"download","objects":[]}',
        b'{"objects":[],"x":{"operation":"download"}}',
        b"[" + FETCHES + b"]",
        b'"download"',
        FETCHES[:-1],
        b"\xef\xbb\xbf" + FETCHES,
        b"/**/" + FETCHES,
        b"",
    ],
)
def test_any_other_writes(body: bytes) -> None:
    assert intent_of(body) is Access.WRITE


def test_so_does_what_rails_may_take_for_something_else() -> None:
    assert intent_of(FETCHES, query=b"?operation=upload") is Access.WRITE
    assert intent_of(FETCHES, b"application/x-www-form-urlencoded") is Access.WRITE
    assert intent_of(FETCHES, LFS + b"; charset=utf-16") is Access.WRITE
    assert intent_of(FETCHES, coding=b"gzip") is Access.WRITE


def test_a_long_one_is_read_where_there_is_room() -> None:
    long = FETCHES[:-1] + b" " * 20_000 + b"}"
    with pytest.raises(ParsingDeferred):
        intent_of(long, room=0)
    assert intent_of(FETCHES, room=0) is intent_of(long) is Access.READ
