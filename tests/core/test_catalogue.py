"""What a request is."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core import catalogue
from gateway.core.catalogue import OTHER, Access, Catalogue, Operation, Reference, ReferenceKind, Surface, is_blocked
from gateway.core.target import Target, parse_target
from gateway.routes import read

CATALOGUE = Catalogue.decode(read())
FETCH = "?service=git-upload-pack"
PUSH = "?service=git-receive-pack"


def match(method: str, target: str) -> Operation:
    return CATALOGUE.match(method, parse_target(target.encode()))


def named(method: str, target: str) -> list[tuple[str, str]]:
    parsed = parse_target(target.encode())
    return [
        (str(reference.kind), reference.value(parsed.segments)) for reference in CATALOGUE.match(method, parsed).references
    ]


@pytest.mark.parametrize(
    ("method", "target", "name"),
    [
        ("GET", "/api/v4/projects/42", "GET /api/v4/projects/:id"),
        ("GET", "/api/v4/projects/group%2Fsub%2fproject", "GET /api/v4/projects/:id"),
        ("GET", "/api/v4/projects/42/", "GET /api/v4/projects/:id"),
        ("HEAD", "/api/v4/projects/42", "GET /api/v4/projects/:id"),
        ("HEAD", "/api/v4/projects/1/repository/files/a%2Fb", "HEAD /api/v4/projects/:id/repository/files/:file_path"),
        ("GET", "/api/v4/projects.json", "GET /api/v4/projects"),
        ("GET", "/api/v4/projects/1/issues/7", "GET /api/v4/projects/:id/issues/:issue_iid"),
        ("GET", "/api/v4/projects/1/search", "GET /api/v4/projects/:id/(-/)search"),
        ("GET", "/api/v4/projects/1/-/search", "GET /api/v4/projects/:id/(-/)search"),
        ("POST", "/api/v4/projects/1/trigger/pipeline", "POST /api/v4/projects/:id/trigger/pipeline"),
        (
            "GET",
            "/api/v4/projects/1/ml/mlflow/api/2.0/mlflow-artifacts/artifacts/7/data/model.pkl",
            "GET /api/v4/projects/:id/ml/mlflow/api/2.0/mlflow-artifacts/artifacts/:model_version/*file_path",
        ),
        (
            "GET",
            "/api/v4/projects/1/packages/go/sumdb/sum.golang.org/supported",
            "GET /api/v4/projects/:id/packages/go/sumdb/:name/supported",
        ),
        (
            "GET",
            "/api/v4/projects/1/packages/go/example.com/a/b/@latest",
            "GET /api/v4/projects/:id/packages/go/*module_name/@latest",
        ),
        ("GET", "/api/v4/projects/a/b", OTHER),
        ("GET", "/api/v4/no_such_thing", OTHER),
        ("PUT", "/api/v4/version", OTHER),
        ("OPTIONS", "/api/v4/version", OTHER),
        ("GET", "/api/v3/projects", "ANY /api/v3/*path"),
        ("GET", "/", OTHER),
        ("GET", "/group/project/-/issues", OTHER),
    ],
)
def test_names(method: str, target: str, name: str) -> None:
    operation = match(method, target)
    assert operation.name == name
    assert operation.known == (name != OTHER)
    assert not operation.blocked


@pytest.mark.parametrize(
    ("method", "target", "registry"),
    [
        (
            "PUT",
            "/api/v4/projects/a%2Fb/packages/npm/-/user/org.couchdb.user:me",
            "PUT /api/v4/projects/:id/packages/npm/*",
        ),
        ("POST", "/api/v4/packages/npm/-/v1/login", "POST /api/v4/packages/npm/*"),
        ("PUT", "/api/v4/projects/packages/packages/cargo/nothing", "PUT /api/v4/projects/:id/packages/cargo/*"),
        ("GET", "/api/v4/groups/1/-/packages/pypi/nothing", "GET /api/v4/groups/:id/-/packages/pypi/*"),
        ("GET", "/api/v4/virtual_registries/packages/npm/1/x", "GET /api/v4/virtual_registries/packages/npm/*"),
        ("GET", "/api/v4/groups/1/-/packages/nothing/x", ""),
        ("GET", "/api/v4/nothing/packages/npm/x", ""),
    ],
)
def test_an_unknown_route_at_a_registry_is_told_by_the_registrys_address(method: str, target: str, registry: str) -> None:
    operation = match(method, target)
    assert (operation.name, operation.registry) == (OTHER, registry)
    assert operation.route == (registry or OTHER)


@pytest.mark.parametrize(
    ("method", "target", "access", "surface"),
    [
        ("GET", "/api/v4/nothing", Access.READ, Surface.REST),
        ("HEAD", "/api/v4/nothing", Access.READ, Surface.REST),
        ("OPTIONS", "/api/v4/projects", Access.READ, Surface.REST),
        ("POST", "/api/v4/nothing", Access.WRITE, Surface.REST),
        ("PROPFIND", "/api/v4/nothing", Access.WRITE, Surface.REST),
        ("GET", "/group/project", Access.READ, Surface.WEB),
        ("GET", "/.well-known/terraform.json", Access.READ, Surface.OAUTH),
        ("POST", "/jwt/auth", Access.WRITE, Surface.REGISTRY),
        ("GET", "/v2/virtual_registries/container/1/library/alpine/manifests/latest", Access.READ, Surface.REGISTRY),
        ("HEAD", "/v2/virtual_registries/container/1/a.git/b/blobs/sha256:0", Access.READ, Surface.REGISTRY),
        ("POST", "/v2/group/image/blobs/uploads/", Access.WRITE, Surface.REGISTRY),
        ("GET", "/v2x/project", Access.READ, Surface.WEB),
        ("GET", "/api/v4/virtual_registries/packages/maven/1/com/example/a/1/a-1.pom", Access.READ, Surface.PACKAGES),
        ("GET", "/api/v4/virtual_registries/container/nothing/1", Access.READ, Surface.REST),
        ("DELETE", "/api/v4/projects/1/packages/npm/@acme%2flib/-rev/1", Access.WRITE, Surface.PACKAGES),
        ("PUT", "/api/v4/projects/group%2Fproject/packages/cargo/api/v1/crates/new", Access.WRITE, Surface.PACKAGES),
        ("GET", "/api/v4/groups/1/-/packages/nothing", Access.READ, Surface.PACKAGES),
        ("GET", "/api/v4/group/1/-/packages/composer", Access.READ, Surface.PACKAGES),
        ("GET", "/api/v4/packages/conan/v2/ping", Access.READ, Surface.PACKAGES),
        ("GET", "/api/v4/projects/1/dependency_proxy/packages/npm/left-pad", Access.READ, Surface.PACKAGES),
        ("DELETE", "/api/v4/projects/1/packages", Access.WRITE, Surface.REST),
        ("GET", "/api/v4/projects/1/packaged/npm", Access.READ, Surface.REST),
        ("GET", "/api/v4/projects/packages/npm", Access.READ, Surface.REST),
        ("GET", "/api/v5/projects/1/packages/npm/x", Access.READ, Surface.REST),
        ("POST", "/api/v4/projects/1/ml/mlflow/api/2.0/mlflow/runs/log-inputs", Access.WRITE, Surface.MLFLOW),
        ("POST", "/users/sign_in", Access.WRITE, Surface.WEB),
        ("GET", "/g/p.git/HEAD", Access.READ, Surface.GIT),
        ("GET", "/g/p.git", Access.READ, Surface.WEB),
        ("GET", "/g/p.git/info/lfs/nothing", Access.READ, Surface.LFS),
        ("DELETE", "/g/p.git/gitlab-lfs/objects/x", Access.WRITE, Surface.LFS),
        ("GET", "/api/v3/x", Access.READ, Surface.LEGACY),
        ("POST", "/api/v3/x", Access.WRITE, Surface.LEGACY),
        ("GET", "/-/kubernetes-agent/k8s-proxy/api/v1/pods", Access.WRITE, Surface.KAS),
        ("POST", "/api/graphql", Access.WRITE, Surface.GRAPHQL),
        ("POST", "/api/v4/markdown", Access.READ, Surface.REST),
        ("POST", "/api/v4/admin/token", Access.WRITE, Surface.REST),
        ("POST", "/api/v4/jobs/request", Access.WRITE, Surface.RUNNER),
        ("POST", "/g/p.git/info/lfs/objects/batch", Access.WRITE, Surface.LFS),
    ],
)
def test_classes_and_surfaces(method: str, target: str, access: Access, surface: Surface) -> None:
    operation = match(method, target)
    assert (operation.access, operation.surface) == (access, surface)


APP = "scope=repository%3Agroup%2Fproject%2Fapp%3Apull"


@pytest.mark.parametrize(
    ("query", "access"),
    [
        pytest.param(f"account=me&{APP}&service=container_registry", Access.READ, id="skopeo-pulls"),
        pytest.param(f"{APP}&service=container_registry", Access.READ, id="containerd-pulls"),
        pytest.param("scope=repository:a/b:pull&scope=repository:c:pull&service=container_registry", Access.READ, id="two"),
        pytest.param("scope=repository:a/b:pull+repository:a/c:pull&service=container_registry", Access.READ, id="in-one"),
        pytest.param("account=me&client_id=docker&offline_token=true&service=container_registry", Access.READ, id="log-in"),
        pytest.param(f"account=me&{APP}%2Cpush&service=container_registry", Access.WRITE, id="skopeo-pushes"),
        pytest.param(f"{APP}&{APP}%2Cpush&service=container_registry", Access.WRITE, id="containerd-pushes"),
        pytest.param("account=me&scope=repository%3Aa%2Fb%3A%2A&service=container_registry", Access.WRITE, id="deletes"),
        pytest.param("scope=repository:a/b:pull+repository:c:push&service=container_registry", Access.WRITE, id="push"),
        pytest.param("scope=repository:a:pull%0Arepository:b:push&service=container_registry", Access.WRITE, id="line-end"),
        pytest.param("scope=registry:catalog:*&service=container_registry", Access.WRITE, id="catalogue"),
        pytest.param("scope[]=repository:a/b:push&service=container_registry", Access.WRITE, id="brackets"),
        pytest.param("scope=repository:a:pull;scope=x:push&service=container_registry", Access.WRITE, id="semicolon"),
        pytest.param("sc%6Fpe=repository:a/b:push&service=container_registry", Access.WRITE, id="escaped"),
        pytest.param("service=dependency_proxy", Access.WRITE, id="dependency-proxy"),
        pytest.param("service=container_registry&service=dependency_proxy", Access.WRITE, id="two-services"),
        pytest.param("", Access.WRITE, id="nothing"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_a_token_of_the_registry_that_only_pulls_is_a_read(method: str, query: str, access: Access) -> None:
    for _ in range(2):  # no answer is remembered by the path alone
        assert match(method, f"/jwt/auth?{query}").access is access
    assert match(method, f"/jwt/auth?{query}").name == "GET /jwt/auth"
    assert match("GET", "/jwt/auth").access is Access.WRITE
    assert match("POST", f"/jwt/auth?{query}").access is Access.WRITE


@pytest.mark.parametrize(
    ("method", "target", "name", "access", "project"),
    [
        ("GET", f"/g/p.git/info/refs{FETCH}", "GET /*repository_path.git/info/refs", Access.READ, "g/p"),
        ("GET", f"/g/p/info/refs{FETCH}", "GET /*repository_path/info/refs", Access.READ, "g/p"),
        ("GET", f"/a/b/c/d/e.git/info/refs{FETCH}", "GET /*repository_path.git/info/refs", Access.READ, "a/b/c/d/e"),
        ("GET", f"/g/p.git/info/refs{PUSH}", "GET /*repository_path.git/info/refs", Access.WRITE, "g/p"),
        ("GET", f"/g/p/info/refs{PUSH}", "GET /*repository_path/info/refs", Access.WRITE, "g/p"),
        ("POST", "/g/p.git/git-upload-pack", "POST /*repository_path.git/git-upload-pack", Access.READ, "g/p"),
        ("POST", "/g/p.git/git-receive-pack", "POST /*repository_path.git/git-receive-pack", Access.WRITE, "g/p"),
        ("POST", "/g/p.wiki.git/git-upload-pack", "POST /*repository_path.git/git-upload-pack", Access.READ, "g/p"),
        ("POST", "/g/p.design.git/git-upload-pack", "POST /*repository_path.git/git-upload-pack", Access.READ, "g/p"),
        ("POST", "/g/p/snippets/3.git/git-upload-pack", "POST /*repository_path.git/git-upload-pack", Access.READ, "g/p"),
    ],
)
def test_git(method: str, target: str, name: str, access: Access, project: str) -> None:
    operation = match(method, target)
    assert (operation.name, operation.access) == (name, access)
    assert named(method, target) == [("project", project)]


@pytest.mark.parametrize("path", ["g/p", "g/p/v2/pkg", "a/b/c/d/e", "g/p.wiki/x", "42/7"])
def test_gos_question_where_a_repository_is(path: str) -> None:
    """`go get` asks so of whatever path is imported, one below a project's among them."""
    operation = match("GET", f"/{path}?go-get=1")
    assert (operation.name, operation.access, operation.surface) == ("GET /*project?go-get=1", Access.READ, Surface.GIT)
    assert named("GET", f"/{path}?go-get=1") == [("project", path)]
    assert match("GET", f"/{path}").name == "other"


@pytest.mark.parametrize(
    ("method", "target"),
    [
        ("GET", "/?go-get=1"),
        ("GET", "/g?go-get=1"),  # a group's page
        ("GET", "/g/p?go-get=1&x=2"),
        ("GET", "/g/p?go-get=2"),
        ("GET", "/g/p?go%2Dget=1"),
        ("GET", "/g/p%3Fgo-get=1"),
        ("GET", "/g/p%2Fq?go-get=1"),
        ("GET", "/g/p/-/issues?go-get=1"),
        ("GET", "/g/p.git?go-get=1"),
        ("GET", "/Admin/users?go-get=1"),  # no group can be called so
        ("GET", "/users/sign_in?go-get=1"),
        ("HEAD", "/g/p?go-get=1"),
        ("POST", "/g/p?go-get=1"),
    ],
)
def test_what_is_not_gos_question_stays_unknown(method: str, target: str) -> None:
    operation = match(method, target)
    assert (operation.name, operation.references) == ("other", ())


def test_gos_question_is_one_of_paths_that_no_template_knows() -> None:
    assert match("GET", "/g/p/-/raw/main/x?go-get=1").surface is Surface.WEB_TOKEN
    assert match("GET", "/api/v4/projects/1?go-get=1").name == "GET /api/v4/projects/:id"


@pytest.mark.parametrize(
    "query",
    ["", "?", "?service=git%2Dreceive-pack", f"{FETCH}&service=git-receive-pack", "?a=1&service=git-upload-pack", PUSH],
)
def test_only_gits_own_fetch_query_reads(query: str) -> None:
    """Rails takes the last of two parameters and decodes: whatever is not exactly a fetch may begin a push."""
    assert match("GET", f"/g/p.git/info/refs{FETCH}").access is Access.READ
    assert match("GET", f"/g/p.git/info/refs{query}").access is Access.WRITE


@pytest.mark.parametrize(
    ("method", "target", "expected"),
    [
        ("GET", "/api/v4/projects/42", [("project", "42")]),
        ("GET", "/api/v4/groups/a%2Fb/epics/1", [("group", "a/b")]),
        ("GET", "/api/v4/namespaces/x/exists", [("namespace", "x")]),
        ("POST", "/api/v4/projects/1/fork/2", [("project", "1"), ("project", "2")]),
        ("POST", "/api/v4/groups/g/projects/7", [("group", "g"), ("project", "7")]),
        ("DELETE", "/api/v4/projects/1/share/9", [("project", "1"), ("group", "9")]),
        ("GET", "/api/v4/users/3/projects", [("user", "3")]),
        ("GET", "/api/v4/issues/3", []),
        ("GET", "/g/s/p/-/archive/v1/x.zip", [("project", "g/s/p")]),
        ("GET", "/v2/g/s/dependency_proxy/containers/library/alpine/manifests/3", [("group", "g/s")]),
        ("GET", "/api/v4/projects/5/packages/npm/@a/b/-/b-1.tgz", [("project", "5")]),
    ],
)
def test_references(method: str, target: str, expected: list[tuple[str, str]]) -> None:
    assert named(method, target) == expected


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS", "PROPFIND"])
@pytest.mark.parametrize(
    "target",
    [
        "/api/v4/internal/allowed",
        "/api/v4/internal",
        "/api/v4/internal/",
        "/api/v4/internal.json",
        "/api/v4/internal./allowed",
        "/api/v4/internal;x/allowed",
        "/api/v4/internal%20/allowed",
        "/api/v4/Internal/allowed",
        "/API/V4/INTERNAL/allowed",
        "/api/v4/%69nternal/allowed",
        "/api/v4/%69%6E%74%65%72%6e%61%6C/allowed",
        "/api/v4/%2569nternal/allowed",
        "/api/v4/%252569nternal/allowed",
        "/%61pi/v4/internal/allowed",
        "/api%2Fv4%2Finternal%2Fallowed",
        "/api/v4%2finternal/allowed",
        "/api/v4%5Cinternal/allowed",
        "/api/v4/%2Finternal/allowed",
        "/api/v3/internal/allowed",
        "/api/v5/internal/allowed",
        "/api/v40/internal/x?private_token=y",
        "/api/v4/internal/no/such/thing",
        "/api/v4/geo/proxy",
        "/api/v4/geo/status",
        "/api/v4/container_registry_event/events",
        "/-/metrics",
        "/-/metrics/system",
        "/-/health",
        "/-/liveness?all=1",
        "/-/readiness.json",
        "/%2D/metrics",
        "/-/%6Detrics",
        "/-/chaos/kill",
    ],
)
def test_the_inner_surfaces_are_blocked_in_every_spelling(method: str, target: str) -> None:
    assert match(method, target).blocked


@pytest.mark.parametrize(
    ("method", "target"),
    [
        ("POST", "/api/v4/projects/1/uploads/authorize"),
        ("PUT", "/api/v4/projects/1/packages/generic/a/1/f/authorize"),
        ("POST", "/api/v4/jobs/1/artifacts/authorize"),
    ],
)
def test_what_workhorse_asks_rails_is_blocked(method: str, target: str) -> None:
    assert match(method, target).blocked


@pytest.mark.parametrize(
    "target",
    [
        "/api/v4/projects/internal",
        "/api/v4/projects/api%2Fv4%2Finternal",
        "/api/v4/geo_nodes",
        "/api/v4/internals",
        "/api/v4/version",
        "/api/internal/x",
        "/api/vx/internal",
        "/group/project/-/metrics",
        "/-/profile",
        "/-/graphql-explorer",
        "/g/api/v4/internal",
        "/",
        "/-",
        "/api/v4/%FF",
    ],
)
def test_what_only_looks_like_them_passes(target: str) -> None:
    assert not match("GET", target).blocked


SPELLINGS = st.lists(st.sampled_from(["plain", "upper", "escaped", "twice"]), min_size=8, max_size=8)


@given(SPELLINGS, st.sampled_from(["", "/", "/x", ".json", ";a=b"]))
def test_no_spelling_of_internal_slips_by(choices: list[str], ending: str) -> None:
    forms = {
        "plain": str,
        "upper": str.upper,
        "escaped": lambda letter: f"%{ord(letter):02x}",
        "twice": lambda letter: f"%25{ord(letter):02X}",
    }
    spelt = "".join(forms[choice](letter) for letter, choice in zip("internal", choices, strict=True))
    assert match("GET", f"/api/v4/{spelt}{ending}").blocked


def test_flags_reach_the_operation() -> None:
    assert match("GET", "/api/v4/projects/1/variables").secret_answer
    assert match("GET", "/api/v4/projects/1").may_hold_secret
    assert match("GET", "/api/v4/projects/1/merge_requests/1/merge_ref").side_effect
    assert match("GET", "/api/v4/projects/1/repository/archive").binary
    assert match("GET", "/api/v4/groups/1/projects").wide
    assert match("POST", "/api/v4/projects/1/merge_requests").names_in_body
    assert match("GET", "/api/v4/projects/1/jobs").job_token
    assert match("GET", "/api/v4/projects/1/packages/npm/x").deploy_token
    assert match("GET", "/api/v4/projects/1").permissions == ("read_project",)


def test_operations_lists_each_once_by_template() -> None:
    operations = CATALOGUE.operations()
    names = [operation.name for operation in operations]
    assert len(names) == len(set(names)) == 2113
    assert names == sorted(names, key=lambda name: (name.split(" ")[1], name.split(" ")[0]))
    assert CATALOGUE.gitlab == "19.3"


def test_every_template_matches_a_path_made_from_it() -> None:
    """No row is hidden by another."""
    beaten = []
    for operation in CATALOGUE.operations():
        method, template = operation.name.split(" ", 1)
        if "?" in template:
            continue  # one query of a path that no template knows
        path = template.replace("(-/)", "").replace("(*path/)", "").replace("(/)(*suffix_path)", "")
        found = CATALOGUE.find("GET" if method == "ANY" else method, tuple(path.strip("/").replace(":", "9").split("/")))
        assert found is not None, operation.name
        if found.name != operation.name:
            beaten.append((operation.name, found.name))
    assert beaten == []


def test_a_memo_full_of_paths_is_emptied_and_long_paths_are_not_kept() -> None:
    small = Catalogue.decode(read())
    for number in range(9000):
        path = b"/api/v4/issues/%d" % number
        target = Target(path, path, None, ("api", "v4", "issues", str(number)))
        assert small.match("GET", target).name == "GET /api/v4/issues/:id"
    kept = len(small._memo)
    assert 0 < kept <= catalogue._MEMO_BOUND
    long = "/api/v4/issues/" + "9" * 600
    assert small.match("GET", parse_target(long.encode())) == small.match("GET", parse_target(long.encode()))
    assert len(small._memo) == kept


def test_a_reference_may_move_with_a_wildcard_before_it() -> None:
    row = b'["GET","/*any/projects/:id/x/*rest","rest","read",[],{"id":"project"},[]]'
    made = Catalogue.decode(b'{"version":1,"gitlab":"1","operations":[' + row + b"]}")
    target = parse_target(b"/a/b/projects/7/x/y/z")
    assert made.match("GET", target).references == (Reference(3, ReferenceKind.PROJECT),)


@pytest.mark.parametrize("data", [b"", b"{}", b"[]", b'{"version":1,"gitlab":"1","operations":[["GET"]]}'])
def test_what_is_no_data_file_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match="not a route catalogue"):
        Catalogue.decode(data)


def test_another_version_is_refused() -> None:
    with pytest.raises(ValueError, match="of version 2"):
        Catalogue.decode(msgspec.json.encode({"version": 2, "gitlab": "99", "operations": []}))


_WORDS = ["api", "v4", "internal", "geo", "projects", "Internal", "internal.json", "int\u0435rnal", "a_b", "%69nternal"]
_BEGINNINGS = st.sampled_from(_WORDS)


@given(st.lists(_BEGINNINGS | st.text(max_size=3), max_size=4))
def test_the_short_way_to_what_is_blocked_leads_where_the_long_one_does(rest: list[str]) -> None:
    short = ("api", "v4", *rest)
    assert is_blocked(short) == is_blocked(("api;", "v4", *rest))
    assert is_blocked(short) or not rest or rest[0] not in {"internal", "geo"}


def test_is_blocked_looks_at_the_beginning_only() -> None:
    assert is_blocked(("api", "v4", "internal"))
    assert not is_blocked(("a", "api", "v4", "internal"))
    assert not is_blocked(())
