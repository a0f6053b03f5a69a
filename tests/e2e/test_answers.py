"""Answers: what GitLab sends is what the client receives, and what the gateway adds is known."""

from __future__ import annotations

import json

import pytest

from gateway.demo.gitlab import DemoGitLab
from gateway.demo.seed import TOKENS
from tests.e2e.conftest import EXTERNAL_URL, OWN_TOKEN, Passage
from tests.e2e.running import GatewayProcess
from tests.e2e.wire import Peer, ask, curl
from tests.fakes.gitlab import Answer, Then, response

ADDED = {"via", "cache-status", "ratelimit-limit", "x-gateway-request-id", "date"}
JSON = ("Content-Type", "application/json")


def test_r4_end_to_end_fields_arrive_once_and_only_known_ones_are_added(passage: Passage) -> None:
    sent = [
        ("Content-Type", "application/json"),
        ("ETag", 'W/"00000000000000000000000000000000"'),
        ("X-Gitlab-Meta", '{"correlation_id":"1","version":"1"}'),
        ("X-Request-Id", "upstream-id"),
        ("X-Runtime", "0.1"),
        ("Vary", "Origin"),
        ("Strict-Transport-Security", "max-age=1"),
        ("Warning", '299 - "x"'),
        ("x-lower", "Value"),
        ("X-Twice", "1"),
        ("X-Twice", "2"),
        ("Content-Disposition", 'inline; filename="ü.txt"'),
    ]
    reply, _ = passage("/api/v4/projects/1?r4", token=OWN_TOKEN, answer=response(200, b"{}", *sent))
    for name in {name for name, _ in sent}:
        wanted = [value.encode().decode("latin-1") for field, value in sent if field == name]
        assert reply.values(name) == wanted, name
    assert reply.names - {name.lower() for name, _ in sent} == {*ADDED, "content-length"}
    for name in ADDED:
        assert len(reply.values(name)) == 1, name


@pytest.mark.parametrize("status", [400, 401, 403, 404, 409, 412, 422, 429, 500, 502, 503])
def test_r5_curl_fails_with_22(passage: Passage, status: int) -> None:
    passage.recorder.script(response(status, b"{}"))
    assert curl("--fail", f"{passage.gateway.url}/api/v4/projects", code=22).status == status


def test_r6_lower_case_names_work_and_nothing_hop_by_hop_passes(passage: Passage) -> None:
    reply, received = passage(
        "/api/v4/projects?r6",
        f"private-token: {OWN_TOKEN}",
        "accept: application/json",
        "te: trailers",
        "connection: keep-alive, x-private",
        "keep-alive: timeout=5",
        "x-private: 1",
        "proxy-authorization: Basic eDp5",
        answer=response(200, b"[]", ("Connection", "keep-alive, X-Hop"), ("Keep-Alive", "timeout=5"), ("X-Hop", "1")),
    )
    assert reply.status == 200
    assert received.values("accept") == [b"application/json"]
    for name in ("te", "keep-alive", "x-private", "proxy-authorization", "transfer-encoding"):
        assert received.values(name) == [], name
    assert not {"keep-alive", "x-hop"} & reply.names


@pytest.mark.parametrize("pieces", [1, 2, 5])
@pytest.mark.parametrize("chunked", [False, True])
def test_a_list_says_the_same_however_it_comes(passage: Passage, chunked: bool, pieces: int) -> None:
    """As nginx sends it coded, as a network cuts it: page for page, the later ones known by the form of the first."""
    replies = []
    for page in range(1, 6):
        body = b'[{"id":%d,"title":"%b"}]' % (page, b"x" * 3000)
        fields = [JSON, ("Etag", f'W/"{page}"'), ("X-Page", f"{page}"), ("Vary", "Origin")]
        if chunked:
            fields.append(("Transfer-Encoding", "chunked"))
            framed = b"%x\r\n%b\r\n1\r\n]\r\n0\r\n\r\n" % (len(body) - 1, body[:-1])
        else:
            fields.append(("Content-Length", f"{len(body)}"))
            framed = body
        octets = response(200, framed, *fields).pieces[0]
        assert isinstance(octets, bytes)
        size = -(-len(octets) // pieces)
        cut = [piece for at in range(0, len(octets), size) for piece in (octets[at : at + size], 0.01)]
        target = f"/api/v4/projects/1/issues?per_page={pieces}{chunked:d}&page={page}"
        reply, _ = passage(target, token=OWN_TOKEN, answer=Answer(*cut))
        assert (reply.status, reply.body) == (200, body)
        assert (reply.value("Etag"), reply.value("X-Page")) == (f'W/"{page}"', f"{page}")
        replies.append(reply)
    assert replies[-1].value("Content-Length") == f"{len(replies[-1].body)}"
    assert replies[-1].names == replies[-2].names == {*ADDED, "content-type", "etag", "x-page", "vary", "content-length"}


def test_r17_impersonation_disabled_passes_unchanged(passage: Passage) -> None:
    body = (
        b'{"error":"invalid_token","error_description":"Token is an impersonation token but impersonation was disabled."}'
    )
    challenge = (
        'Bearer realm="Protected by OAuth 2.0", error="invalid_token", error_description="Token is an impersonation"'
    )
    reply, _ = passage("/api/v4/user", answer=response(401, body, JSON, ("WWW-Authenticate", challenge)))
    assert (reply.status, reply.body) == (401, body)
    assert reply.value("WWW-Authenticate") == challenge
    assert "x-gateway-error" not in reply.names


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (403, b'{"message":"403 Forbidden - Must be admin to use sudo"}'),
        (403, b'{"error":"insufficient_scope","error_description":"The request requires higher ...","scope":"sudo"}'),
        (404, b'{"message":"404 User with ID or username \'nobody\' Not Found"}'),
    ],
)
def test_r19_sudo_errors_pass_octet_for_octet(passage: Passage, status: int, body: bytes) -> None:
    reply, received = passage("/api/v4/user", "Sudo: nobody", token=OWN_TOKEN, answer=response(status, body, JSON))
    assert (reply.status, reply.body) == (status, body)
    assert received.values("sudo") == [b"nobody"]


STATUSES = [
    200,
    201,
    202,
    301,
    302,
    400,
    401,
    403,
    404,
    405,
    409,
    410,
    412,
    413,
    415,
    416,
    418,
    422,
    429,
    500,
    501,
    502,
    503,
]


@pytest.mark.parametrize("status", [*STATUSES, 504, 520])
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_r21_each_status_passes_with_its_body(passage: Passage, status: int, method: str) -> None:
    body = b'{"message":"\xc3\xbc %d"}' % status
    reply, _ = passage(
        f"/api/v4/projects/1/x?{status}",
        method=method,
        body=b"" if method == "POST" else None,
        answer=response(status, body, ("Content-Type", "application/json; charset=utf-8")),
    )
    assert (reply.status, reply.body) == (status, body)
    assert reply.value("Content-Type") == "application/json; charset=utf-8"
    assert reply.value("Content-Length") == str(len(body))
    assert "x-gateway-error" not in reply.names


@pytest.mark.parametrize("status", [204, 304])
def test_r21_bodyless_statuses_have_no_body_and_no_length(passage: Passage, status: int) -> None:
    with Peer(passage.gateway.port) as peer:
        for _ in range(2):  # the second shows that the connection is in step
            passage.recorder.script(response(status, b"", ("ETag", '"x"')))
            peer.send(b'GET /api/v4/projects/1/x HTTP/1.1\r\nHost: x\r\nIf-None-Match: "x"\r\n\r\n')
            reply = peer.read_reply()
            assert reply.status == status
            assert not {"content-length", "transfer-encoding"} & reply.names


def test_r21_a_length_that_a_204_must_not_have_does_not_pass(passage: Passage) -> None:
    reply, _ = passage("/api/v4/projects/1/x", method="DELETE", answer=response(204, b"", ("Content-Length", "5")))
    assert (reply.status, reply.value("Content-Length"), reply.body) == (204, None, b"")


def test_r22_deletes_are_gitlabs_alone(gateway: GatewayProcess, passage: Passage) -> None:
    target = "/api/v4/projects/platform%2Fapi/issues"
    made = ask(gateway.port, f"{target}?title=x", method="POST", body=b"", token=TOKENS.ada)
    one = f"{target}/{json.loads(made.body)['iid']}"
    assert ask(gateway.port, one, method="DELETE", token=TOKENS.ada).status == 204
    assert ask(gateway.port, one, method="DELETE", token=TOKENS.ada).status == 404
    scheduled, _ = passage("/api/v4/projects/1", method="DELETE", answer=response(202, b'{"message":"202 Accepted"}'))
    assert scheduled.status == 202
    # An answer that never came is not asked for again: the first may have deleted already.
    lost, _ = passage("/api/v4/projects/1", method="DELETE", answer=Answer(then=Then.CLOSE))
    assert lost.status == 502
    assert len(passage.recorder.requests) == 2


def test_r23_304_with_weak_comparison_cached_or_not(gateway: GatewayProcess) -> None:
    target = "/api/v4/projects/platform%2Fapi/issues/2"
    etag = ask(gateway.port, target, token=TOKENS.ada).value("ETag")
    assert etag is not None
    assert etag.startswith("W/")
    fresh = "Cache-Control: no-cache"
    for fields in ((), (fresh,)):
        for validator in (etag, etag[2:], f'"other", {etag}', "*"):
            reply = ask(gateway.port, target, f"If-None-Match: {validator}", *fields, token=TOKENS.ada)
            assert (reply.status, reply.body, reply.value("ETag")) == (304, b"", etag), (validator, fields)
        assert ask(gateway.port, target, 'If-None-Match: "other"', *fields, token=TOKENS.ada).status == 200
    assert curl("-H", f"PRIVATE-TOKEN: {TOKENS.ada}", "-H", f"If-None-Match: {etag}", gateway.url + target).status == 304


def test_r24_if_unmodified_since_reaches_gitlab_and_412_comes_back(passage: Passage) -> None:
    for date in ("Sat, 01 Jan 2022 00:00:00 GMT", "2022-01-01T00:00:00Z"):
        reply, received = passage(
            "/api/v4/projects/1/issues/1",
            f"If-Unmodified-Since: {date}",
            method="DELETE",
            answer=response(412, b'{"message":"412 Precondition Failed"}', JSON),
        )
        assert reply.status == 412
        assert received.values("If-Unmodified-Since") == [date.encode()]


@pytest.mark.parametrize("status", [409, 422])
def test_r25_conflicts_pass_and_are_not_asked_again(passage: Passage, status: int) -> None:
    body = b'{"message":"409 Conflict: Resource lock"}'
    reply, _ = passage("/api/v4/projects", method="POST", body=b"x=1", answer=response(status, body, JSON))
    assert (reply.status, reply.body) == (status, body)
    assert len(passage.recorder.requests) == 1


def test_r27_gitlabs_500_passes_and_the_gateways_502_is_marked(passage: Passage) -> None:
    body = b'{"message":"500 Internal Server Error"}'
    assert passage("/api/v4/x", answer=response(500, body, JSON))[0].body == body
    reply, _ = passage("/api/v4/x", method="POST", body=b"", answer=Answer(then=Then.RESET))
    assert reply.status == 502
    assert json.loads(reply.body)["message"] == "502 Bad Gateway"
    assert reply.value("Content-Type") == "application/json"
    assert reply.value("X-Gateway-Error") == "upstream_reset"
    assert (reply.value("Proxy-Status") or "").startswith("gateway; error=")


def test_r29_following_next_visits_every_item_once(gateway: GatewayProcess, demo: DemoGitLab) -> None:
    target: str | None = "/api/v4/projects?per_page=7&order_by=id&sort=asc"
    seen = []
    while target is not None:
        reply = ask(gateway.port, target, token=TOKENS.ada)
        seen += [project["id"] for project in json.loads(reply.body)]
        links = dict(reversed(link.split("; ")) for link in (reply.value("Link") or "").split(", "))
        assert all(link.startswith(f"<{gateway.url}/api/v4/") for link in links.values())
        assert TOKENS.ada not in str(reply.fields)
        target = links['rel="next"'].strip("<>").removeprefix(gateway.url) if 'rel="next"' in links else None
    assert seen == list(range(1, 50))


def test_r29_links_hold_no_credential_of_the_query(gateway: GatewayProcess) -> None:
    target = f"/api/v4/projects?private_token={TOKENS.ada}&per_page=5"
    reply = ask(gateway.port, target)
    assert reply.status == 200
    assert f"{gateway.url}/api/v4/projects?per_page=5&page=2" in (reply.value("Link") or "")
    assert "token" not in (reply.value("Link") or "")


PAGES = [("X-Total", "2"), ("X-Total-Pages", "1"), ("X-Page", "1"), ("X-Per-Page", "20")]


def test_r30_pagination_fields_pass_empty_ones_too_and_from_the_cache(passage: Passage, gateway: GatewayProcess) -> None:
    fields = [*PAGES, ("X-Next-Page", ""), ("X-Prev-Page", ""), JSON, ("ETag", 'W/"r30"')]
    answer = response(200, b"[1,2]", *fields)
    live, _ = passage("/api/v4/projects?r30", token=OWN_TOKEN, answer=answer)
    # GitLab's 304 may leave them out: the entry's own are sent.
    cached, _ = passage("/api/v4/projects?r30", token=OWN_TOKEN, answer=response(304, b"", ("ETag", 'W/"r30"')))
    for reply in (live, cached):
        assert (reply.status, reply.body) == (200, b"[1,2]")
        for name, value in fields:
            assert reply.values(name) == [value], name


def test_r31_absent_totals_stay_absent(passage: Passage) -> None:
    reply, _ = passage("/api/v4/projects?r31", answer=response(200, b"[]", ("X-Next-Page", "2"), ("X-Page", "1")))
    assert not {"x-total", "x-total-pages"} & reply.names


@pytest.mark.parametrize("status", [400, 405])
def test_r33_too_far_an_offset_is_told_by_gitlab(passage: Passage, status: int) -> None:
    body = (
        b'{"error":"Offset pagination has a maximum allowed offset of 50000 for requests that return objects of type X."}'
    )
    reply, _ = passage("/api/v4/projects?page=60000", answer=response(status, body, JSON))
    assert (reply.status, reply.body) == (status, body)


def test_r34_head_goes_up_as_head(passage: Passage, gateway: GatewayProcess, demo: DemoGitLab) -> None:
    with Peer(passage.gateway.port) as peer:
        for _ in range(2):
            passage.recorder.script(Answer(b"HTTP/1.1 200 OK\r\nContent-Length: 4711\r\nX-Total: 3\r\n\r\n"))
            peer.send(b"HEAD /api/v4/projects/1/issues/1/notes?per_page=3&page=2 HTTP/1.1\r\nHost: x\r\n\r\n")
            reply = peer.read_reply("HEAD")
            assert (reply.value("Content-Length"), reply.value("X-Total")) == ("4711", "3")
            assert passage.recorder.requests[-1].method == b"HEAD"
    target = "/api/v4/projects/platform%2Fapi/repository/files/README.md?ref=main"
    head = curl("--head", "--header", f"PRIVATE-TOKEN: {TOKENS.ada}", gateway.url + target)
    assert head.value("X-Gitlab-File-Path") == "README.md"
    assert demo.journal[-1].method == "HEAD"


@pytest.mark.parametrize(
    "body",
    [
        b'{"message":"400 (Bad request) \\"title\\" not given"}',
        b'{"message":{"bio":["is too long (maximum is 255 characters)"]}}',
        b'{"message":{"name":["is invalid"],"embed-entity":{"x":["a","b"]}}}',
        b'{ "error" : "name is missing" }\n',
    ],
)
@pytest.mark.parametrize("method", ["POST", "PUT"])
def test_r50_validation_errors_pass_octet_for_octet(passage: Passage, body: bytes, method: str) -> None:
    reply, _ = passage("/api/v4/projects/1", method=method, body=b"", answer=response(400, body, JSON))
    assert (reply.status, reply.body) == (400, body)


def test_r51_unknown_route_is_gitlabs_to_answer(gateway: GatewayProcess) -> None:
    unknown = ask(gateway.port, "/api/v4/no/such/route", token=TOKENS.ada)
    assert (unknown.status, unknown.body) == (404, b'{"error":"404 Not Found"}')
    assert "x-gateway-error" not in unknown.names
    blocked = ask(gateway.port, "/api/v4/internal/allowed", token=TOKENS.ada)
    assert (blocked.status, blocked.body) == (404, b'{"error":"404 Not Found"}')
    assert blocked.value("X-Gateway-Error") == "blocked_route"


def test_r54_accept_and_content_types_pass(passage: Passage) -> None:
    reply, received = passage(
        "/api/v4/projects/1/jobs/1/trace",
        "Accept: text/plain;q=0.5, */*",
        answer=response(200, "Läuft\n".encode("latin-1"), ("Content-Type", "text/plain; charset=ISO-8859-1")),
    )
    assert received.values("Accept") == [b"text/plain;q=0.5, */*"]
    assert reply.value("Content-Type") == "text/plain; charset=ISO-8859-1"
    assert reply.body == "Läuft\n".encode("latin-1")
    assert "accept" not in {name.lower().decode() for name, _ in passage("/api/v4/projects?r54")[1].fields}


def test_r55_spam_errors_and_captcha_fields_pass(passage: Passage) -> None:
    for status, body in (
        (400, b'{"message":{"error":"Your issue has been recognized as spam and has been discarded."}}'),
        (409, b'{"needs_captcha_response":true,"spam_log_id":42,"captcha_site_key":"x","message":{"error":"..."}}'),
    ):
        reply, received = passage(
            "/api/v4/projects/1/issues?title=x",
            "X-GitLab-Captcha-Response: abc",
            "X-GitLab-Spam-Log-Id: 42",
            method="POST",
            body=b"",
            answer=response(status, body, JSON),
        )
        assert (reply.status, reply.body) == (status, body)
        assert received.values("X-GitLab-Captcha-Response") == [b"abc"]
        assert received.values("X-GitLab-Spam-Log-Id") == [b"42"]


def test_r61_v3_wording_and_410_pass(passage: Passage) -> None:
    for status, body in ((400, b'{"message":"400 (Bad request) \\"title\\" not given"}'), (410, b'{"error":"gone"}')):
        assert passage("/api/v3/projects", answer=response(status, body, JSON))[0].body == body


def test_x5_redirects_are_not_followed(passage: Passage) -> None:
    storage = "https://storage.example.com/bucket/a%2Fb?X-Amz-Signature=0123&x=%20y"
    for status in (301, 302, 303, 307, 308):
        reply, _ = passage("/api/v4/projects/1/jobs/1/artifacts", answer=response(status, b"moved", ("Location", storage)))
        assert (reply.status, reply.value("Location"), reply.body) == (status, storage, b"moved")
    moved = f"{EXTERNAL_URL}/api/v4/projects/2?x=%2F"
    reply, _ = passage("/api/v4/projects/a%2Fb", answer=response(301, b"", ("Location", moved)))
    assert reply.value("Location") == f"{passage.gateway.url}/api/v4/projects/2?x=%2F"


def test_x6_ranges_pass_and_are_not_cached(passage: Passage) -> None:
    for _ in range(2):
        reply, received = passage(
            "/api/v4/projects/1/repository/files/a/raw?ref=x6",
            "Range: bytes=0-3",
            "Accept-Encoding: gzip",
            token=OWN_TOKEN,
            answer=response(206, b"\x00\x01\x02\x03", ("Content-Range", "bytes 0-3/100"), ("ETag", '"x6"')),
        )
        assert received.values("Range") == [b"bytes=0-3"]
        assert (reply.status, reply.value("Content-Range"), reply.body) == (206, "bytes 0-3/100", b"\x00\x01\x02\x03")
        assert "content-encoding" not in reply.names


def test_x21_bad_validators_are_not_used(passage: Passage) -> None:
    """The same weak ETag for every delegated body, and a Last-Modified that is no date, revalidate nothing."""
    for target, fields in (
        ("/api/v4/projects/1/jobs/1/artifacts/a.bin", (("Content-Type", "application/octet-stream"), ("ETag", 'W/"same"'))),
        (
            "/api/v4/projects/1/packages/generic/a/1/b",
            (("Last-Modified", "0"), ("Content-Type", "application/octet-stream")),
        ),
        ("/api/v4/projects/1/repository/files/a/raw?x21", (("Content-Type", "text/plain"), ("ETag", 'W/"same"'))),
    ):
        for body in (b"first", b"second"):
            reply, received = passage(target, token=OWN_TOKEN, answer=response(200, body, *fields))
            assert reply.body == body
            assert not received.values("If-None-Match") + received.values("If-Modified-Since")
