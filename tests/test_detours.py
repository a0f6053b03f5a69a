"""Each way round a rule with `projects:`, walked by a hostile caller through the whole road; what a refusal tells whom."""

from __future__ import annotations

import gzip
import json
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from gateway.core.body_credentials import MAX_CUT_BYTES
from gateway.core.messages import Field, ResponseHead, first
from gateway.core.rule_match import PARAMETERS
from gateway.ports import UpstreamRequest
from gateway.reply import Reply
from tests.fakes.world import OWN, FakeDownstream, World, world

CONFIGURATION = """\
version: 1
upstream: {url: "http://gitlab.test"}
identities: [{id: bot, key: issued}, {id: trial, key: issued}, {id: under, key: issued}, {id: all, key: issued}]
credentials: [{id: sa, token: "${env:SA}"}]
rules:
  - {id: ours, for: [bot], use: sa, allow: [{access: write, projects: ["7", platform/api]}]}
  - {id: group, for: [under], use: sa, allow: [{access: write, projects: {under_group: platform}}]}
  - {id: most, for: [all], use: sa, allow: [{access: write}], deny: [{projects: [finance/ledger]}]}
  - {id: reads, for: [trial], use: sa, allow: [{access: read}]}
  - {id: tried, for: [trial], deny: [{routes: [GET /api/v4/version]}], mode: shadow}
  - {id: wished, for: [trial], use: sa, allow: [{methods: [POST]}], mode: shadow}
"""
PLACE = b'{"id":7,"path_with_namespace":"platform/api","full_path":"platform/api"}'
OTHER, OTHER_QUOTED = "finance/ledger", "finance%2Fledger"
NAMES = sorted(name.decode() for name in PARAMETERS)
FORM: Field = (b"Content-Type", b"application/x-www-form-urlencoded")
JSON: Field = (b"Content-Type", b"application/json")
PARTS: Field = (b"Content-Type", b"multipart/form-data; boundary=b")


class GitLab:
    """Says which project 7 is, and keeps what else it was asked."""

    def __init__(self) -> None:
        self.asked: list[bytes] = []
        self.questions = 0
        self.bodies: list[bytes] = []

    async def __call__(self, request: UpstreamRequest, octets: bytes) -> Reply:
        json_ = ((b"Content-Type", b"application/json"),)
        kind, _, place = request.target.partition(b"?")[0].removeprefix(b"/api/v4/").partition(b"/")
        if request.method == "GET" and kind in {b"projects", b"groups", b"namespaces"} and b"/" not in place and place:
            self.questions += 1
            if place == b"platform%2Fmoved-out":
                moved = ((b"Location", b"https://gitlab.test/api/v4/projects/9"),)
                return Reply(ResponseHead(301, moved), whole=b"")
            if place == b"9":
                return Reply(ResponseHead(200, json_), whole=PLACE.replace(b"platform/api", OTHER.encode()))
            if place in {b"7", b"platform%2Fapi"}:
                return Reply(ResponseHead(200, json_), whole=PLACE)
            return Reply(ResponseHead(404, json_), whole=b'{"message":"404 Not Found"}')
        self.asked.append(request.target)
        self.bodies.append(octets)
        return Reply(ResponseHead(200, json_), whole=b"{}")


@pytest.fixture
def gitlab() -> GitLab:
    return GitLab()


@pytest.fixture
async def made(tmp_path: Path, gitlab: GitLab) -> AsyncIterator[World]:
    async with world(tmp_path, CONFIGURATION, gitlab) as one:
        yield one


def status(down: FakeDownstream) -> int:
    assert down.answer is not None
    return down.answer.status


def refused(made: World, down: FakeDownstream, gitlab: GitLab) -> None:
    """Nothing of it reached GitLab whole, and the answer does not tell whether the other project is there."""
    assert (status(down), made.seen.exchanges[-1].code) == (404, "project_unknown")
    assert gitlab.asked == []
    assert OTHER.encode() not in down.written


@pytest.mark.parametrize("path", ["info/refs?service=git-upload-pack", "info/refs?service=git-receive-pack"])
async def test_a_former_path_over_git(made: World, gitlab: GitLab, path: str) -> None:
    """GitLab follows it there without a word."""
    for caller in ("under", "all"):
        refused(made, await made.ask("GET", f"/platform/moved-out.git/{path}", caller=caller), gitlab)
        assert status(await made.ask("GET", f"/platform/api.git/{path}", caller=caller)) == 200
        gitlab.asked.clear()


async def test_who_has_no_room_in_his_limits_has_gitlab_asked_nothing(tmp_path: Path, gitlab: GitLab) -> None:
    limits = "limits: [{id: few, by: caller, rate: 1/day, burst: 2}]\n"
    async with world(tmp_path, CONFIGURATION + limits, gitlab) as made:
        for number in range(4):
            target = f"/platform/x{number}.git/info/refs?service=git-upload-pack"
            assert status(await made.ask("GET", target, caller="under")) == (200 if number < 2 else 429)
    assert gitlab.questions == 2


async def test_who_has_gitlab_asked_has_taken_for_it_though_it_is_refused(tmp_path: Path, gitlab: GitLab) -> None:
    """The questions go up with a credential that others need, too."""
    limits = "limits: [{id: few, by: caller, rate: 1/day, burst: 2}]\n"
    async with world(tmp_path, CONFIGURATION + limits, gitlab) as made:
        for number in range(4):
            target = f"/platform/y{number}.git/info/refs?service=git-upload-pack"
            assert status(await made.ask("GET", target, caller="bot")) == (404 if number < 2 else 429)
        known = "/platform/y0.git/info/refs?service=git-upload-pack"
        assert status(await made.ask("GET", known, caller="bot")) == 404, "a table look-up takes nothing"
    assert gitlab.questions == 2


async def test_a_wait_before_gitlab_is_asked_about_a_place_is_written_down(tmp_path: Path, gitlab: GitLab) -> None:
    limits = "limits: [{id: few, by: caller, rate: 20/s, burst: 1, absorb: 5s}]\n"
    async with world(tmp_path, CONFIGURATION + limits, gitlab) as made:
        for number in range(3):
            target = f"/platform/w{number}.git/info/refs?service=git-upload-pack"
            assert status(await made.ask("GET", target, caller="under")) == 200
        assert made.seen.exchanges[-1].limit_waited_s > 0


async def test_who_is_refused_takes_nothing_of_what_a_project_s_own_callers_share(tmp_path: Path, gitlab: GitLab) -> None:
    limits = "limits: [{id: each, by: project, rate: 1/day, burst: 1}, {id: few, by: caller, rate: 1/day, burst: 9}]\n"
    async with world(tmp_path, CONFIGURATION + limits, gitlab) as made:
        target = "/platform/theirs.git/info/refs?service=git-upload-pack"
        for caller, told in (("bot", 404), ("under", 200), ("under", 429)):
            assert status(await made.ask("GET", target, caller=caller)) == told


async def test_who_may_not_know_of_a_project_is_not_told_how_busy_it_is(tmp_path: Path, gitlab: GitLab) -> None:
    limits = "limits: [{id: few, by: caller, rate: 1/day, burst: 20}, {id: busy, by: project, rate: 1/day, burst: 2}]\n"
    async with world(tmp_path, CONFIGURATION + limits, gitlab) as made:
        for expected in (200, 200, 429):
            assert status(await made.ask("GET", "/api/v4/projects/9/issues", caller="trial")) == expected
        for number in (9, 10):
            down = await made.ask("GET", f"/api/v4/projects/{number}/issues", caller="under")
            assert (status(down), down.field("RateLimit-Name")) == (404, "")


async def test_what_gitlab_was_asked_is_no_second_request(tmp_path: Path, gitlab: GitLab) -> None:
    limits = "limits: [{id: few, by: caller, rate: 1/day, burst: 2, advertise: true}]\n"
    async with world(tmp_path, CONFIGURATION + limits, gitlab) as made:
        for left in ("1", "0"):
            down = await made.ask("GET", f"/platform/z{left}.git/info/refs?service=git-upload-pack", caller="under")
            assert (down.status, down.field("RateLimit-Remaining")) == (200, left)
    assert gitlab.questions == 2


async def test_a_throttled_credential_is_not_asked_with_about_places(tmp_path: Path, gitlab: GitLab) -> None:
    """Whoever hears of it first: a request, or a question."""
    throttled = (
        (b"Retry-After", b"30"),
        *((b"RateLimit-" + name, b"9") for name in (b"Limit", b"Observed")),
        (b"RateLimit-Remaining", b"0"),
        (b"RateLimit-Reset", b"%d" % (time.time() + 30)),
    )

    async def answer(request: UpstreamRequest, octets: bytes) -> Reply:
        await gitlab(request, octets)
        return Reply(ResponseHead(429, throttled), whole=b"")

    async with world(tmp_path, CONFIGURATION, answer) as made:
        first_told = None
        for number in range(3):
            target = f"/platform/w{number}.git/info/refs?service=git-upload-pack"
            down = await made.ask("GET", target, caller="under")
            first_told = first_told or down.code
            assert number == 0 or (down.status, down.code) == (429, "rate_limited")
    assert (first_told, gitlab.questions, gitlab.asked) == ("place_unavailable", 1, [])


MERGE = "/api/v4/projects/platform%2Fapi/merge_requests"


@pytest.mark.parametrize(
    "spelling",
    [
        "{name}={value}",
        "{name}[]={value}",
        "[{name}]={value}",
        "+{name}={value}",
        "a=1;{name}={value}",
        "%{first}{rest}={value}",
    ],
)
async def test_a_query_that_names_another(made: World, gitlab: GitLab, spelling: str) -> None:
    for name in NAMES:
        query = spelling.format(name=name, value=OTHER_QUOTED, first=f"{ord(name[0]):02x}", rest=name[1:])
        refused(made, await made.ask("POST", f"{MERGE}?{query}", caller="bot"), gitlab)


def in_json(name: str) -> tuple[Field, bytes]:
    return JSON, json.dumps({"title": "x", name: OTHER}).encode()


def in_a_list(name: str) -> tuple[Field, bytes]:
    return JSON, json.dumps({name: ["7", OTHER]}).encode()


def escaped(name: str) -> tuple[Field, bytes]:
    return JSON, b'{"\\u%04x%b":"%b"}' % (ord(name[0]), name[1:].encode(), OTHER.encode())


def in_a_form(name: str) -> tuple[Field, bytes]:
    return FORM, f"title=x&{name}={OTHER_QUOTED}".encode()


def bracketed(name: str) -> tuple[Field, bytes]:
    return FORM, f"[{name}]={OTHER_QUOTED}".encode()


def in_parts(name: str) -> tuple[Field, bytes]:
    part = 'Content-Disposition: form-data; name="' + name + '"'
    return PARTS, f"--b\r\n{part}\r\n\r\n{OTHER}\r\n--b--\r\n".encode()


@pytest.mark.parametrize("written", [in_json, in_a_list, escaped, in_a_form, bracketed, in_parts])
async def test_a_body_that_names_another(
    made: World, gitlab: GitLab, written: Callable[[str], tuple[Field, bytes]]
) -> None:
    for name in NAMES:
        kind, body = written(name)
        half = len(body) // 2
        down = await made.ask("POST", MERGE, kind, caller="bot", body=(body[:half], body[half:]))
        assert (status(down), made.seen.exchanges[-1].code) == (404, "project_unknown"), name
    assert gitlab.bodies == [], "cut before its last octet"


@pytest.mark.parametrize(
    "target",
    [
        "/api/v4/projects/finance%2Fledger/issues",
        "/api/v4/projects/finance%2fledger/issues",
        "/api/v4/projects/Finance%2FLedger/issues",
        "/api/v4/projects/8/issues",
        "/api/v4/projects/007%0A/issues",
        "/api/v4/projects/platform%2Fapi%2Fdeeper/issues",
        "/api/v4/projects/platform%252Fapi/issues",
        "/api/v4/projects/platform%2Fapi/fork/8",
        "/api/v4/projects/platform%2Fapi/import_project_members/8",
        "/api/v4/projects/platform%2Fapi/share/9",
        "/finance/ledger.git/info/refs?service=git-upload-pack",
        "/finance/ledger.wiki.git/git-upload-pack",
        "/7.wiki.git/git-receive-pack",
        "/7.git/info/lfs/objects/batch",
        "/7/-/raw/main/readme?issues",
    ],
)
async def test_a_path_that_leads_elsewhere(made: World, gitlab: GitLab, target: str) -> None:
    method = "GET" if target.endswith(("issues", "pack")) and "git-upload" not in target.rpartition("/")[2] else "POST"
    down = await made.ask(method, target, caller="bot")
    assert status(down) in {400, 403, 404, 405}
    assert gitlab.asked == []


@pytest.mark.parametrize(
    ("method", "target"),
    [
        ("GET", "/api/v4/projects"),
        ("POST", "/api/v4/projects"),
        ("GET", "/api/v4/user"),
        ("POST", "/api/v4/markdown"),
        ("POST", "/api/graphql"),
        ("GET", "/api/graphql?query=%7Ba%7D"),
        ("GET", "/api/v4/search?scope=projects"),
        ("POST", "/api/v4/projects/platform%2Fapi/ci/lint"),
        ("GET", "/api/v4/projects/platform%2Fapi/forks"),
        ("POST", "/api/v4/projects/platform%2Fapi/merge_requests/1/blocks"),
        ("POST", "/api/v4/projects/platform%2Fapi/issues/1/links"),
        ("POST", "/api/v4/projects/platform%2Fapi/job_token_scope/allowlist"),
        ("PATCH", "/api/v4/namespaces/7/minutes/move/8"),
        ("GET", "/api/v4/projects/platform%2Fapi/brand_new"),
        ("POST", "/api/v4/brand_new?project_id=7"),
        ("GET", "/platform/api/-/brand_new"),
    ],
)
async def test_what_belongs_to_no_place_needs_an_allow_of_its_own(
    made: World, gitlab: GitLab, method: str, target: str
) -> None:
    assert status(await made.ask(method, target, caller="bot")) in {403, 404}
    assert gitlab.asked == []


async def test_its_own_place_by_each_of_its_names(made: World, gitlab: GitLab) -> None:
    """The path names it by its path, the body by its number, or the other way round."""
    body = b'{"title":"x","target_project_id":7}'
    for target in (MERGE, "/api/v4/projects/7/merge_requests?target_project_id=platform%2Fapi"):
        down = await made.ask("POST", target, JSON, caller="bot", body=(body,))
        assert status(down) == 200
    assert gitlab.bodies == [body, body]


# What a refusal tells, and whom


@pytest.mark.parametrize(
    ("method", "target", "fields"),
    [
        ("GET", "/api/v4/user", ()),
        ("GET", "/api/v4/projects/8/issues", ()),
        ("GET", "/api/v4/projects/..%2f8", ()),
        ("GET", "/api/v4/internal/check", ()),
        ("GET", "/api/v4/user", ((b"JOB-TOKEN", b"x"),)),
        ("GET", "/api/v4/projects/7?sudo=root", ()),
        ("BREW", "/api/v4/user", ()),
    ],
)
async def test_a_refusal_carries_the_id_that_the_audit_repeats(
    made: World, method: str, target: str, fields: tuple[Field, ...]
) -> None:
    problem = (b"Accept", b"application/problem+json")
    down = await made.ask(method, target, problem, *fields, caller="bot")
    assert down.answer is not None
    assert down.answer.status >= 400
    told = first(down.answer.fields, b"x-gateway-request-id")
    assert told is not None
    assert made.seen.exchanges[-1].request_id == told.decode()
    assert made.seen.exchanges[-1].code
    assert json.loads(down.written)["instance"] == f"urn:gateway:decision:{told.decode()}"


@pytest.mark.parametrize(
    ("method", "target", "code", "shadow"),
    [
        ("GET", "/api/v4/version", 200, "tried"),
        ("GET", "/api/v4/user", 200, ""),
        ("POST", "/api/v4/projects", 403, "wished"),
        ("DELETE", "/api/v4/projects/7", 403, ""),
    ],
)
async def test_what_a_shadow_would_have_done_is_written_down(
    made: World, method: str, target: str, code: int, shadow: str
) -> None:
    assert status(await made.ask(method, target, caller="trial")) == code
    assert made.seen.exchanges[-1].rule_shadow == shadow


@pytest.mark.parametrize(
    ("method", "thing"),
    [
        ("POST", "runners"),
        ("POST", "deploy_keys/9/enable"),
        ("PUT", "labels/bug/promote"),
        ("POST", "milestones/3/promote"),
    ],
)
async def test_what_reaches_another_by_a_number_or_a_name_of_its_own(
    made: World, gitlab: GitLab, method: str, thing: str
) -> None:
    """Another project's runner or deploy key comes to this one; a label that becomes the group's leaves the others."""
    body = b'{"runner_id":9}'
    for caller in ("bot", "under", "all"):
        down = await made.ask(method, f"/api/v4/projects/platform%2Fapi/{thing}", JSON, caller=caller, body=(body,))
        assert (status(down), made.seen.exchanges[-1].code) == (403, "forbidden")
    assert gitlab.asked == []
    assert status(await made.ask("GET", "/api/v4/projects/platform%2Fapi/runners", caller="bot")) == 200


OF_PEOPLE = """\
version: 1
upstream: {url: "http://gitlab.test"}
identities: [{id: people, gitlab_token: true, bind: {cidr: [10.0.0.0/8]}}]
rules:
  - id: nobody-deletes
    for: [people, passthrough]
    deny: [{methods: [DELETE], routes: ["DELETE /api/v4/projects/:id"]}]
"""
COOKIE: Field = (b"Cookie", b"_gitlab_session=made-up")
TOKEN = "glpat-c4n4ryc4n4ryc4n4ry"


@pytest.mark.parametrize(
    ("written", "code"),
    [
        ((FORM, f"private_token={TOKEN}&_method=delete".encode()), "method_override"),
        ((FORM, b"_method=delete"), "method_override"),
        ((FORM, f"access_token={TOKEN}".encode()), "ambiguous_credential"),
        ((JSON, json.dumps({"private_token": TOKEN}).encode()), "ambiguous_credential"),
    ],
)
async def test_no_cookie_hides_whose_token_is_in_a_body(
    tmp_path: Path, gitlab: GitLab, written: tuple[Field, bytes], code: str
) -> None:
    """GitLab goes by the token and by the method in the body, whatever the cookie is."""
    field, body = written
    async with world(tmp_path, OF_PEOPLE, gitlab) as made:
        for method in ("POST", "GET") if field is FORM else ("POST",):
            down = await made.ask(method, "/api/v4/projects/7", COOKIE, field, caller=None, body=(body,))
            assert (status(down), made.seen.exchanges[-1].code) == (400, code)
        assert gitlab.asked == []
        assert status(await made.ask("POST", "/-/profile", COOKIE, FORM, caller=None, body=(b"_method=patch",))) == 200


ANYTHING: Field = (b"Authorization", b"made-up")


@pytest.mark.parametrize(
    ("method", "target", "beside"),
    [
        ("PUT", "/api/v4/projects/7/packages/npm/a", ANYTHING),
        ("POST", "/api/v4/projects/7/packages/pypi", ANYTHING),
        ("GET", "/api/v4/projects/7/packages/npm/a", ANYTHING),
        ("DELETE", "/api/v4/projects/7/packages/npm/-/package/a/dist-tags/b", (b"X-NuGet-ApiKey", b"made-up")),
        ("POST", "/platform/api.git/info/lfs/objects/batch", ANYTHING),
        ("GET", "/platform/api/-/raw/main/a", COOKIE),
        ("GET", "/dashboard/projects.atom", COOKIE),
        ("HEAD", "/dashboard/projects.atom?feed_token=made-up", (b"Accept", b"*/*")),
    ],
)
@pytest.mark.parametrize(
    ("content_type", "body"),
    [
        (b"application/x-www-form-urlencoded", f"private_token={TOKEN}".encode()),
        (b"application/json", json.dumps({"private_token": TOKEN}).encode()),
        (b"application/json", b'{/**/"private_token":"x"}'),
    ],
)
async def test_nothing_made_up_hides_whose_token_is_in_a_body(
    tmp_path: Path, gitlab: GitLab, method: str, target: str, beside: Field, content_type: bytes, body: bytes
) -> None:
    """What GitLab alone can judge goes up; beside it no other credential does."""
    async with world(tmp_path, OF_PEOPLE, gitlab) as made:
        field = (b"Content-Type", content_type)
        assert status(await made.ask(method, target, beside, field, caller=None, body=(body,))) == 400
        assert made.seen.exchanges[-1].code in {"ambiguous_credential", "body_undecidable"}
        assert gitlab.asked == []


@pytest.mark.parametrize("beside", [(COOKIE,), ()])
async def test_nothing_made_up_hides_a_jobs_token(tmp_path: Path, gitlab: GitLab, beside: tuple[Field, ...]) -> None:
    """GitLab takes ``token`` for one where a job may come."""
    anonymous = OF_PEOPLE.replace("identities: [", "identities: [{id: guests, anonymous: true}, ")
    releases = "/api/v4/projects/7/releases"
    async with world(tmp_path, anonymous, gitlab) as made:
        for target, form in ((releases, b"token=glcbt-1"), (releases + "?token=glcbt-1", b"a=b")):
            assert status(await made.ask("POST", target, FORM, *beside, caller=None, body=(form,))) == 400
            assert made.seen.exchanges[-1].code == "ambiguous_credential"
        assert gitlab.asked == []
        assert status(await made.ask("POST", releases, FORM, *beside, caller=None, body=(b"name=token",))) == 200
        hooks = "/api/v4/projects/7/hooks"
        assert status(await made.ask("POST", hooks, FORM, *beside, caller=None, body=(b"token=secret",))) == 200


@pytest.mark.parametrize(
    "target", ["/platform/api/-/raw/main/a", "/dashboard/projects.atom", "/dashboard/projects.atom?_method="]
)
async def test_no_form_makes_a_read_of_a_page(tmp_path: Path, gitlab: GitLab, target: str) -> None:
    """Rails reads `_method` in a form: then a page takes its token out of it, too."""
    async with world(tmp_path, OF_PEOPLE, gitlab) as made:
        for body in (f"_method=get&private_token={TOKEN}", f"private_token={TOKEN}&%5Fmethod=HEAD"):
            assert status(await made.ask("POST", target, COOKIE, FORM, caller=None, body=(body.encode(),))) == 400
            assert gitlab.asked == []


@pytest.mark.parametrize(
    ("method", "target"),
    [
        ("GET", "/api/v4/runners"),
        ("POST", "/api/v4/runners"),
        ("GET", "/api/v4/jobs/9/artifacts"),
        ("POST", "/api/v4/projects/7/trigger/pipeline"),
        ("POST", "/api/v4/projects/7/observability/v1/traces"),
    ],
)
@pytest.mark.parametrize(
    ("content_type", "body"),
    [
        (b"application/x-www-form-urlencoded", f"token=x&private_token={TOKEN}"),
        (b"application/x-www-form-urlencoded", f"a={'a' * MAX_CUT_BYTES}&access_token={TOKEN}"),
        (b"application/json", f'{{/**/"private_token":"{TOKEN}"}}'),
        (b"multipart/form-data", f"_method=get&private_token={TOKEN}"),
        (b"multipart/form-data", "%5fmethod=get"),
    ],
)
async def test_where_gitlab_finds_a_token_in_a_body_it_finds_no_users(
    tmp_path: Path, gitlab: GitLab, method: str, target: str, content_type: bytes, body: str
) -> None:
    """A runner's, a job's or a trigger's is GitLab's to judge; with a user's it lists that user's runners."""
    async with world(tmp_path, OF_PEOPLE, gitlab) as made:
        field = (b"Content-Type", content_type)
        assert status(await made.ask(method, target, field, caller=None, body=(body.encode(),))) == 400
        assert made.seen.exchanges[-1].code in {"ambiguous_credential", "body_undecidable"}
        assert gitlab.asked == []
        own = (b"token=x&job_token=x",) if target.endswith("artifacts") else (b"token=x",)
        assert status(await made.ask(method, target, FORM, caller=None, body=own)) == 200


async def test_what_logs_in_with_a_form_goes_on(tmp_path: Path, gitlab: GitLab) -> None:
    async with world(tmp_path, OF_PEOPLE, gitlab) as made:
        for target in ("/oauth/userinfo", "/oauth/revoke"):
            form = (f"access_token={TOKEN}&token={TOKEN}".encode(),)
            assert status(await made.ask("POST", target, FORM, caller=None, body=form)) == 200


def quoted(*heads: str) -> bytes:
    return b"".join(b"--b\r\n%b\r\n\r\ndelete\r\n" % head.encode() for head in heads) + b"--b--\r\n"


DISPOSITION = "Content-Disposition: form-data; name="
FORM_TYPE, JSON_TYPE, PARTS_TYPE = FORM[1], JSON[1], b"multipart/form-data; boundary=b"


@pytest.mark.parametrize(
    ("content_type", "body"),
    [
        (FORM_TYPE + b"; charset=utf-16", b"_method=delete"),
        (FORM_TYPE, b"a" * 5000 + b"&_%6dethod=delete"),
        (PARTS_TYPE + b"; boundary=b", quoted(f'{DISPOSITION}"_method"')),
        (PARTS_TYPE, quoted(f"{DISPOSITION}_method(x")),
        (PARTS_TYPE, quoted("X: y\r\n  folded\r\n" + f'{DISPOSITION}"a"', f'{DISPOSITION}"_m\\ethod"')),
        (PARTS_TYPE, quoted(f'{DISPOSITION}"_me\x1b(Bthod"\r\nContent-Type: text/plain; charset=ISO-2022-JP')),
        (JSON_TYPE + b"; charset=utf-16", json.dumps({"private_token": TOKEN}).encode()),
        (JSON_TYPE, b'{/**/"private\\u005ftoken":"%b"}' % TOKEN.encode()),
        (JSON_TYPE, b'{/**/"access_token":"%b"}' % TOKEN.encode()),
        (JSON_TYPE, b'{"private_t\\oken":"%b"}' % TOKEN.encode()),
        (b"multipart/form-data", b"%5fmethod=delete"),
        (b"multipart/mixed; boundary=", b"title=x&private%5ftoken=" + TOKEN.encode()),
    ],
)
@pytest.mark.parametrize("cut", [1, 7, 4096])
async def test_what_is_hard_to_read_hides_no_method_and_no_second_token(
    tmp_path: Path, gitlab: GitLab, content_type: bytes, body: bytes, cut: int
) -> None:
    """GitLab heeds no charset, and its readers are more lenient than ours."""
    pieces = tuple(body[at : at + cut] for at in range(0, len(body), cut))
    async with world(tmp_path, OF_PEOPLE.replace(", bind: {cidr: [10.0.0.0/8]}", ""), gitlab) as made:
        for caller, fields in ((OWN, ()), (None, (COOKIE,))):
            field = (b"Content-Type", content_type)
            down = await made.ask("POST", "/api/v4/projects/7", field, *fields, caller=caller, body=pieces)
            assert status(down) == 400
            assert made.seen.exchanges[-1].code in {"method_override", "ambiguous_credential", "body_undecidable"}
        assert gitlab.asked == []
        harmless = b'{/**/"title":"x"}'
        assert status(await made.ask("POST", "/api/v4/projects/7", JSON, caller=OWN, body=(harmless,))) == 200


@pytest.mark.parametrize(
    "content_type",
    [
        b"multipart/form-data; boundary=b; boundary*0=g",
        b"multipart/form-data; BOUNDARY*0*=utf-8''%67; boundary=b",
        b"multipart/form-data; boundary\xc2\xa0=g; xboundary=b",
        # Its type, too: with Unicode's blanks before it, and in letters that are lower-cased to these.
        b"\xc2\xa0multipart/form-data; boundary=g",
        "\u2003MULT\u0130PART/mixed; boundary=g".encode(),
        "mult\u0130part/form-data\u00a0; boundary=g".encode(),
    ],
)
@pytest.mark.parametrize("name", ["sudo", "private_token", "_method", "project_id"])
async def test_an_upload_has_one_boundary_for_all(
    made: World, gitlab: GitLab, tmp_path: Path, content_type: bytes, name: str
) -> None:
    """Workhorse writes uploads anew for GitLab, of the parts between *its* boundaries."""
    file = f'{DISPOSITION}"file"; filename="a"\r\n\r\n--g\r\n{DISPOSITION}"{name}"\r\n\r\nx\r\n--g--'
    asked = ("POST", "/api/v4/projects/platform%2Fapi/uploads", (b"Content-Type", content_type))
    down = await made.ask(*asked, caller="bot", body=(quoted(file),))
    assert (status(down), made.seen.exchanges[-1].code) == (400, "body_undecidable")
    (own_dir := tmp_path / "own").mkdir()
    async with world(own_dir, OF_PEOPLE.replace(", bind: {cidr: [10.0.0.0/8]}", ""), gitlab) as own:
        down = await own.ask(*asked, caller=OWN, body=(quoted(file),))
        assert status(down) == (200 if name == "project_id" else 400)
    assert len(gitlab.asked) == (name == "project_id")


@pytest.mark.parametrize("damaged", [False, True])
@pytest.mark.parametrize(
    ("fields", "document"),
    [
        ((JSON,), b'{"a":1,/**/"private_token":"x"}'),
        ((JSON,), b'{"private_token":"x"}'),
        ((), b"private%5ftoken=x"),
    ],
)
async def test_gzip_hides_no_second_token_where_gitlab_inflates_it(
    tmp_path: Path, gitlab: GitLab, fields: tuple[Field, ...], document: bytes, damaged: bool
) -> None:
    """GitLab asks no checksum of it."""
    octets = gzip.compress(document)
    octets = octets[:-8] + bytes(4) + octets[-4:] if damaged else octets
    target = "/api/v4/packages/npm/-/npm/v1/security/audits/quick"
    async with world(tmp_path, OF_PEOPLE.replace(", bind: {cidr: [10.0.0.0/8]}", ""), gitlab) as made:
        coding = (b"Content-Encoding", b"gzip")
        assert status(await made.ask("POST", target, *fields, coding, caller=OWN, body=(octets,))) == 400
        assert gitlab.asked == []


@pytest.mark.parametrize(
    ("field", "body"),
    [(FORM, b"title=x&sudo=root"), (JSON, b'{"sudo":"root"}'), (JSON, b'{"sudo":"root","a":{"sudo":"b"}}')],
)
async def test_the_audit_says_as_whom_a_body_asks_to_act(tmp_path: Path, gitlab: GitLab, field: Field, body: bytes) -> None:
    async with world(tmp_path, OF_PEOPLE.replace(", bind: {cidr: [10.0.0.0/8]}", ""), gitlab) as made:
        assert status(await made.ask("POST", "/api/v4/projects/7/issues", field, caller=OWN, body=(body,))) == 200
        assert (made.seen.exchanges[-1].principal, made.seen.exchanges[-1].sudo) == ("user:7", "root")
        assert gitlab.bodies == [body]


@pytest.mark.parametrize(
    ("content_type", "body"),
    [
        (JSON_TYPE, b'{/**/"sudo":"root"}'),
        (PARTS_TYPE, quoted("X: y\r\n  folded\r\n" + f'{DISPOSITION}"a"', f'{DISPOSITION}"sudo"')),
        (PARTS_TYPE, quoted("X: y\r\n  folded\r\n" + f'{DISPOSITION}"a"', f'{DISPOSITION}"[sudo]"')),
        (PARTS_TYPE, quoted("Content-ID:\r\n [sudo]")),
        (PARTS_TYPE, quoted("Content-ID: sudo ")),
        (PARTS_TYPE, quoted(f"{DISPOSITION}\r\n sudo")),
        (b"multipart/form-data", b"title=x&sudo=root"),
        (b"multipart/form-data", b"title=x& [sudo]=root"),
        (JSON_TYPE, b'{"sudo":1.0}'),
        (JSON_TYPE, b'{"sudo":["root"]}'),
        (PARTS_TYPE, quoted(f'{DISPOSITION}"sudo"\r\nContent-Transfer-Encoding: quoted-printable')),
        (PARTS_TYPE, quoted(f'{DISPOSITION}"sudo[]"')),
        (FORM[1], b"sudo=root&+sudo=other"),
        (FORM[1], b"sudo=root&[sudo]=other"),
        (FORM[1], b"title=x;sudo=other"),
    ],
)
async def test_nobody_acts_as_another_past_the_audit(
    tmp_path: Path, gitlab: GitLab, content_type: bytes, body: bytes
) -> None:
    async with world(tmp_path, OF_PEOPLE.replace(", bind: {cidr: [10.0.0.0/8]}", ""), gitlab) as made:
        field = (b"Content-Type", content_type)
        assert status(await made.ask("POST", "/api/v4/projects/7/issues", field, caller=OWN, body=(body,))) == 400
        assert made.seen.exchanges[-1].code == "body_undecidable"
        assert gitlab.asked == []


@pytest.mark.parametrize(
    ("field", "body"),
    [
        (FORM, b"sudo=root&sudo=other"),
        (JSON, b'{"sudo":"other","sudo":null}'),
        (PARTS, quoted(*[f'{DISPOSITION}"sudo"'] * 2).replace(b"delete", b"other", 1)),
    ],
)
async def test_a_body_asks_to_act_as_one(tmp_path: Path, gitlab: GitLab, field: Field, body: bytes) -> None:
    async with world(tmp_path, OF_PEOPLE.replace(", bind: {cidr: [10.0.0.0/8]}", ""), gitlab) as made:
        down = await made.ask("POST", "/api/v4/projects/7/issues?sudo=root", JSON, caller=OWN, body=(b'{"sudo":null}',))
        assert status(down) == 400, "GitLab takes it back"
        pieces = [body[at : at + 40] for at in range(0, len(body), 40)]
        for cut in ((body,), (*pieces, b"x" * (field is PARTS))):
            assert status(await made.ask("POST", "/api/v4/projects/7/issues", field, caller=OWN, body=cut)) == 400
            assert made.seen.exchanges[-1].code == "ambiguous_credential"
            assert gitlab.asked == []


@pytest.mark.parametrize("name", ["namespace", "namespace_path"])
async def test_no_fork_goes_to_a_namespace_called_false(made: World, gitlab: GitLab, name: str) -> None:
    """Whoever owns one: Grape makes a text of what JSON has for none."""
    fork = ("POST", "/api/v4/projects/platform%2Fapi/fork", JSON)
    for value in ("false", " false\t", "true"):
        down = await made.ask(*fork, caller="bot", body=(f'{{"{name}":{value},"name":"x"}}'.encode(),))
        assert (status(down), made.seen.exchanges[-1].code) == (404, "project_unknown")
    assert gitlab.asked == []
    assert status(await made.ask(*fork, caller="bot", body=(f'{{"{name}":null}}'.encode(),))) == 200


@pytest.mark.parametrize(
    ("fields", "query", "body"),
    [
        (((b"Content-Type", b"text/plain"),), "", f'{{"start_project":"{OTHER}"}}'.encode()),
        (((b"Content-Type", b"application/octet-stream"),), "", f"start_project={OTHER}".encode()),
        ((), "?Content-Type=multipart/form-data;boundary=b", quoted(f'{DISPOSITION}"start_project"')),
        ((JSON,), "?a=b&Content%2DType=application/x-www-form-urlencoded", f'{{"a":"&start_project={OTHER}&"}}'.encode()),
    ],
)
async def test_a_body_that_names_places_is_of_a_type_that_is_read(
    made: World, gitlab: GitLab, fields: tuple[Field, ...], query: str, body: bytes
) -> None:
    """Workhorse keeps a commit as a file, and GitLab goes by a parameter for what that file is."""
    target = f"/api/v4/projects/platform%2Fapi/repository/commits{query}"
    for caller in ("bot", "under", "all"):
        down = await made.ask("POST", target, *fields, caller=caller, body=(body,))
        assert (status(down), made.seen.exchanges[-1].code) == (400, "body_undecidable")
    assert gitlab.asked == []
    elsewhere = "/api/v4/projects/platform%2Fapi/statuses/a?Content-Type=x"
    assert status(await made.ask("POST", elsewhere, *fields, caller="bot", body=(b"{}",))) == 200
    commit = ("POST", "/api/v4/projects/platform%2Fapi/repository/commits?content_type=x", FORM)
    assert status(await made.ask(*commit, caller="bot", body=(b"branch=x&start_project=platform/api",))) == 200
