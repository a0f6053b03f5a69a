"""Real clients of GitLab's API, with their own tokens and with gateway keys, and proof that none of them goes round."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
from collections.abc import Iterator
from typing import Any

import gitlab as python_gitlab
import pytest

from gateway.demo.gitlab import DemoGitLab
from gateway.demo.seed import TOKENS
from tests.e2e.conftest import DEMO_SECRETS, demo_config
from tests.e2e.running import ROOT, GatewayProcess

NESTED = "platform/tools/deploy/runner-images"
PATHS = ["src/deep/er/than/usual.txt", "src/a+b.txt", "docs/über uns.md", "docs/[x]?#.txt", "docs/100%.txt"]
CALLERS = ["own", "brokered"]


@pytest.fixture(params=CALLERS)
def token(request: pytest.FixtureRequest, bot_key: str) -> str:
    """Ada's own token, and a gateway key whose rule uses it."""
    return TOKENS.ada if request.param == "own" else bot_key


@pytest.fixture
def journal(demo: DemoGitLab) -> Iterator[list[Any]]:
    """What GitLab was asked during the test: everything must have come through a gateway, and nobody's key may."""
    before = len(demo.journal)
    seen: list[Any] = []
    yield seen
    seen += list(demo.journal)[before:]
    assert seen
    for one in seen:
        # The gateway's own requests (whose token is this?) carry no Via.
        assert one.values("via") == [b"1.1 gateway"] or one.target in QUESTIONS, one.line
        assert not any(value.startswith(b"ggw_") for _, value in one.headers), one.line


QUESTIONS = {b"/api/v4/personal_access_tokens/self", b"/oauth/token/info", b"/api/v4/job"}


@pytest.fixture
def client(gateway: GatewayProcess, token: str, journal: list[Any]) -> Iterator[python_gitlab.Gitlab]:
    with python_gitlab.Gitlab(gateway.url, private_token=token, keep_base_url=False) as made:
        yield made


# python-gitlab


def test_r53_python_gitlab_pages_by_link(client: python_gitlab.Gitlab) -> None:
    listed = client.projects.list(iterator=True, per_page=10)
    assert sorted(project.id for project in listed) == list(range(1, 50))
    assert listed.total == 49


def test_r53_python_gitlab_pages_by_keyset(client: python_gitlab.Gitlab) -> None:
    keyset = client.projects.list(iterator=True, pagination="keyset", order_by="id", sort="asc", per_page=7)
    assert [project.id for project in keyset] == list(range(1, 50))


def test_r53_python_gitlab_reads_nested_names(client: python_gitlab.Gitlab) -> None:
    project = client.projects.get(NESTED)
    assert project.path_with_namespace == NESTED
    for branch in ("feature/deep/er", "release/1.0+hotfix", "fix#42", "ümläut"):
        assert project.branches.get(branch).name == branch
    assert project.tags.get("rel/2.0").name == "rel/2.0"
    for path in PATHS:
        assert project.files.get(path, ref="main").file_path == path
        assert project.files.get(path, ref="feature/login").ref == "feature/login"
    assert project.files.raw("image.bin", ref="main") == bytes(range(256))
    assert len(project.repository_tree(recursive=True, get_all=True, per_page=4)) == 15


def test_r53_python_gitlab_writes(client: python_gitlab.Gitlab) -> None:
    project = client.projects.get(NESTED)
    issue = project.issues.create({"title": "Found", "labels": ["bug", "team::platform/api"]})
    issue.title = "Fixed"
    issue.state_event = "close"
    issue.save()
    issue.notes.create({"body": "Well done"})
    assert project.issues.get(issue.iid).title == "Fixed"
    assert [note.body for note in issue.notes.list(get_all=True)] == ["Well done"]
    issue.delete()
    with pytest.raises(python_gitlab.GitlabGetError, match="404"):
        project.issues.get(issue.iid)
    made = project.files.create(
        {"file_path": "new/ä b.txt", "branch": "feature/login", "content": "1", "commit_message": "Add"}
    )
    made.content = "2"
    made.save(branch="feature/login", commit_message="Change")
    assert project.files.get("new/ä b.txt", ref="feature/login").decode() == b"2"
    made.delete(branch="feature/login", commit_message="Remove")
    project.branches.create({"branch": "a/b/c", "ref": "main"}).delete()


def test_r53_python_gitlab_uploads_and_streams(client: python_gitlab.Gitlab) -> None:
    project = client.projects.get("platform/api")
    sent = project.upload("hello.txt", filedata=b"hello")
    assert sent["markdown"] == f"[hello.txt]({sent['url']})"
    received = io.BytesIO()
    project.generic_packages.download("stream", "1.0.0", "1000000.bin", streamed=True, action=received.write)
    assert received.getvalue() == (bytes(range(256)) * 3907)[:1_000_000]
    assert project.repository_archive()


@pytest.fixture(scope="module")
def pacing(demo: DemoGitLab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    """A gateway whose callers run dry after two requests."""
    limits = [{"id": "caller", "by": "caller", "rate": "60/min", "burst": 2}]
    process = GatewayProcess(demo_config(demo.url, limits=limits), tmp_path_factory.mktemp("pacing"), DEMO_SECRETS)
    yield process
    assert process.stop() == 0


@pytest.mark.parametrize("caller", CALLERS)
def test_r53_python_gitlab_waits_out_our_429(pacing: GatewayProcess, demo: DemoGitLab, caller: str) -> None:
    token = TOKENS.ada if caller == "own" else pacing.new_key("bot")
    before = _refusals(pacing)
    with python_gitlab.Gitlab(pacing.url, private_token=token) as client:
        titles = [client.projects.get(number).id for number in (1, 2, 3)]
    assert titles == [1, 2, 3]
    # It waited as long as `Retry-After` says: one refusal, no hammering.
    assert 1 <= _refusals(pacing) - before <= 2


def _refusals(gateway: GatewayProcess) -> int:
    wanted = 'gitlab_gateway_refusals_total{code="rate_limited"} '
    lines = [line for line in gateway.metrics().splitlines() if line.startswith(wanted)]
    return int(float(lines[0].removeprefix(wanted))) if lines else 0


# @gitbeaker/rest


@pytest.mark.usefixtures("journal")
@pytest.mark.parametrize("kind", ["token", "oauth"])
def test_r53_gitbeaker(gateway: GatewayProcess, token: str, kind: str) -> None:
    found = _gitbeaker(gateway.url, token, kind)
    assert sorted(found["offset"]) == list(range(1, 50))
    assert found["keyset"] == list(range(1, 50))
    assert found["project"] == NESTED
    assert found["branch"] == "feature/deep/er"
    assert found["paths"] == PATHS
    assert found["raw"] == 'print("hello")\n'
    assert (found["edited"], found["note"], found["gone"]) == ("Edited", "Done", 404)
    assert found["uploaded"] is True


def test_r53_gitbeaker_waits_out_our_429(demo: DemoGitLab, tmp_path_factory: pytest.TempPathFactory) -> None:
    limits = [{"id": "caller", "by": "caller", "rate": "20/s", "burst": 1}]  # it gives up after a quarter of a second
    process = GatewayProcess(demo_config(demo.url, limits=limits), tmp_path_factory.mktemp("hasty"), DEMO_SECRETS)
    try:
        assert _gitbeaker(process.url, TOKENS.ada, "token")["project"] == NESTED
        assert _refusals(process) > 0
    finally:
        assert process.stop() == 0


def _gitbeaker(url: str, token: str, kind: str) -> dict[str, Any]:
    node = shutil.which("node")
    assert node is not None
    done = subprocess.run(
        [node, "clients.mjs", url, token, kind],
        cwd=ROOT / "tests" / "e2e",
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))
