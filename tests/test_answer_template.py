"""Answers of one form, told out of the first: octet for octet and fact for fact what the stages make of each by itself."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from functools import partial
from pathlib import Path

import pytest

from gateway.core.messages import Fields, ResponseHead
from gateway.forward_lane import LaneRequest
from gateway.ports import UpstreamRequest
from gateway.reply import Reply
from gateway.upstream.head_forms import HeadForms
from tests.fakes.port import LiveWorld, port
from tests.fakes.world import OWN
from tests.test_forward_lane import PAGES, facts, learn, quiet, said, until


@pytest.fixture
async def at(tmp_path: Path) -> AsyncIterator[LiveWorld]:
    async with port(tmp_path) as one:
        await learn(one)
        yield one


class GitLab:
    """Answers page for page, in one form; ``formed``: as a connection that knows it."""

    def __init__(self, *, common: Fields = (), own: tuple[tuple[bytes, bytes], ...] = (), body: bytes = b"[]") -> None:
        self.common = ((b"Content-Type", b"application/json"), (b"Vary", b"Origin, Accept-Language"), *common)
        self.own = own
        self.body = body
        self.formed = True
        self._forms = HeadForms()

    async def __call__(self, request: UpstreamRequest, octets: bytes) -> Reply:
        page = request.target.rpartition(b"=")[2]
        body = self.body + b" " * int(page)
        fields = (
            *self.common,
            *((name, value.replace(b"@", page)) for name, value in self.own),
            (b"Content-Length", b"%d" % len(body)),
        )
        head = b"\r\n".join([b"HTTP/1.1 200 OK", *(b"%b: %b" % field for field in fields)])
        found = self._forms.read(head)
        if found is None:
            self._forms.learn(head, fields, b"OK")
        elif self.formed:
            return Reply(None, body, form=found[0], values=found[1])
        return Reply(ResponseHead(200, fields, b"OK"), whole=body)


ETAG = (b"Etag", b'W/"@"')
LINK = (b"Link", b'<http://gitlab.test/api/v4/projects/1/issues?page=@>; rel="next", <https://else.where/@>; rel="last"')
SHAPES: dict[str, Callable[[], GitLab]] = {
    "a list": partial(GitLab, own=(ETAG, LINK, (b"X-Total", b"7"), (b"X-Next-Page", b""))),
    "dated": partial(GitLab, own=((b"Date", b"Sat, 21 Nov 2026 01:42:06 GMT"), ETAG)),
    "with GitLab's own limits": partial(
        GitLab,
        common=((b"RateLimit-Limit", b"10"),),
        own=(ETAG, (b"RateLimit-Remaining", b"@"), (b"RateLimit-Reset", b"1900000000")),
    ),
    "with names of its own": partial(
        GitLab,
        own=(ETAG, (b"X-Request-Id", b"01HF@"), (b"X-Runtime", b"0.0@"), (b"X-Gitlab-Meta", b'{"correlation_id":"@"}')),
    ),
    "not to be stored": partial(GitLab, common=((b"Cache-Control", b"no-store"),), own=(ETAG,)),
    "nothing to store": partial(GitLab, common=((b"Content-Disposition", b"attachment"),), own=(ETAG,)),
    "an Etag that is none": partial(GitLab, own=((b"Etag", b"@"),)),
    "no Etag": partial(GitLab, own=((b"Etag", b""),)),
    "fields that stay here": partial(
        GitLab, common=((b"Server", b"nginx"), (b"Keep-Alive", b"5"), (b"Connection", b"keep-alive"))
    ),
    "percent": partial(GitLab, common=((b"X-%b", b"100%d %%"),), own=(ETAG,)),
    "large": partial(GitLab, own=(ETAG,), body=b"[" + b"1," * 30_000 + b"1]"),
}


@pytest.mark.parametrize("caller", ["reader", OWN])
@pytest.mark.parametrize("name", SHAPES)
async def test_it_says_what_the_stages_say(at: LiveWorld, caller: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if caller == OWN:
        await learn(at, caller)
    gitlab = at.made.up.answer = SHAPES[name]()
    likewise = _watched(monkeypatch)
    for page in (2, 3, 4, 5):
        await said(at, page, caller)
    # A caller of his own is told the stricter of two limits: these are weighed each time.
    weighed = name == "with GitLab's own limits" and caller == OWN
    assert likewise.count(True) == (0 if weighed else 1)
    told, seen, stored = [], [], []
    for formed in (True, False):
        gitlab.formed = formed
        at.made.seen.exchanges.clear()
        at.made.calls.clear()
        likewise.clear()
        store = at.made.made.cache_assembly.memory
        assert store is not None
        store._slots.clear(), store._small.clear(), store._main.clear(), store._ghosts.clear()
        told.append(await said(at, 17, caller))
        await until(lambda: bool(at.made.seen.exchanges) and quiet(at))
        assert at.forwarded, at.made.calls
        assert likewise == ([True] if formed and not weighed else [])
        seen.append(facts(at))
        stored.append([slot.materialise()[0] for slot in store._slots.values()])
        for one in stored[-1]:
            assert len(one.body) == len(gitlab.body) + 17
            (slot,) = store._slots.values()
            assert slot.size == len(slot.key) + one.size_bytes
    assert told[0] == told[1]
    assert seen[0] == seen[1]
    assert [_timeless(one) for one in stored[0]] == [_timeless(one) for one in stored[1]]


def _timeless(entry: object) -> list[object]:
    return [getattr(entry, name) for name in entry.__struct_fields__ if name != "received_at"]  # type: ignore[attr-defined]


def _watched(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether each attempt came to an answer."""
    came: list[bool] = []
    by_template = LaneRequest._render_by_template

    def watched(self: LaneRequest, *given: object) -> bytes | None:
        octets = by_template(self, *given)  # type: ignore[arg-type]
        came.append(octets is not None)
        return octets

    monkeypatch.setattr(LaneRequest, "_render_by_template", watched)
    return came


async def test_what_it_stored_is_a_hit(at: LiveWorld) -> None:
    at.made.up.answer = SHAPES["a list"]()
    for page in (2, 3, 4, 5):
        await at.ask(PAGES % page, caller="reader")
    at.made.up.requests.clear()
    _, fields, body = await at.ask(PAGES % 5, caller="reader")
    assert (fields[b"Etag"], body) == (b'W/"5"', b"[]     ")
    assert at.made.last.cache_status == "hit"
    assert b"git.example.com" in fields[b"Link"]
    assert at.made.up.requests == []


async def test_names_learnt_meanwhile_are_found_out_anew(at: LiveWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    at.made.up.answer = SHAPES["a list"]()
    likewise = _watched(monkeypatch)
    for page in (2, 3, 4, 5):
        await at.ask(PAGES % page, caller="reader")
    assert likewise == [True]
    names = at.made.made.cache_assembly.cache._tagging.names  # type: ignore[attr-defined]
    names.learn(b"1", b"platform/renamed")
    for page in (6, 7, 8, 9):
        assert (await at.ask(PAGES % page, caller="reader"))[0] == 200
    assert likewise == [True] * 5, "found out anew; what their answers have in common is not of names"


async def test_a_fault_is_logged_and_the_road_answers(
    at: LiveWorld, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    at.made.up.answer = SHAPES["a list"]()
    for page in (2, 3, 4, 5):
        await at.ask(PAGES % page, caller="reader")
    monkeypatch.setattr("gateway.answer_template.AnswerTemplate.render", lambda *_: 1 / 0)
    assert (await at.ask(PAGES % 6, caller="reader"))[0] == 200
    assert "fault in the forward lane" in caplog.text
    assert at.made.last.observer_memo is None
    assert quiet(at)


async def test_a_write_that_overtakes_it_keeps_it_out_of_the_cache(at: LiveWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    gitlab = at.made.up.answer = SHAPES["a list"]()
    for page in (2, 3, 4, 5):
        await at.ask(PAGES % page, caller="reader")
    likewise = _watched(monkeypatch)
    store = at.made.made.cache_assembly.memory
    assert store is not None

    async def overtaken(request: UpstreamRequest, octets: bytes) -> Reply:
        tags = next(iter(store._slots.values())).tags
        store.purge_now(tags)
        return await gitlab(request, octets)

    at.made.up.answer = overtaken
    _, fields, _ = await at.ask(PAGES % 6, caller="reader")
    assert likewise == [True]
    assert at.made.last.cache_stored == "invalidated"
    assert b"fwd=uri-miss" in fields[b"Cache-Status"]
    assert b"stored" not in fields[b"Cache-Status"].replace(b"stored=?0", b"")
    at.made.up.answer = gitlab
    await at.ask(PAGES % 6, caller="reader")
    assert at.made.last.cache_status == "miss"
