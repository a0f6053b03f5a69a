"""What an admin key opens, where it exists, and what it says."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest

from gateway import routes
from gateway.app.admin_api import admin_endpoints
from gateway.app.limit_admin import LimitAdmin
from gateway.app.recent_requests import RecentRequests
from gateway.app.serving import serving
from gateway.config import compile as compiled
from gateway.core.admin_permission import Permission
from gateway.core.exchange import Exchange
from gateway.core.limit_plan import Limits, bucket_key
from gateway.core.limits import Take
from gateway.core.messages import ResponseHead
from gateway.edge.admin import AdminRequest, AdminResponse
from gateway.limit_stage import LimitStage
from gateway.pacing_stage import PacingStage
from gateway.stores.bucket_memory import MemoryBuckets
from tests.fakes.world import CONFIGURATION, configured
from tests.test_docs import every_endpoint

CATALOGUE = routes.catalogue()


@pytest.fixture
def ask(tmp_path: Path) -> Any:
    config = configured(CONFIGURATION, tmp_path)
    endpoints = {one.path: one.answer for one in admin_endpoints(config, CATALOGUE, None, None)}

    async def asked(path: str, **body: object) -> Any:
        answer: AdminResponse = await endpoints[path](AdminRequest("admin:x", "127.0.0.1", "POST", body=body))
        return msgspec.to_builtins(answer.body)

    return asked


async def test_an_allowed_request_is_explained_stage_by_stage(ask: Any) -> None:
    answer = await ask("/-/explain", identity="reader", method="GET", target="/api/v4/projects/1")
    assert answer["allowed"] is True
    assert "status" not in answer
    stages = [one["stage"] for one in answer["stages"]]
    assert stages[:3] == ["target", "operation", "principal"]
    assert {"permit", "credential", "limits", "cache", "upstream"} <= set(stages)


async def test_a_request_of_a_moment_ago_is_explained_by_its_id(tmp_path: Path) -> None:
    recent = RecentRequests()
    x = Exchange("r-7", 0.0, "DELETE", "192.0.2.1", target=b"/api/v4/projects/1", identity="reader", principal="reader")
    x.status, x.code, x.rule = 403, "forbidden", "reads"
    recent.observe(x, 0.1)
    recent.observe(Exchange("r-8", 0.0, "", "192.0.2.1", status=400, code="bad_request"), 0.1)
    config = configured(CONFIGURATION, tmp_path)
    endpoints = {one.path: one.answer for one in admin_endpoints(config, CATALOGUE, None, None, recent=recent)}

    async def ask(request_id: object) -> Any:
        asked = AdminRequest("admin:x", "", "POST", body={"request_id": request_id})
        return msgspec.to_builtins((await endpoints["/-/explain"](asked)).body)

    answer = await ask("r-7")
    assert (answer["request"]["status"], answer["request"]["rule"]) == (403, "reads")
    assert (answer["allowed"], answer["code"]) == (False, "forbidden")
    assert (await ask("r-8")) == {
        "request": {"request_id": "r-8", "operation": "other", "status": 400, "code": "bad_request"}
    }
    with pytest.raises(ValueError, match="not one of the last 2000"):
        await ask("r-9")
    with pytest.raises(ValueError, match="request_id"):
        await ask(7)


@pytest.mark.parametrize(
    ("asked", "status", "code"),
    [
        ({"identity": "reader", "method": "DELETE", "target": "/api/v4/projects/1"}, 403, "forbidden"),
        ({"identity": "nobody", "method": "GET", "target": "/api/v4/projects/1"}, 403, "forbidden"),
        ({"identity": "reader", "method": "GET", "target": "/api/v4/../x"}, 400, "bad_target"),
        ({"identity": "reader", "method": "BREW", "target": "/"}, 405, "method_not_allowed"),
    ],
    ids=["denied", "no rule", "ambiguous", "no method"],
)
async def test_a_denied_request_is_explained_with_its_answer(ask: Any, asked: Any, status: int, code: str) -> None:
    answer = await ask("/-/explain", **asked)
    assert (answer["allowed"], answer["status"], answer["code"]) == (False, status, code)
    assert answer["stages"]


async def test_an_explained_request_shows_its_buckets_as_they_are(tmp_path: Path) -> None:
    config = configured(CONFIGURATION, tmp_path)
    limits = Limits.compile(compiled.limits(config))
    stage = LimitStage(MemoryBuckets())
    pacing = PacingStage(stage, wall=lambda: 1_800_000_000.0)
    limit_admin = LimitAdmin(limits, stage, None, pacing=pacing)
    recent = RecentRequests()
    recent.observe(Exchange("r", 0.0, "GET", "192.0.2.1", b"/api/v4/user", identity="people", principal="user:8"), 0.1)
    made = admin_endpoints(config, CATALOGUE, limit_admin, None, recent=recent)
    endpoints = {one.path: one.answer for one in made}
    stage.settle([Take(bucket_key("caller", "reader"), limits.limits[0], 100.0)])
    pacing.learn("sa", ResponseHead(429, ((b"Retry-After", b"17"),)))

    async def live(**asked: object) -> list[str]:
        body = {"identity": "reader", "method": "GET", "target": "/api/v4/projects/1", **asked}
        if "request_id" in asked:
            body = asked
        answer: Any = msgspec.to_builtins(
            (await endpoints["/-/explain"](AdminRequest("admin:x", "", "POST", body=body))).body
        )
        return [one["said"] for one in answer["stages"] if one["stage"] in {"bucket", "pace", "levels"}]

    bucket, pace = await live()
    assert bucket.startswith("caller of reader: -")
    assert "would refuse, for 5" in bucket
    assert pace == "GitLab throttles `sa`: it is not used for 17 s"
    assert await live(identity="people", caller="user:7") == ["caller of user:7: 50 of 50 left"]
    assert await live(request_id="r") == ["caller of user:8: 50 of 50 left"]
    assert await live(method="DELETE") == []
    with pytest.raises(ValueError, match="caller"):
        await live(caller="x" * 257)


async def test_what_is_explained_shows_no_token_of_the_target(ask: Any) -> None:
    target = "/api/v4/projects?private_token=glpat-Secret0123456789abc"
    assert "Secret0123" not in str(await ask("/-/explain", identity="people", method="GET", target=target))


@pytest.mark.parametrize(
    "asked",
    [
        {"identity": "ghost", "method": "GET", "target": "/"},
        {"identity": "reader", "method": "GET", "target": "/" + "x" * 16_384},
        {"identity": "reader", "method": "GET"},
        {"identity": "reader", "method": "GET", "target": "/", "as": "root"},
    ],
    ids=["unknown", "too long", "too little", "too much"],
)
async def test_what_makes_no_sense_is_refused(ask: Any, asked: Any) -> None:
    with pytest.raises((ValueError, msgspec.ValidationError)):
        await ask("/-/explain", **asked)


async def test_the_configuration_is_shown_without_secrets(ask: Any) -> None:
    answer = str(await ask("/-/config"))
    assert "gitlab.test" in answer
    assert "glpat-" not in answer


def test_a_plain_shared_cache_has_nothing_to_explain(tmp_path: Path) -> None:
    text = 'version: 1\nupstream: {url: "http://gitlab.test"}\ncache: {mode: shared}\n'
    paths = [one.path for one in admin_endpoints(configured(text, tmp_path), CATALOGUE, None, None)]
    assert paths == ["/-/config"]


# Permissions

OPENED_BY = {
    "GET /-/config": {"read"},
    "POST /-/explain": {"explain"},
    "GET /-/limits/top": {"read", "limits"},
    "POST /-/limits": {"limits"},
    "GET /-/credentials": {"read", "credentials"},
    "POST /-/credentials/rotate": {"credentials"},
    "GET /-/keys": {"read", "keys"},
    "POST /-/keys": {"keys"},
    "POST /-/keys/import": {"keys"},
    "GET /-/keys/{id}": {"read", "keys"},
    "POST /-/keys/{id}/rotate": {"keys"},
    "DELETE /-/keys/{id}": {"keys"},
}


def test_each_endpoint_needs_what_is_written_here() -> None:
    assert {f"{one.method} {one.path}": {str(each) for each in one.needs} for one in every_endpoint()} == OPENED_BY


async def test_each_key_opens_what_it_may_and_nothing_else(tmp_path: Path) -> None:
    """At the port as it is put together from a configuration: each endpoint, with a key for each permission."""
    keys = {word: f"an-admin-key-that-may-{word}" for word in Permission}
    written = ", ".join(
        f"{{id: {word}, sha256: {hashlib.sha256(key.encode()).hexdigest()}, may: [{word}]}}" for word, key in keys.items()
    )
    everything = "an-admin-key-that-may-do-everything"
    listen = 'listen: {address: "127.0.0.1:0", admin: "127.0.0.1:0"}\n'
    admin = f"admin: {{keys: [{written}, {{id: ops, sha256: {hashlib.sha256(everything.encode()).hexdigest()}}}]}}\n"
    async with (
        serving(
            configured(CONFIGURATION.replace("http://gitlab.test", "http://127.0.0.1:9") + listen + admin, tmp_path)
        ) as started,
        aiohttp.ClientSession(f"http://{started.admin_place}") as session,
    ):
        for name, opened_by in OPENED_BY.items():
            method, path = name.replace("{id}", "key_0123456789ab").split()

            async def ask(key: str, method: str = method, path: str = path) -> tuple[int, str]:
                async with session.request(
                    method, path, data=b"{}", headers={"PRIVATE-TOKEN": key, "Content-Type": "application/json"}
                ) as response:
                    return response.status, await response.text()

            opened = (await ask(everything))[0]
            assert opened in {200, 400, 404}, name
            for word, key in keys.items():
                status, text = await ask(key)
                assert status == (opened if word in opened_by else 403), (name, word)
                if word not in opened_by:
                    assert f"the admin key `{word}` lacks the permission" in text
            assert (await ask("another"))[0] == 401
