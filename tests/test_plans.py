"""A plan brings what the whole road would: through a real connection and real stages, and only for requests of one kind."""

from __future__ import annotations

import copy
import functools
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from gateway.core.access import Permit, Principal, PrincipalKind
from gateway.core.catalogue import Access, Operation, Surface
from gateway.core.credentials import Claim, CredentialKind, read_claim
from gateway.core.exchange import Exchange
from gateway.core.immutable import is_immutable
from gateway.core.messages import Fields, RequestHead
from gateway.core.request_validation import AdmittedRequest
from gateway.core.rule_match import named_places_key
from gateway.core.secret import Secret
from gateway.core.target import parse_target
from gateway.plans import _LIST_PARAMETERS, Plans, admitted_for
from gateway.upstream_call import AuthorisedRequest
from tests.fakes.port import LiveWorld, issues, port
from tests.fakes.world import CONFIGURATION, OWN

ISSUES = "/api/v4/projects/1/issues"
REST = Operation("GET /api/v4/projects/:id/issues", Access.READ, Surface.REST)


@pytest.fixture
async def at(tmp_path: Path) -> AsyncIterator[LiveWorld]:
    async with port(tmp_path) as one:
        yield one


def planned(at: LiveWorld) -> bool:
    """The last request was not judged anew, and the cache or GitLab was asked."""
    return "entry.target" not in at.made.calls and bool({"cache.fetch", "cache.lead_now"} & set(at.made.calls))


def gone_up(at: LiveWorld) -> list[tuple[bytes, Fields]]:
    return [
        (one.target, tuple(field for field in one.fields if field[0] != b"X-Request-Id")) for one in at.made.up.requests
    ]


def facts(at: LiveWorld) -> list[dict[str, Any]]:
    told = []
    for x in at.made.seen.exchanges:
        told.append({name: getattr(x, name) for name in x.__struct_fields__})
        for varying in (
            "request_id",
            "started_at",
            "upstream_s",
            "upstream_first_byte_s",
            "bytes_out",
            "limit_remaining",
            "observer_memo",
        ):
            del told[-1][varying]
        for of_its_world in ("credential_fingerprint", "credential_id"):  # each world has its own keys
            told[-1][of_its_world] = bool(getattr(x, of_its_world))
    return told


@pytest.mark.parametrize("caller", ["reader", OWN])
async def test_pages_of_a_list_are_judged_once(tmp_path: Path, caller: str, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[tuple[Any, ...]] = []
    for with_plans in (True, False):
        async with port(tmp_path / str(with_plans)) as at:
            if not with_plans:
                monkeypatch.setattr(at.made.gateway.plans, "find", lambda _head: None)
            answers = []
            for query in (
                "?page=1",
                "?page=2&per_page=100",
                "?cursor=eyJpZCI6MX0",
                "",
                "?updated_after=2026-01-01T00:00:00Z",
            ):
                status, fields, body = await at.ask(ISSUES + query, caller=caller)
                del fields[b"X-Gateway-Request-Id"], fields[b"Date"]
                answers.append((status, {name: value for name, value in fields.items() if b"Limit" not in name}, body))
                assert planned(at) is (with_plans and query != "?page=1")
            said.append((answers, gone_up(at), facts(at)))
    for mine, theirs in zip(*said, strict=True):
        assert mine == theirs


@pytest.mark.parametrize(
    "query",
    [
        "?page=2&search=x",
        "?private_token=glpat-x",
        "?page=2&sudo=root",
        "?sort=asc&project_id=2",
        "?page=1%26sudo=root",
        "?page=1;sudo=root",
        "?page[]=1",
        "?page=1&",
        "?&page=1",
        "?scope=all",
        "?per_page=1/2",
    ],
)
async def test_what_a_stage_may_read_is_judged(at: LiveWorld, query: str) -> None:
    await at.ask(ISSUES + "?page=1")
    await at.ask(ISSUES + query)
    assert not planned(at)


async def test_another_path_is_judged(at: LiveWorld) -> None:
    await at.ask(ISSUES + "?page=1")
    await at.ask("/api/v4/projects/2/issues?page=1")
    assert not planned(at)


async def test_a_revoked_key_has_no_plan(at: LiveWorld) -> None:
    for page in (1, 2):
        await at.ask(f"{ISSUES}?page={page}", caller="reader")
    assert planned(at)
    at.made.made.gateway.stages.authenticator._keys._known.drop_where(lambda _: True)  # type: ignore[attr-defined]
    assert (await at.ask(f"{ISSUES}?page=3", caller="reader"))[0] == 200
    assert not planned(at), "somebody must be asked first"


async def test_a_credential_that_was_rotated_goes_up_no_more(at: LiveWorld) -> None:
    for page in (1, 2):
        await at.ask(f"{ISSUES}?page={page}", caller="reader")
    at.made.made.gateway.stages.tokens.switch("sa", Secret("glpat-another-one-00000"), None)  # type: ignore[attr-defined]
    await at.ask(f"{ISSUES}?page=3", caller="reader")
    assert planned(at)
    assert (b"PRIVATE-TOKEN", b"glpat-another-one-00000") in at.made.up.requests[-1].fields
    (plan,) = at.made.gateway.plans._plans._current.values()
    (template,) = plan.example.shared_memo.templates.values()
    assert b"glpat-another-one-00000" in repr(template.repeated.behind).encode(), "and the dead one is kept nowhere"
    await at.ask(f"{ISSUES}?page=4", caller="reader")
    assert list(plan.example.shared_memo.templates.values()) == [template], "found out once, not at every page since"


async def test_a_changed_limit_is_found_out_once(at: LiveWorld) -> None:
    for page in (1, 2):
        await at.ask(f"{ISSUES}?page={page}", caller="reader")
    limit_admin = at.made.made.limit_admin
    assert limit_admin is not None
    await limit_admin.change("admin", "127.0.0.1", {"limit": "caller", "subject": at.made.last.principal, "factor": 2})
    asked = []
    for page in (3, 4):
        _, fields, _ = await at.ask(f"{ISSUES}?page={page}", caller="reader")
        assert planned(at)
        asked.append(("dialect.takes_for" in at.made.calls, fields.get(b"RateLimit-Policy")))
    assert asked[0][0]
    assert not asked[1][0], "the plan has the changed one"
    assert asked[0][1] == asked[1][1]


async def test_what_came_by_a_plan_becomes_a_short_way(at: LiveWorld) -> None:
    await at.ask(ISSUES + "?page=1")
    for _ in range(3):
        await at.ask(ISSUES + "?page=2")
    assert at.short
    at.made.up.answer = issues(b"[7]")
    assert (await at.ask(ISSUES + "?page=3"))[2] == b"[7]"


async def test_a_plan_is_of_no_use_when_the_buckets_are_empty(tmp_path: Path) -> None:
    async with port(tmp_path, CONFIGURATION.replace("60/min, burst: 50", "1/day, burst: 3")) as at:
        assert [(await at.ask(f"{ISSUES}?page={page}"))[0] for page in range(5)] == [200] * 3 + [429] * 2


# What is kept, and for whom


def head(
    target: str = ISSUES, peer: str = "192.0.2.1", fields: Fields = ((b"Accept", b"*/*"),), **more: Any
) -> RequestHead:
    return RequestHead(more.pop("method", "GET"), target.encode(), fields, peer=peer, memo=[], **more)


def authorised(of: RequestHead) -> AuthorisedRequest:
    claim = Claim(CredentialKind.TOKEN, Secret("x"), target=of.target)
    admitted = AdmittedRequest(parse_target(of.target), REST, claim, b"git.example.com", of.peer, False)
    return AuthorisedRequest(
        admitted, REST, claim, Principal("p", PrincipalKind.GITLAB_TOKEN, "people"), Permit("r"), of.target
    )


def learnt(of: RequestHead, made: AuthorisedRequest, plans: Plans | None = None) -> Plans:
    plans = plans or Plans()
    plans.learn(of, functools.partial(lambda: made.principal), made, Exchange("r", 0.0, of.method, of.peer))
    return plans


def test_a_plan_is_of_one_connections_fields_peer_method_and_path() -> None:
    one = head()
    plans = learnt(one, authorised(one))
    assert plans.find(one) is not None
    assert plans.find(msgspec.structs.replace(one, target=one.target + b"?page=2")) is not None
    assert plans.find(msgspec.structs.replace(one, fields=copy.deepcopy((list(one.fields),))[0])) is None  # type: ignore[arg-type]
    for other in ({"peer": "192.0.2.2"}, {"tls": True}, {"method": "HEAD"}, {"target": b"/api/v4/projects/2/issues"}):
        assert plans.find(msgspec.structs.replace(one, **other)) is None  # type: ignore[arg-type]


def test_what_is_read_off_a_body_a_session_or_a_parameter_is_not_kept() -> None:
    one = head()
    made = authorised(one)
    other_surface = Operation("x", Access.READ, Surface.GIT)
    for unlike in (
        {"operation": other_surface},
        {"target": b"/api/v4/projects/1/issues?"},
        {"claim": Claim(CredentialKind.SESSION, Secret("x"))},
        {"admitted": msgspec.structs.replace(made.admitted, websocket=b"x")},
    ):
        assert not len(learnt(one, msgspec.structs.replace(made, **unlike)))  # type: ignore[arg-type]
    assert not len(learnt(msgspec.structs.replace(one, method="POST"), made))


def test_plans_are_bounded() -> None:
    plans = Plans(10)
    for number in range(100):
        one = head(f"/api/v4/projects/{number}/issues")
        learnt(one, authorised(one), plans)
    assert len(plans) <= 10


NAMES = (
    *("page", "per_page", "cursor", "order_by", "sort", "state", "id_after", "id_before", "since", "until"),
    *("created_after", "created_before", "updated_after", "updated_before"),
)


@pytest.mark.parametrize("name", NAMES)
def test_a_free_parameter_is_nobodys_to_read(name: str) -> None:
    query = f"{name}=0123456789abcdef0123456789abcdef01234567".encode()
    assert _LIST_PARAMETERS.fullmatch(query)
    target = parse_target(b"/api/v4/projects/1/repository/commits?" + query)
    bare = parse_target(b"/api/v4/projects/1/repository/commits")
    claim = read_claim((), "GET", target, REST)
    assert (claim.kind, claim.sudo, claim.target) == (CredentialKind.NONE, None, target.raw)
    assert named_places_key(REST, target) == named_places_key(REST, bare)
    assert is_immutable("GET /api/v4/projects/:id/repository/commits", target.raw) == is_immutable(
        "GET /api/v4/projects/:id/repository/commits", bare.raw
    )


def test_the_entrys_word_of_another_page() -> None:
    one = head(ISSUES + "?page=1")
    other = msgspec.structs.replace(one, target=b"/api/v4/projects/1/issues?page=22")
    assert admitted_for(other, authorised(one).admitted) == authorised(other).admitted
