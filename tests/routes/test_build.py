"""The script that makes the catalogue's data file."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest

from gateway.core.catalogue import FORMAT_VERSION, Catalogue, ReferenceKind
from gateway.routes import read, review
from gateway.routes.build import SourceProblem, derive, encode, main, read_source, references, unmatched_reviews

DATA = Path(__file__).parent.parent / "data"
SAMPLE = DATA / "routes-sample.json"


def build(tmp_path: Path, *sources: Path) -> dict[str, list[object]]:
    """What the script writes, as ``METHOD /template`` → the rest of the row."""
    out = tmp_path / "out.json"
    assert main([*map(str, sources), str(out), "--partial"]) == 0
    return {f"{row[0]} {row[1]}": row[2:] for row in json.loads(out.read_bytes())["operations"]}


def test_rows_of_the_first_format(tmp_path: Path) -> None:
    assert build(tmp_path, SAMPLE) == {
        "ANY /-/kubernetes-agent/k8s-proxy/*path": ["kas", "write", [], {}, ["side_effect"]],
        "GET /*repository_path.git/info/refs": [
            "git",
            "read",
            [],
            {"repository_path": "project"},
            ["side_effect", "binary"],
        ],
        "GET /api/v4/geo/proxy": ["geo", "read", [], {}, ["blocked"]],
        "GET /api/v4/projects": ["rest", "read", ["read_project"], {}, ["may_hold_secret"]],
        "GET /api/v4/projects/:id": ["rest", "read", ["read_project"], {"id": "project"}, ["may_hold_secret"]],
        "GET /api/v4/projects/:id/packages/npm/*package_name": [
            "packages",
            "read",
            [],
            {"id": "project"},
            ["side_effect", "binary", "deploy_token"],
        ],
        "GET /api/v4/projects/:id/repository/archive": [
            "rest",
            "read",
            [],
            {"id": "project"},
            ["side_effect", "binary", "job_token"],
        ],
        "GET /api/v4/projects/:id/variables/:key": ["rest", "read", ["read_variable"], {"id": "project"}, ["secret"]],
        "POST /api/graphql": ["graphql", "write", [], {}, []],
        "POST /api/v4/internal/allowed": ["internal", "write", [], {}, ["blocked"]],
        "POST /api/v4/projects/:id/ci/lint": ["rest", "read", ["validate_ci_config"], {"id": "project"}, ["wide"]],
        "PUT /*repository_path.git/gitlab-lfs/objects/:oid/:size": [
            "lfs",
            "write",
            [],
            {"repository_path": "project"},
            ["secret"],
        ],
    }


def test_rows_of_openapi_3(tmp_path: Path) -> None:
    assert build(tmp_path, DATA / "openapi-v3-sample.yaml") == {
        "DELETE /api/v4/projects/:id": ["rest", "write", [], {"id": "project"}, ["may_hold_secret"]],
        "GET /api/v4/projects/:id": ["rest", "read", [], {"id": "project"}, ["may_hold_secret"]],
        "GET /api/v4/projects/:id/releases/:tag_name/elsewhere": ["rest", "read", [], {"id": "project"}, ["binary"]],
        "GET /api/v4/projects/:id/uploads/:upload_id": ["rest", "read", [], {"id": "project"}, ["binary"]],
        "POST /api/v4/internal/new_thing": ["internal", "write", [], {}, ["blocked"]],
    }


def test_rows_of_openapi_2(tmp_path: Path) -> None:
    assert build(tmp_path, DATA / "openapi-v2-sample.yaml") == {
        "GET /api/v4/groups/:id/debian_distributions": ["packages", "read", [], {"id": "group"}, []],
        "GET /api/v4/projects/:id/packages/npm/*package_name": [
            "packages",
            "read",
            [],
            {"id": "project"},
            ["side_effect", "binary"],
        ],
        "POST /api/v4/groups/:id/debian_distributions": ["packages", "write", [], {"id": "group"}, []],
    }


def test_the_first_source_wins_and_the_octets_repeat(tmp_path: Path) -> None:
    both = build(tmp_path, SAMPLE, DATA / "openapi-v2-sample.yaml", DATA / "openapi-v3-sample.yaml")
    assert both["GET /api/v4/projects/:id/packages/npm/*package_name"][-1] == ["side_effect", "binary", "deploy_token"]
    once, again = tmp_path / "once", tmp_path / "again"
    for out in (once, again):
        assert main([str(SAMPLE), str(out), "--partial", "--gitlab", "1.0"]) == 0
    assert once.read_bytes() == again.read_bytes()
    assert Catalogue.decode(once.read_bytes()).gitlab == "1.0"


def test_the_committed_file_is_what_the_script_makes_of_it(tmp_path: Path) -> None:
    """Read back as a source, every row comes out as it went in: the file is the script's work and nobody else's."""
    content = json.loads(read())
    assert content["version"] == FORMAT_VERSION
    source = [
        {
            "method": method,
            "template": template,
            "surface": surface,
            "permission": permissions,
            "also_auth": [flag for flag in flags if flag.endswith("_token")],
            "body": "may_be_binary_or_redirect" if "binary" in flags else "",
            "internal": "blocked" in flags,
        }
        for method, template, surface, _, permissions, _, flags in content["operations"]
    ]
    given, out = tmp_path / "source.json", tmp_path / "out.json"
    given.write_bytes(msgspec.json.encode(source))
    assert main([str(given), str(out)]) == 0
    assert out.read_bytes() == read()


def test_what_no_source_describes_is_added(tmp_path: Path) -> None:
    named = {f"{method} {template}" for method, template, _ in review.ADDED}
    given, out = tmp_path / "source.json", tmp_path / "out.json"
    rows = [row for row in json.loads(read())["operations"] if f"{row[0]} {row[1]}" not in named]
    given.write_bytes(msgspec.json.encode([{"method": row[0], "template": row[1], "surface": row[2]} for row in rows]))
    assert main([str(given), str(out)]) == 0
    assert named <= {operation.name for operation in Catalogue.decode(out.read_bytes()).operations()}


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("/api/v4/projects/:id/fork/:forked_from_id", {"id": "project", "forked_from_id": "project"}),
        ("/api/v4/groups/:id/(-/)epics/:epic_iid", {"id": "group"}),
        ("/api/v4/security/groups/:id/vulnerability_exports", {"id": "group"}),
        ("/api/v4/namespaces/:id/exists", {"id": "namespace"}),
        ("/api/v4/projects/user/:user_id", {"user_id": "user"}),
        ("/api/v4/issues/:id", {}),
        ("/*repository_path.git/git-upload-pack", {"repository_path": "project"}),
    ],
)
def test_what_names_stand_for(template: str, expected: dict[str, ReferenceKind]) -> None:
    assert references(template) == expected


@pytest.mark.parametrize(
    ("template", "surface"),
    [
        ("/api/scim/v2/application/Users", "scim"),
        ("/api/glql", "graphql"),
        ("/api/v4/geo_nodes", "geo"),
        ("/api/v4/projects/:id/ml/mlflow/api/2.0/mlflow/runs/get", "mlflow"),
        ("/api/v4/feature_flags/unleash/:project_id/features", "unleash"),
        ("/api/v4/projects/:id/observability/v1/logs", "observability"),
        ("/api/v4/mcp", "mcp"),
        ("/api/v4/jobs/:id/trace", "runner"),
        ("/api/v4/runners/verify", "runner"),
        ("/api/v4/runners/:id", "rest"),
        ("/api/v4/virtual_registries/packages/npm/registries/:id", "packages"),
        ("/api/v4/projects/:id/packages", "rest"),
    ],
)
def test_surfaces_of_a_source_that_names_none(template: str, surface: str) -> None:
    document = {"openapi": "3.0.1", "paths": {template: {"get": {}}}}
    assert [row[2] for row in derive(read_source(json.dumps(document)))] == [surface]


def test_surfaces_are_derived_as_they_were_given() -> None:
    """The rules for OpenAPI agree with the surfaces of the full source, where both describe a route."""
    differing = []
    for row in json.loads(read())["operations"]:
        method, template, surface = row[:3]
        if not template.startswith("/api/v4/") or surface in ("internal", "websocket", "legacy") or method == "ANY":
            continue
        derived = derive(read_source(json.dumps({"paths": {template: {method.lower(): {}}}})))
        if derived[0][2] != surface:
            differing.append((method, template, surface, derived[0][2]))
    assert differing == []


def test_a_path_without_the_api_prefix_gets_it() -> None:
    rows = derive(read_source('{"paths": {"/version": {"get": {"responses": {"200": "ok"}}}}}'))
    assert [row[1] for row in rows] == ["/api/v4/version"]


@pytest.mark.parametrize(
    "text",
    ["{", "a: b: c", "7", '{"paths": 7}', '[{"method": "GET"}]', "paths: !!python/object/apply:os.getcwd []"],
)
def test_what_is_no_source_is_refused(text: str) -> None:
    with pytest.raises(SourceProblem):
        read_source(text)


def test_a_review_that_no_longer_fits_is_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out.json"
    assert main([str(SAMPLE), str(out)]) == 1
    assert not out.exists()
    assert "reviewed, but in no source: " in capsys.readouterr().err
    rows = derive(read_source(SAMPLE.read_text(encoding="utf-8")))
    assert "POST /api/v4/markdown" in unmatched_reviews(rows)
    assert encode(rows, "x").count(b"\n") == len(rows) + 2


@pytest.mark.parametrize("content", [None, "{", '[{"method":"GET","template":"/x","surface":"nowhere"}]'])
def test_a_bad_source_is_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str | None) -> None:
    source = tmp_path / "source.json"
    if content is not None:
        source.write_text(content, encoding="utf-8")
    assert main([str(source), str(tmp_path / "out.json"), "--partial"]) == 1
    assert capsys.readouterr().err.strip()
