"""The admin port: what anybody may read there, what needs a key, and what does not exist."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import json
import logging
import socket
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from http import HTTPStatus
from typing import Any

import aiohttp
import msgspec
import pytest
from aiohttp import web
from pytest_aiohttp.plugin import AiohttpClient

from gateway.core.admin_permission import Permission
from gateway.edge.admin import (
    BODY_TIMEOUT_S,
    Admin,
    AdminKey,
    AdminRefused,
    AdminRequest,
    AdminResponse,
    AdminServer,
    AdminSettings,
    Endpoint,
    Readiness,
)

KEY = "an-admin-key-of-some-length"
HASH = hashlib.sha256(KEY.encode()).digest()
OPS = AdminKey("ops", HASH, frozenset(Permission))
READY = Readiness(True, {"traffic": "ok"})


def admin(
    *,
    keys: tuple[AdminKey, ...] = (OPS,),
    ready: Readiness = READY,
    exposition: bytes | AdminRefused = b"gitlab_gateway_up 1\n",
    body_s: float = BODY_TIMEOUT_S,
    monotonic: Callable[[], float] = lambda: 50.0,
    refusals: Counter[int] | None = None,
) -> Admin:
    async def metrics() -> bytes:
        if isinstance(exposition, AdminRefused):
            raise exposition
        return exposition

    async def readiness() -> Readiness:
        return ready

    return Admin(
        AdminSettings(keys, frozenset({"admin.example"})),
        metrics=metrics,
        metrics_type="text/plain; version=0.0.4; charset=utf-8",
        readiness=readiness,
        endpoints=(
            Endpoint("GET", "/-/config", config, (Permission.READ, Permission.KEYS), frozenset({"part"})),
            Endpoint("POST", "/-/things/{id}", change, (Permission.KEYS,)),
            Endpoint("DELETE", "/-/things/{id}", forget, (Permission.KEYS,)),
        ),
        refusals=refusals,
        monotonic=monotonic,
        body_s=body_s,
    )


async def config(_: AdminRequest) -> AdminResponse:
    return AdminResponse({"upstream": {"url": "https://gitlab.example"}})


async def change(request: AdminRequest) -> AdminResponse:
    if request.body == {"raise": "value"}:
        raise ValueError("makes no sense")
    if request.body == {"raise": "refused"}:
        raise AdminRefused(409, "there is one already")
    return AdminResponse(msgspec.to_builtins(request), 201)


async def forget(_: AdminRequest) -> AdminResponse:
    return AdminResponse(None, 204)


Ask = Callable[..., Any]


@pytest.fixture
def ask(aiohttp_client: AiohttpClient) -> Ask:
    async def request(
        path: str, made: Admin | None = None, method: str = "GET", body: bytes | None = None, **fields: str
    ) -> tuple[int, str, aiohttp.ClientResponse]:
        client = await aiohttp_client((made or admin()).application())
        headers = {name.replace("_", "-"): value for name, value in fields.items()}
        async with client.request(method, path, headers=headers, data=body) as response:
            text = await response.text()
            assert response.headers["X-Content-Type-Options"] == "nosniff"
            assert response.headers["Cache-Control"] == "no-store"
            assert not [name for name in response.headers if name.lower().startswith("access-control")]
            return response.status, text, response

    return request


async def test_metrics(ask: Ask) -> None:
    status, text, response = await ask("/metrics")
    assert (status, text) == (200, "gitlab_gateway_up 1\n")
    assert response.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"


async def test_metrics_that_cannot_be_told(aiohttp_client: AiohttpClient) -> None:
    client = await aiohttp_client(admin(exposition=AdminRefused(503, "nobody answers")).application())
    response = await client.get("/metrics")
    assert (response.status, await response.json()) == (503, {"message": "nobody answers"})


async def test_a_large_exposition_leaves_turns_to_others(
    aiohttp_client: AiohttpClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = b"".join(b'gitlab_gateway_things_total{number="%d"} 1.0\n' % number for number in range(20_000))
    written: list[int] = []
    turns = 0
    real = web.StreamResponse.write

    async def write(self: web.StreamResponse, data: bytes) -> None:
        written.append(turns)
        await real(self, data)

    async def tick() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    monkeypatch.setattr(web.StreamResponse, "write", write)
    client = await aiohttp_client(admin(exposition=text).application())
    ticking = asyncio.ensure_future(tick())
    response = await client.get("/metrics")
    assert await response.read() == text
    ticking.cancel()
    assert response.headers["Content-Length"] == str(len(text))
    assert len(written) > 10
    assert all(later > earlier for earlier, later in itertools.pairwise(written))
    response = await client.head("/metrics")
    assert (await response.read(), response.headers["Content-Length"]) == (b"", str(len(text)))


async def test_livez(ask: Ask) -> None:
    assert (await ask("/livez"))[:2] == (200, "ok\n")


@pytest.mark.parametrize(("ready", "status"), [(True, 200), (False, 503)])
async def test_readyz(ask: Ask, ready: bool, status: int) -> None:
    got, _, response = await ask("/readyz", admin(ready=Readiness(ready, {"upstream": "degraded: breaker open"})))
    assert got == status
    assert await response.json() == {"ready": ready, "checks": {"upstream": "degraded: breaker open"}}


@pytest.mark.parametrize("value", ["", "Bearer", "Bearer ", "Bearer wrong", f"Basic {KEY}", KEY, f"Bearer {KEY}x"])
async def test_the_configuration_needs_a_key(ask: Ask, value: str) -> None:
    status, text, response = await ask("/-/config", Authorization=value)
    assert (status, text) == (401, '{"message":"401 Unauthorized"}\n')
    assert response.headers["WWW-Authenticate"] == 'Bearer realm="gateway admin"'


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER"])
async def test_with_a_key_the_configuration_is_told(ask: Ask, scheme: str) -> None:
    keys = (AdminKey("another", hashlib.sha256(b"another").digest(), frozenset(Permission)), OPS)
    status, text, _ = await ask("/-/config", admin(keys=keys), Authorization=f"{scheme} {KEY}")
    assert (status, text) == (200, '{"upstream":{"url":"https://gitlab.example"}}\n')


async def test_the_key_may_come_as_a_private_token(ask: Ask) -> None:
    assert (await ask("/-/config", PRIVATE_TOKEN=KEY))[0] == 200
    assert (await ask("/-/config", PRIVATE_TOKEN=f"Bearer {KEY}"))[0] == 401
    status, text, _ = await ask(
        "/-/things/1", method="POST", body=b"{}", PRIVATE_TOKEN=KEY, Content_Type="application/json"
    )
    assert (status, json.loads(text)["who"]) == (201, f"admin:{HASH.hex()[:12]}")


@pytest.mark.parametrize("other", ["wrong", KEY])
async def test_two_keys_are_none(ask: Ask, other: str) -> None:
    assert (await ask("/-/config", PRIVATE_TOKEN=other, Authorization=f"Bearer {KEY}"))[0] == 401


async def test_without_configured_keys_there_is_nothing_to_open(ask: Ask) -> None:
    for value in ("", f"Bearer {KEY}", "Bearer "):
        assert (await ask("/-/config", admin(keys=()), Authorization=value))[0] == 404


async def test_unknown_protected_paths_are_no_oracle(ask: Ask) -> None:
    assert (await ask("/-/keys"))[0] == 401
    assert (await ask("/-/keys", Authorization=f"Bearer {KEY}"))[0] == 404


@pytest.mark.parametrize("path", ["/", "/nothing", "/api/v4/projects", "/metrics/../-/config", "/%2d/config"])
async def test_nothing_else_is_there(ask: Ask, path: str) -> None:
    assert (await ask(path))[0] in {401, 404}


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS"])
async def test_reading_is_all_one_may_do(ask: Ask, method: str) -> None:
    status, _, response = await ask("/metrics", method=method)
    assert status == 405
    assert response.headers["Allow"] == "GET,HEAD"


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1:9901", 200),
        ("localhost", 200),
        ("LOCALHOST:1", 200),
        ("[::1]:9901", 200),
        ("admin.example:9901", 200),
        ("ADMIN.example", 200),
        ("evil.example", 421),
        ("127.0.0.1.evil.example", 421),
        ("localhost.evil.example:9901", 421),
        ("", 421),
    ],
)
async def test_only_its_own_names_are_answered(ask: Ask, host: str, status: int) -> None:
    """A page that rebinds its name to this address still sends its own Host."""
    assert (await ask("/livez", Host=host))[0] == status


# Endpoints

JSON = {"Authorization": f"Bearer {KEY}", "Content_Type": "application/json"}


async def test_an_endpoint_hears_who_asks_for_what(ask: Ask) -> None:
    status, text, _ = await ask("/-/things/a%2Fb", method="POST", body=b'{"wish": [1]}', **JSON)
    assert status == 201
    assert json.loads(text) == {
        "who": f"admin:{HASH.hex()[:12]}",
        "peer": "127.0.0.1",
        "method": "POST",
        "names": {"id": "a/b"},
        "query": {},
        "body": {"wish": [1]},
        "identities": None,
    }


async def test_an_answer_without_a_body(ask: Ask) -> None:
    status, text, _ = await ask("/-/things/1", method="DELETE", **JSON)
    assert (status, text) == (204, "")


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        (b'{"raise": "value"}', 400, "makes no sense"),
        (b'{"raise": "refused"}', 409, "there is one already"),
        (b"", 400, "the body is not a JSON object"),
        (b"[]", 400, "the body is not a JSON object"),
        (b"{", 400, "the body is not a JSON object"),
        (b'{"a": "\xff"}', 400, "the body is not a JSON object"),
        (b'{"a":' + b"[" * 30_000 + b"]" * 30_000 + b"}", 400, "the body is not a JSON object"),
        (b'{"a": "' + b"x" * (64 << 10) + b'"}', 413, f"413 {HTTPStatus(413).phrase}"),
    ],
    ids=["ValueError", "refused", "empty", "list", "cut", "no text", "deep", "large"],
)
async def test_what_cannot_be_done_is_told(ask: Ask, body: bytes, status: int, message: str) -> None:
    got, text, _ = await ask("/-/things/1", method="POST", body=body, **JSON)
    assert (got, json.loads(text)) == (status, {"message": message})


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""])
async def test_a_body_is_json_or_nothing(ask: Ask, kind: str) -> None:
    """A page can make a browser send forms and plain text to an address it cannot read; JSON needs a preflight."""
    fields = {**JSON, "Content_Type": kind}
    assert (await ask("/-/things/1", method="POST", body=b"{}", **fields))[0] == 415


@pytest.mark.parametrize("query", ["?other=1", "?part=1&part=2", "?part"])
async def test_parameters_are_known_and_stand_once(ask: Ask, query: str) -> None:
    status, _, _ = await ask(f"/-/config{query}", **JSON)
    assert status == (200 if query == "?part" else 400)


async def test_an_endpoint_has_its_methods_and_no_others(ask: Ask) -> None:
    status, _, response = await ask("/-/things/1", method="PUT", **JSON)
    assert (status, response.headers["Allow"]) == (405, "DELETE,POST")


async def test_wrong_keys_are_limited_by_address_and_the_right_one_never(
    aiohttp_client: AiohttpClient, caplog: pytest.LogCaptureFixture
) -> None:
    refusals, now = Counter[int](), [0.0]
    client = await aiohttp_client(admin(refusals=refusals, monotonic=lambda: now[0]).application())
    got = []
    for _ in range(22):
        async with client.get("/-/config", headers={"Authorization": "Bearer wrong"}) as response:
            got.append(response.status)
    assert got == [401] * 20 + [429] * 2
    assert response.headers["Retry-After"] == "3"
    async with client.get("/-/config", headers={"Authorization": f"Bearer {KEY}"}) as response:
        assert response.status == 200
    async with client.get("/livez") as response:
        assert response.status == 200
    assert refusals == {401: 20, 429: 2}
    for _ in range(9):  # one guess every three seconds is let through
        now[0] += 3.0
        async with client.get("/-/config", headers={"Authorization": "Bearer wrong"}) as response:
            assert response.status == 401
    (line,) = caplog.messages
    assert line == "127.0.0.1 asks the admin port again and again without a valid key, and gets 429"


async def test_who_may_not_ask_is_counted(aiohttp_client: AiohttpClient) -> None:
    refusals = Counter[int]()
    client = await aiohttp_client(admin(keys=keys_of(Permission.LIMITS), refusals=refusals).application())
    for headers in ({"PRIVATE-TOKEN": KEY}, {}, {"Host": "evil.example"}):
        async with client.get("/-/config", headers=headers):
            pass
    async with client.get("/-/nothing", headers={"PRIVATE-TOKEN": KEY}) as response:
        assert response.status == 404
    assert refusals == {403: 1, 401: 1, 421: 1}, "what else goes wrong is no question of who asks"


# Permissions


def keys_of(*may: Permission) -> tuple[AdminKey, ...]:
    return (AdminKey("wall", HASH, frozenset(may)),)


FORBIDDEN = '{"message":"403 Forbidden: the admin key `wall` lacks the permission %s (`admin.keys[].may`)"}\n'


@pytest.mark.parametrize("permission", Permission)
async def test_a_key_opens_what_it_may_and_is_told_what_it_lacks(ask: Ask, permission: Permission) -> None:
    made = admin(keys=keys_of(permission))
    seen = await ask("/-/config", made, **JSON)
    changed = await ask("/-/things/1", made, method="POST", body=b"{}", **JSON)
    if permission in {Permission.READ, Permission.KEYS}:
        assert seen[0] == 200
    else:
        assert seen[:2] == (403, FORBIDDEN % "`read` or `keys`")
    assert (changed[0] == 201) is (permission is Permission.KEYS)
    if permission is not Permission.KEYS:
        assert changed[:2] == (403, FORBIDDEN % "`keys`")


def test_an_endpoint_without_a_permission_cannot_be_built() -> None:
    with pytest.raises(TypeError, match="needs"):
        Endpoint("GET", "/-/x", config)  # type: ignore[call-arg]  # which is what the test is about
    with pytest.raises(ValueError, match="GET /-/x names no permission"):
        Endpoint("GET", "/-/x", config, ())


@pytest.mark.parametrize(
    ("body", "fields"),
    [(b"{", {}), (b"x" * (65 << 10), {}), (b"{}", {"Content_Type": "text/plain"})],
    ids=["no JSON", "large", "no type"],
)
async def test_nothing_is_read_for_a_key_that_may_not(ask: Ask, body: bytes, fields: dict[str, str]) -> None:
    made = admin(keys=keys_of(Permission.READ))
    assert (await ask("/-/things/1?x=1", made, method="POST", body=body, **{**JSON, **fields}))[0] == 403


async def test_what_is_not_there_is_not_forbidden(ask: Ask) -> None:
    made = admin(keys=keys_of(Permission.READ))
    assert (await ask("/-/nothing", made, **JSON))[0] == 404
    for method in ("PUT", "HEAD", "OPTIONS", "GET"):
        status, _, response = await ask("/-/things/1", made, method=method, **JSON)
        assert (status, response.headers["Allow"]) == (405, "DELETE,POST")
    for path in ("/metrics", "/livez", "/readyz"):
        assert (await ask(path, made, **JSON))[0] == 200


async def test_a_key_that_may_not_is_no_wrong_key(aiohttp_client: AiohttpClient) -> None:
    client = await aiohttp_client(admin(keys=keys_of(Permission.LIMITS)).application())

    async def status(key: str) -> int:
        async with client.get("/-/config", headers={"PRIVATE-TOKEN": key}) as response:
            assert "WWW-Authenticate" not in response.headers or response.status == 401
            return response.status

    assert {await status(KEY) for _ in range(50)} == {403}
    assert [await status("wrong") for _ in range(21)] == [401] * 20 + [429]
    assert await status(KEY) == 403


async def test_what_a_key_may_not_is_logged_once_a_minute(
    aiohttp_client: AiohttpClient, caplog: pytest.LogCaptureFixture
) -> None:
    now = 50.0
    client = await aiohttp_client(admin(keys=keys_of(Permission.EXPLAIN), monotonic=lambda: now).application())

    async def ask(method: str, path: str) -> list[str]:
        caplog.clear()
        async with client.request(method, path, headers={"PRIVATE-TOKEN": KEY}) as response:
            assert response.status == 403
        return [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]

    where = f"admin:{HASH.hex()[:12]}, key `wall`, from 127.0.0.1: refused"
    assert await ask("DELETE", "/-/things/1") == [f"{where} DELETE /-/things/{{id}}, lacks the permission `keys`"]
    assert await ask("DELETE", "/-/things/2") == []
    assert await ask("GET", "/-/config") == [f"{where} GET /-/config, lacks the permission `read` or `keys`"]
    now += 59.9
    assert await ask("DELETE", "/-/things/1") == []
    now += 0.1
    assert len(await ask("DELETE", "/-/things/1")) == 1


@asynccontextmanager
async def listening() -> AsyncIterator[tuple[str, int]]:
    server = AdminServer(admin())
    try:
        yield await server.listen("127.0.0.1", 0)
    finally:
        await server.close()


async def test_the_port_opens_and_closes() -> None:
    async with aiohttp.ClientSession() as session:
        async with listening() as (host, port), session.get(f"http://{host}:{port}/livez") as response:
            assert response.status == 200
        with pytest.raises(aiohttp.ClientConnectorError):
            await session.get(f"http://{host}:{port}/livez")


@pytest.mark.parametrize("coding", ["gzip", "deflate", "br", "zstd"])
async def test_a_coded_body_is_no_json(coding: str) -> None:
    """Told as everything else is: aiohttp would decode it first, and answer in its own words what it can't."""
    fields = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json", "Content-Encoding": coding}
    async with listening() as (host, port), aiohttp.ClientSession() as session:
        for key, status in ((KEY, 400), ("other", 401)):
            given = {**fields, "Authorization": f"Bearer {key}"}
            async with session.post(f"http://{host}:{port}/-/things/1", data=b"abc", headers=given) as response:
                assert response.status == status
                assert (await response.json())["message"] in {"the body is not a JSON object", "401 Unauthorized"}


_HALF_A_BODY = (
    f"POST /-/things/1 HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {KEY}\r\n"
    "Content-Type: application/json\r\nContent-Length: 20\r\n\r\n{"
).encode()


async def test_a_body_that_does_not_come_is_not_waited_for() -> None:
    server = AdminServer(admin(body_s=0.01))
    try:
        reader, writer = await asyncio.open_connection(*await server.listen("127.0.0.1", 0))
        writer.write(_HALF_A_BODY)
        head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 408 ")
        assert b"\r\nConnection: close\r\n" in head
        writer.close()
    finally:
        await server.close()


async def test_who_does_not_go_on_does_not_keep_the_port_open() -> None:
    """A gateway that is told to go must go: whoever waits for it gives it a minute at most."""
    server = AdminServer(admin(), shutdown_timeout_s=0.01)
    reader, writer = await asyncio.open_connection(*await server.listen("127.0.0.1", 0))
    writer.write(_HALF_A_BODY)
    host, port = writer.get_extra_info("peername")
    async with aiohttp.ClientSession() as session, session.get(f"http://{host}:{port}/livez") as response:
        assert response.status == 200  # what was sent before has arrived
    async with asyncio.timeout(30):
        await server.close()
    assert await reader.read() == b""
    writer.close()


async def test_it_may_stop_accepting_and_answer_each_connection_once_more() -> None:
    server = AdminServer(admin())
    try:
        host, port = await server.listen("127.0.0.1", 0)
        reader, writer = await asyncio.open_connection(host, port)
        async with aiohttp.ClientSession() as session:
            async with session.get(f"http://{host}:{port}/livez") as response:
                assert await response.read()
                assert "Connection" not in response.headers
            await server.stop_accepting()
            async with session.get(f"http://{host}:{port}/livez") as response:
                assert (response.status, response.headers["Connection"]) == (200, "close")
                await response.read()
            with pytest.raises(aiohttp.ClientConnectorError):
                await session.get(f"http://{host}:{port}/livez")
        writer.write(b"GET /livez HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        assert (await reader.read()).startswith(b"HTTP/1.1 200 ")  # and its end
        writer.close()
    finally:
        await server.close()


async def test_it_listens_where_somebody_else_has_bound() -> None:
    with socket.create_server(("127.0.0.1", 0)) as bound:
        server = AdminServer(admin())
        try:
            place = await server.listen(None, 0, [bound.dup()])
            assert place == bound.getsockname()
            async with aiohttp.ClientSession() as session, session.get(f"http://127.0.0.1:{place[1]}/livez") as response:
                assert response.status == 200
        finally:
            await server.close()
