"""The pages say what the code does: nothing of a closed set is missing, nothing documented is gone."""

from __future__ import annotations

import argparse
import ast
import hashlib
import json
import re
import shlex
import time
import tomllib
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml

from gateway import cli, pipeline, routes
from gateway.app import explain
from gateway.app.admin_api import admin_endpoints
from gateway.app.all_workers import combine_readiness, worker_readings
from gateway.app.assembly import assemble
from gateway.app.certificates import Certificates
from gateway.app.key_admin import KeyAdmin
from gateway.app.limit_admin import LimitAdmin
from gateway.app.readings import readiness, readings
from gateway.config import Config, load
from gateway.core import correlation, headers
from gateway.core.admin_permission import Permission
from gateway.core.breaker import BreakerState
from gateway.core.cache_status import CacheReason, CacheStatus, Stored
from gateway.core.credentials import both_bearer_and_access_token, two_credentials
from gateway.core.errors import Code, bad_request, forbidden, rate_limited, unauthenticated
from gateway.core.exchange import Exchange
from gateway.core.limit_plan import Limits
from gateway.edge.admin import Admin, AdminKey, AdminSettings, Endpoint, Readiness
from gateway.identity.key_issuer import KeyIssuer
from gateway.limit_stage import LimitStage
from gateway.stores.bucket_memory import MemoryBuckets
from gateway.stores.keys_memory import MemoryKeys
from gateway.telemetry import figures
from gateway.telemetry.audit_line import line_of
from gateway.telemetry.figures import Figures
from gateway.workers.channel import GroupStatus, Reloads

ROOT = Path(__file__).parent.parent
PAGES = {
    path.relative_to(ROOT).as_posix(): path.read_text("utf-8") for path in [ROOT / "README.md", *ROOT.glob("docs/*.md")]
}
README, BEHAVIOUR = PAGES["README.md"], PAGES["docs/http-behaviour.md"]
LIFE, OPERATIONS = PAGES["docs/request-life.md"], PAGES["docs/operations.md"]
FILES = {".crt": "-----BEGIN CERTIFICATE-----\n", ".key": "-----BEGIN PRIVATE KEY-----\n"}
RESERVED = set(re.findall(r"^\| `(\w+)` \| – \| reserved", BEHAVIOUR, re.MULTILINE))


def words(text: str) -> list[str]:
    """What stands in code marks."""
    return re.findall(r"`([^`\n]+)`", text)


def tables(page: str) -> list[list[list[str]]]:
    """Every table: rows of cells, its head first."""
    found: list[list[list[str]]] = []
    rows: list[list[str]] = []
    for line in [*page.splitlines(), ""]:
        if line.startswith("|"):
            if not re.fullmatch(r"\|[-|]+\|", line):
                rows.append([cell.strip() for cell in line.strip("|").split("|")])
        elif rows:
            found.append(rows)
            rows = []
    return found


def rows_of(page: str, *head: str) -> list[list[str]]:
    """The rows below the one table whose head begins with these cells."""
    (rows,) = [table for table in tables(page) if table[0][: len(head)] == list(head)]
    return rows[1:]


def fences(page: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page, re.MULTILINE | re.DOTALL)


def configured(text: str) -> Config:
    """A document through the real loader, with every reference resolvable. One that shows a part only is put into the
    smallest whole."""
    if not re.search(r"^version:", text, re.MULTILINE):
        text = f"version: 1\nupstream: {{url: http://127.0.0.1:9}}\n{text}"
    names = re.findall(r"\$\{env:(\w+)\}", text)
    environment = {name: hashlib.sha256(name.encode()).hexdigest() for name in names}
    loaded = load(text, environment, lambda path: FILES.get(Path(path).suffix, "glpat-Fr0mFile\n"))
    assert loaded.config is not None, [str(problem) for problem in loaded.problems]
    return loaded.config


# Links and paths


def anchors(page: str) -> set[str]:
    heads = re.findall(r"^#+ (.+)$", page, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("name", PAGES)
def test_every_relative_link_leads_somewhere(name: str) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", PAGES[name]):
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        target = ((ROOT / name).parent / path).resolve() if path else ROOT / name
        assert target.exists(), link
        if anchor:
            assert anchor in anchors(target.read_text("utf-8")), link


@pytest.mark.parametrize("name", PAGES)
def test_every_file_named_exists(name: str) -> None:
    for path in re.findall(r"`((?:gateway|tests|benchmarks|deploy|config)/[\w./-]+)`", PAGES[name]):
        assert (ROOT / path).exists(), path


def test_every_page_is_linked_from_the_front_or_from_a_page() -> None:
    linked = {
        link.rpartition("/")[2].partition("#")[0] for page in PAGES.values() for link in re.findall(r"\]\(([^)]+)\)", page)
    }
    assert {Path(name).name for name in PAGES} - {"README.md", "rows.md"} <= linked


# Architecture


def test_every_module_is_on_the_map() -> None:
    mapped = re.findall(r"^\| `(gateway/[\w/]+\.py)` \|", PAGES["docs/architecture.md"], re.MULTILINE)
    modules = [
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "gateway").rglob("*.py")
        if not path.name.startswith("__") and "demo" not in path.parts
    ]
    assert sorted(modules) == sorted(mapped)


def test_the_layers_are_those_that_are_checked() -> None:
    contract = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"][0]
    drawn = next(fence for fence in fences(PAGES["docs/architecture.md"], "") if fence.startswith("cli\n"))
    named = [set(re.findall(r"\w+", re.split(r"   ", line)[0])) for line in drawn.splitlines()]
    assert named == [set(re.findall(r"\w+", layer)) for layer in contract["layers"]]


@pytest.mark.parametrize(
    ("module", "rejects"),
    [
        pytest.param(words(row[0])[0], row[2], id=words(row[0])[0])
        for table in tables(PAGES["docs/architecture.md"])
        if table[0][:3] == ["module", "responsibility", "rejects"]
        for row in table[1:]
    ],
)
def test_a_module_that_refuses_says_so_on_the_map(module: str, rejects: str) -> None:
    if module != "gateway/core/errors.py":  # where they are made for others
        assert {status for _, status in refused_in(ROOT / module)} <= set(re.findall(r"\d{3}", rejects))


# Closed sets


def test_every_code_has_one_row() -> None:
    rows = rows_of(BEHAVIOUR, "code", "status")
    assert [row[0].strip("`") for row in rows] == [code.value for code in Code]
    for code, status, *_ in rows:
        assert re.fullmatch(r"[1-5]\d\d(, [1-5]\d\d)*", status) or code.strip("`") in RESERVED


MAKERS = {
    "bad_request": bad_request,
    "forbidden": forbidden,
    "rate_limited": rate_limited,
    "unauthenticated": unauthenticated,
}
MAKERS |= {"two_credentials": two_credentials, "both_bearer_and_access_token": both_bearer_and_access_token}


def refused_in(path: Path) -> set[tuple[str, str]]:
    """Code and status of each refusal that a module makes, where both are literals or their maker's own."""
    found: set[tuple[str, str]] = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        name = getattr(node.func, "id", "") if isinstance(node, ast.Call) else ""
        if not isinstance(node, ast.Call) or name not in {"Rejection", *MAKERS}:
            continue
        said = [*node.args, *(word.value for word in node.keywords)]
        codes = [each.attr for each in said if isinstance(each, ast.Attribute) and ast.unparse(each.value) == "Code"]
        statuses = [each.value for each in said if isinstance(each, ast.Constant) and type(each.value) is int]
        if name in MAKERS:
            made = MAKERS[name]()
            codes, statuses = codes or [made.code.name], [made.status]
        if codes and statuses:
            found.add((Code[codes[0]].value, str(statuses[0])))
    return found


def raised() -> dict[str, set[str]]:
    """Code → statuses, over the whole package."""
    found: dict[str, set[str]] = {}
    for path in (ROOT / "gateway").rglob("*.py"):
        for code, status in refused_in(path):
            found.setdefault(code, set()).add(status)
    return found


def test_the_statuses_are_those_that_are_raised() -> None:
    documented = {row[0].strip("`"): set(row[1].split(", ")) for row in rows_of(BEHAVIOUR, "code", "status")}
    found = raised()
    assert len(found) > 10
    assert not {code: statuses for code, statuses in found.items() if not statuses <= documented[code]}
    assert not RESERVED & set(found)


@pytest.mark.parametrize(
    ("head", "members"), [("`cache_status`", CacheStatus), ("`cache_reason`", CacheReason), ("`cache_stored`", Stored)]
)
def test_every_word_of_the_cache_is_explained(head: str, members: Any) -> None:
    documented = [word for row in rows_of(BEHAVIOUR, head) for word in words(row[0])]
    assert sorted(documented) == sorted(member.value for member in members)


# A request's life

STAGES = rows_of(LIFE, "#", "stage")


def test_every_field_by_name_is_listed() -> None:
    """What is kept from GitLab, what says where a client is, and what marks a request."""
    page, _, listed = BEHAVIOUR.partition("## Fields that go up")[2].partition("### Names")
    addresses, _, marks = listed.partition("The client's address is")[0].partition("Correlation fields")
    spelt = [{name.lower().encode() for name in words(text)} for text in (page + addresses, addresses, marks)]
    assert headers._SPOOFABLE - spelt[0] == set()
    assert spelt[1] - {b"x-forwarded-for"} == headers._ADDRESS
    assert correlation.CORRELATION_FIELDS - spelt[2] == set()


def test_the_stages_are_those_of_the_pipeline() -> None:
    drawn = re.search(r"^ +(target → .*)$", pipeline.__doc__ or "", re.MULTILINE)
    assert drawn is not None
    order = re.findall(r"\w+", drawn[1])
    stages = [row[1] for row in STAGES]
    where = [next(at for at, stage in enumerate(stages) if name in stage.split()) for name in order]
    assert where == sorted(where)


def test_a_stage_may_refuse_with_what_its_modules_do() -> None:
    """A module of several stages in one of them. What ``pipeline.py`` makes is others' to say."""
    documented: dict[str, set[str]] = {}
    for row in STAGES:
        for word in words(row[2]):
            if word.endswith(".py") and "*" not in word and word != "pipeline.py":
                documented.setdefault(word, set()).update(words(row[4]))
    assert len(documented) > 20
    found = {name: {code for code, _ in refused_in(ROOT / "gateway" / name)} for name in documented}
    assert not {name: codes - documented[name] for name, codes in found.items() if not codes <= documented[name]}


def test_every_code_in_use_is_refused_by_some_stage() -> None:
    refused = {word for row in STAGES for word in words(row[4])}
    assert refused == {code.value for code in Code} - RESERVED


def test_every_fact_of_an_exchange_is_left_by_some_stage() -> None:
    left = {word for row in STAGES for word in words(row[5])}
    assert left == set(Exchange.__slots__) - {"request_id", "started_at", "actor", "observer_memo"}


# Operations


def full_exchange() -> Exchange:
    """Every fact set to something."""
    x = Exchange("id", 0.0, "GET", "192.0.2.1")
    for name in set(Exchange.__slots__) - {"observer_memo"}:
        kind = type(getattr(x, name))
        setattr(x, name, {str: "x", bytes: b"/x", int: 1, float: 1.0, bool: True}[kind])
    x.method, x.status, x.code = "GET", 429, Code.RATE_LIMITED.value
    return x


FULL = """
version: 1
upstream: {{url: "http://127.0.0.1:9"}}
state_dir: {place}/state
secrets: {{pepper: "${{env:ONE}}", encryption_key: "${{env:TWO}}", audit_key: "${{env:THREE}}"}}
identities: [{{id: bot, key: issued}}]
credentials: [{{id: sa, token: "${{env:FOUR}}"}}]
rules: [{{id: r, for: [bot], use: sa, allow: [{{access: read}}]}}]
limits: [{{id: slow, by: caller, bandwidth: 1MiB/s}}]
cache: {{hooks: {{secret: "${{env:FIVE}}"}}}}
audit: {{sink: "file:{place}/audit"}}
{stores}
"""


STAFF = GroupStatus((True,), (0,), True, (0,), Reloads(failing=True))


async def test_every_metric_has_its_row_with_its_type_and_labels(tmp_path: Path) -> None:
    exported: dict[str, tuple[str, set[str]]] = {}
    parts: set[str] = set()
    for stores in ("", 'stores: {shared: "redis://127.0.0.1:9/0"}'):
        made = await assemble(configured(FULL.format(place=tmp_path, stores=stores)))
        async with made.stack:
            certificates = Certificates([], {}, time.time)
            made.metrics.add_readings(partial(readings, made, certificates))
            made.metrics.add_readings(partial(worker_readings, {0: Figures()}, STAFF))
            made.metrics.observe(full_exchange(), 1.0)
            for family in made.metrics.registry.collect():
                name = f"{family.name}_total" if family.type == "counter" else family.name
                labels = {label for sample in family.samples for label in sample.labels} - {"le"}
                exported[name] = (family.type, labels)
            certificates.failing = True
            parts |= set(combine_readiness({0: readiness(made, certificates)}, STAFF).checks)
    documented = {
        words(name)[0]: (kind, set(words(labels))) for name, kind, labels, _ in rows_of(OPERATIONS, "metric", "type")
    }
    assert documented == exported
    assert {
        name for name, (kind, _) in exported.items() if kind == "gauge"
    } >= figures._MERGED_BY_MAX | figures._MERGED_BY_MIN
    checks = " ".join(row[0] for row in rows_of(OPERATIONS, "check", "degraded when"))
    assert all(re.sub(r"store gitlab-gateway-", "", part) in checks.replace("…-", "") for part in parts)


ALERTS = [
    alert for group in yaml.safe_load((ROOT / "deploy/alerts.yaml").read_text())["groups"] for alert in group["rules"]
]


@pytest.mark.parametrize("alert", ALERTS, ids=[alert["alert"] for alert in ALERTS])
def test_alerts_ask_for_metrics_labels_and_codes_that_exist(alert: dict[str, Any]) -> None:
    documented = {words(name)[0]: set(words(labels)) for name, _, labels, _ in rows_of(OPERATIONS, "metric", "type")}
    (name,) = re.findall(r"gitlab_gateway_\w+", alert["expr"])
    selected = dict(re.findall(r'(\w+)="([^"]*)"', alert["expr"]))
    named = set(re.findall(r"\$labels\.(\w+)", alert["annotations"]["summary"]))
    assert set(selected) | named <= documented[name]
    assert selected.get("code", Code.INTERNAL) in set(Code)
    # A series that appears with what it counts has not increased by that: only those that are there before are asked so.
    begun = {"refusals_total", "audit_dropped_total", "upstream_leaked_headers_total", "worker_restarts_total"}
    begun.add("admin_refusals_total")
    assert ("increase(" in alert["expr"]) is (name.removeprefix("gitlab_gateway_") in begun)
    assert "rate(" not in alert["expr"]


def test_each_gauge_that_is_an_alarm_has_its_alert_and_its_row_of_what_to_do() -> None:
    """1 while something is wrong: as ``figures`` has it, an alarm is on where it is on at any worker."""
    alarms = {
        name
        for name, kind, _, meaning in ((words(row[0])[0], *row[1:]) for row in rows_of(OPERATIONS, "metric", "type"))
        if kind == "gauge" and re.match(r"1 while (?!it serves|that Redis|Redis tells)|1 for the state", meaning)
    }
    assert len(alarms) > 5
    alerts = " ".join(alert["expr"] for alert in ALERTS)
    shown = " ".join(row[2] for row in rows_of(OPERATIONS, "what", "what happens"))
    assert {name for name in alarms if name not in alerts} == {"gitlab_gateway_hooks_silent"}  # so is a quiet night
    assert not {name for name in alarms if name.removeprefix("gitlab_gateway_") not in shown}


def test_the_alert_about_the_breaker_holds_until_it_is_closed() -> None:
    """A GitLab that hangs has it half open for most of the time."""
    (expression,) = (alert["expr"] for alert in ALERTS if "upstream_breaker" in alert["expr"])
    (states,) = re.findall(r'state=~"([^"]*)"', expression)
    assert set(states.split("|")) == {BreakerState.OPEN.value, BreakerState.HALF_OPEN.value}
    assert "max without (state)" in expression


def test_every_member_of_an_audit_line_has_its_row() -> None:
    documented = [word for row in rows_of(OPERATIONS, "member", "type") for word in words(row[0])]
    assert sorted(documented) == sorted(msgspec.to_builtins(line_of(full_exchange(), 1.0, 1.0)))


def test_the_audit_line_on_the_front_page_is_one() -> None:
    (shown,) = fences(README, "json")
    assert set(json.loads(shown.replace("\n", ""))) <= set(msgspec.to_builtins(line_of(full_exchange(), 1.0, 1.0)))


class Credentials:
    """Upstream credentials as the admin port asks for them; nothing is asked here."""

    def list(self) -> object:
        return None

    async def rotate(self, who: str, peer: str, credential_id: str) -> object:
        return credential_id


def every_endpoint() -> tuple[Endpoint, ...]:
    """What the admin port has behind its key where everything is configured."""
    config = configured("identities: [{id: bot, key: issued}]\n")
    issuer = KeyIssuer(MemoryKeys(), pepper=b"p", wall=lambda: 0.0, random=bytes)
    limits = LimitAdmin(Limits.compile(()), LimitStage(MemoryBuckets()), None)
    catalogue = routes.catalogue()
    return admin_endpoints(config, catalogue, limits, KeyAdmin(issuer, ["bot"], None), Credentials())


def served() -> set[str]:
    """What the admin port answers where everything is configured: `METHOD /path`."""

    async def metrics() -> bytes:
        return b""

    async def ready() -> Readiness:
        return Readiness(True, {})

    admin = Admin(
        AdminSettings((AdminKey("ops", bytes(32), frozenset(Permission)),)),
        metrics=metrics,
        metrics_type="",
        readiness=ready,
        endpoints=every_endpoint(),
    )
    found = [
        f"{route.method} {route.resource.canonical}" for route in admin.application().router.routes() if route.resource
    ]
    return {route for route in found if not route.startswith("HEAD")}


def test_every_route_of_the_admin_port_is_named() -> None:
    documented = {word for row in rows_of(OPERATIONS, "on the admin port", "answers") for word in words(row[0])}
    assert documented == served()


# Commands


def commands(parser: argparse.ArgumentParser, before: str = "") -> Iterator[str]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, below in action.choices.items():
                yield from list(commands(below, f"{before}{name} ")) or [f"{before}{name}"]


def test_every_command_is_named() -> None:
    paragraph = re.search(r"\*\*Commands\*\*: (.*?)\.", OPERATIONS, re.DOTALL)
    assert paragraph is not None
    assert sorted(words(paragraph[1])) == sorted(commands(cli._parser()))


def test_help_says_what_holds_where_an_option_is_left_out() -> None:
    def parsers(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
        yield parser
        for action in parser._actions:
            if isinstance(action, argparse._SubParsersAction):
                for below in action.choices.values():
                    yield from parsers(below)

    chosen = [
        (parser.prog, action.dest, action.help)
        for parser in parsers(cli._parser())
        for action in parser._actions
        if action.default not in (None, False, "", [], argparse.SUPPRESS)
    ]
    assert len(chosen) > 5
    assert not [each for each in chosen if "default: " not in (each[2] or "")]


@pytest.mark.parametrize("name", PAGES)
def test_the_commands_shown_are_understood(name: str) -> None:
    shown = [
        line for language in ("sh", "console") for fence in fences(PAGES[name], language) for line in fence.splitlines()
    ]
    named = {f"gitlab-gateway {command}" for command in commands(cli._parser())}
    shown += [word for word in words(PAGES[name]) if word not in named]
    for line in shown:
        for found in re.findall(r"(?<![\w/.])(?:\.venv/bin/)?gitlab-gateway ([a-z][^#|&)>\n]*)", line):
            arguments = shlex.split(found.replace("$(", ""))
            if arguments[0] in {"COMMAND", "on", "is"}:
                continue
            cli._parser().parse_args(arguments)


def test_the_front_page_can_be_copied_from_top_to_bottom() -> None:
    """No command uses a variable that none before it has set."""
    known: set[str] = set()
    for fence in fences(PAGES["README.md"], "console"):
        for line in fence.replace("\\\n", " ").splitlines():
            if line.startswith("$ "):
                bare = re.sub(r"'[^']*'", "", line[2:])  # nothing is expanded within single quotes
                known |= set(re.findall(r"(?:^|\bexport )(\w+)=", bare)) | set(re.findall(r"\bfor (\w+) in", bare))
                assert set(re.findall(r"\$\{?(\w+)", bare)) <= known, line


@pytest.mark.parametrize("name", PAGES)
def test_the_make_targets_shown_exist(name: str) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"\bmake ((?:run|test|bench|check|lock|format|setup|clean)[a-z-]*)", PAGES[name])) <= targets


# Dependencies


def test_every_dependency_has_its_reason_and_no_other_has() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    groups = project["dependency-groups"]
    wanted = {
        "why|where": project["project"]["dependencies"],
        "why|instead": [*groups["dev"], *groups["build"]],
    }
    page = PAGES["docs/dependencies.md"]
    for head, requirements in wanted.items():
        names = sorted(re.match(r"[\w.-]+", requirement)[0] for requirement in requirements)  # type: ignore[index]
        documented = [words(row[0])[0] for row in rows_of(page, "package", *head.split("|"))]
        assert sorted(documented) == names


# Configurations

EXAMPLES = [
    pytest.param(fence, id=f"{name}-{number}")
    for name, page in PAGES.items()
    for number, fence in enumerate(fences(page, "yaml"))
    if not fence.startswith("# .")  # somebody else's file, such as `.gitlab-ci.yml`
]


@pytest.mark.parametrize("text", EXAMPLES)
def test_every_example_loads(text: str) -> None:
    configured(text)


def recipes() -> Iterator[Any]:
    """Of the cookbook: configuration, caller, request, what becomes of it."""
    for section in PAGES["docs/rules-cookbook.md"].split("\n## ")[1:]:
        (text,) = fences(section, "yaml")
        for caller, request, verdict in rows_of(section, "as", "request"):
            yield pytest.param(text, caller.strip("`"), request.strip("`"), verdict, id=f"{caller} {request}")


@pytest.mark.parametrize(("text", "caller", "request_line", "verdict"), list(recipes()))
def test_the_cookbook_keeps_its_word(text: str, caller: str, request_line: str, verdict: str) -> None:
    method, target = request_line.split()
    told = explain(configured(text), caller, method, target)
    if verdict == "allowed":
        assert re.search(r"^permit +allowed", told, re.MULTILINE), told
    else:
        status, code = verdict.split()
        if code == Code.BLOCKED_ROUTE.value:
            assert re.search(r"^permit +blocked", told, re.MULTILINE), told
        assert code in told, told
        assert status in told, told
