"""The admin API and its descriptions: one page for people, one for machines, both held against the real process."""

from __future__ import annotations

import datetime
import hashlib
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml

from gateway import __version__
from gateway.core.redaction import _TOKEN
from gateway.demo.gitlab import DemoGitLab, build_demo_gitlab
from gateway.demo.seed import PERSONAL_PREFIX
from tests.e2e.running import GatewayProcess, LoopThread
from tests.e2e.wire import ask
from tests.test_docs import every_endpoint, served

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/admin-api.md").read_text("utf-8")
DESCRIPTION = yaml.safe_load((ROOT / "docs/openapi.yaml").read_text("utf-8"))
TOKEN_PATH = "/-/gateway/token"
KEY = "an-admin-key-of-the-admin-api-s"
ORIGIN = "https://gateway.example.com"
BOT = 5
METHODS = {"get", "post", "put", "patch", "delete"}


class Section(msgspec.Struct, frozen=True):
    """One endpoint as the page has it."""

    title: str
    text: str

    def fence(self, language: str) -> str | None:
        found = re.findall(rf"^```{language}\n(.*?)^```", self.text, re.MULTILINE | re.DOTALL)
        assert len(found) <= 1, (self.title, language)
        return found[0].strip() if found else None

    @property
    def endpoint(self) -> str:
        return self.fence("plaintext") or ""

    @property
    def attributes(self) -> list[tuple[str, ...]]:
        rows = [line for line in self.text.splitlines() if line.startswith("| `")]
        return [tuple(cell.strip(" `") for cell in row.strip("|").split("|")) for row in rows]


SECTIONS = [Section(text.partition("\n")[0], text) for text in PAGE.split("\n## ")[1:]]
BY_TITLE = [pytest.param(section, id=section.title) for section in SECTIONS]


def described() -> dict[str, dict[str, Any]]:
    """`METHOD /path` → operation, of the admin port."""
    return {
        f"{method.upper()} {path}": operation
        for path, operations in DESCRIPTION["paths"].items()
        for method, operation in operations.items()
        if method in METHODS and path != TOKEN_PATH
    }


# The page


def test_d1_each_endpoint_has_its_section_headed_by_method_and_path() -> None:
    assert sorted(section.endpoint for section in SECTIONS) == sorted(served())


def _asked(endpoint: str) -> dict[str, bool]:
    """Attribute → whether it is required, by the description."""
    path = endpoint.partition(" ")[2]
    operation = described()[endpoint]
    parameters = [*DESCRIPTION["paths"][path].get("parameters", []), *operation.get("parameters", [])]
    found = {}
    for parameter in parameters:
        whole = DESCRIPTION["components"]["parameters"]["KeyId"] if "$ref" in parameter else parameter
        found[whole["name"]] = bool(whole.get("required"))
    if "requestBody" in operation:
        schema = operation["requestBody"]["content"]["application/json"]["schema"]
        if "$ref" in schema:
            schema = DESCRIPTION["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
        found |= {name: name in schema.get("required", []) for name in schema["properties"]}
    return found


@pytest.mark.parametrize("section", BY_TITLE)
def test_d2_attributes_stand_required_first_then_by_name_and_are_those_described(section: Section) -> None:
    order = [(required != "Yes", name) for name, _, required, _ in section.attributes]
    assert order == sorted(order)
    assert {name: required == "Yes" for name, _, required, _ in section.attributes} == _asked(section.endpoint)
    assert not section.attributes or "| Attribute | Type | Required | Description |" in section.text


@pytest.mark.parametrize("section", BY_TITLE)
def test_d3_the_example_is_in_gitlabs_form(section: Section) -> None:
    command = section.fence("shell") or ""
    words = shlex.split(command)
    assert words[:2] == ["curl", "--request"]
    assert section.endpoint.startswith(f"{words[2]} /")
    assert re.search(rf'--url "{re.escape(ORIGIN)}/[^"]*"$', command)
    if "/-/" in section.endpoint:
        assert '--header "PRIVATE-TOKEN: <your_access_token>"' in command


def test_d6_nothing_on_the_page_is_real() -> None:
    for text in (PAGE, (ROOT / "docs/openapi.yaml").read_text("utf-8")):
        hosts = set(re.findall(r"https?://([\w.-]+)", text))
        assert hosts <= {"gateway.example.com", "127.0.0.1"}
        assert not _TOKEN.search(text.encode())
        addresses = re.findall(r"\b\d{1,3}(?:\.\d{1,3}){3}\b", text)
        assert all(address.startswith(("192.0.2.", "127.0.0.")) for address in addresses)


@pytest.mark.parametrize("section", BY_TITLE)
def test_d7_each_endpoint_says_since_when(section: Section) -> None:
    (version,) = re.findall(r"^- Introduced in gitlab-gateway (\d+\.\d+\.\d+)\.$", section.text, re.MULTILINE)
    assert [int(part) for part in version.split(".")] <= [int(part) for part in __version__.split(".")]


def test_each_endpoint_says_which_permission_opens_it() -> None:
    opened_by = {f"{one.method} {one.path}": [str(permission) for permission in one.needs] for one in every_endpoint()}
    on_the_page = {
        section.endpoint: re.findall(r"`(\w+)`", line)
        for section in SECTIONS
        for line in re.findall(r"^- Permission: (.*)\.$", section.text, re.MULTILINE)
    }
    assert on_the_page == opened_by
    operations = {name: operation for name, operation in described().items() if "/-/" in name}
    assert {name: operation["x-permissions"] for name, operation in operations.items()} == opened_by
    assert all("403" in operation["responses"] for operation in operations.values())


# The page, executed


@pytest.fixture(scope="module")
def gitlab(upstreams: LoopThread) -> Iterator[DemoGitLab]:
    """Of its own: one of its tokens is replaced."""
    gitlab = build_demo_gitlab()
    upstreams.run(gitlab.start())
    yield gitlab
    upstreams.run(gitlab.close())


@pytest.fixture(scope="module")
def port(gitlab: DemoGitLab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    state = gitlab.state
    end = state.today() + datetime.timedelta(days=60)
    token = state.mint(state.users[BOT], "readers", ("api",), PERSONAL_PREFIX, end)
    config = {
        "upstream": {"url": gitlab.url},
        "identities": [{"id": name, "key": "issued"} for name in ("backstage", "renovate", "portal")],
        "credentials": [{"id": "readers", "token": "${env:READERS}", "rotate": {"before": "14d"}}],
        "rules": [
            {"id": "reads", "for": ["backstage", "renovate", "portal"], "use": "readers", "allow": [{"access": "read"}]}
        ],
        "limits": [{"id": "caller", "by": "caller", "rate": "600/min", "burst": 100}],
        "admin": {"keys": [{"id": "ops", "sha256": hashlib.sha256(KEY.encode()).hexdigest()}]},
    }
    process = GatewayProcess(config, tmp_path_factory.mktemp("admin-api"), {"READERS": token.value})
    yield process
    assert process.stop() == 0


_OTHER_EACH_TIME = {"id", "created_at", "until", "remaining", "full_in_s", "key", "said", "asked"}


def agree(shown: Any, live: Any, names: dict[str, str], *, shortened: bool, name: str = "") -> None:
    """The same shape throughout, and the same values where they are the same each time; ids are learnt."""
    if isinstance(shown, dict):
        assert isinstance(live, dict), name
        assert set(shown) <= set(live) if shortened else set(shown) == set(live), (name, set(shown) ^ set(live))
        for member, value in shown.items():
            agree(value, live[member], names, shortened=shortened, name=member)
    elif isinstance(shown, list):
        assert bool(shown) == bool(live), name
        for value, found in zip(shown, live, strict=False):
            agree(value, found, names, shortened=shortened, name=name)
    elif name in _OTHER_EACH_TIME or isinstance(shown, float):
        assert type(shown) is type(live), name
        if name == "id":
            assert shown.startswith("key_") or shown == live
            names[shown] = live
    else:
        assert shown == live, name


def test_d4_every_example_is_what_the_gateway_does(port: GatewayProcess) -> None:
    """In the order of the page, so that what one makes another shows."""
    # Somebody must have asked before the top callers are listed.
    used = port.new_key("renovate"), port.new_key("backstage")
    assert ask(port.port, "/api/v4/version", token=used[1]).status == 200
    (mine,) = [row["id"] for row in json.loads(port.command("keys", "list", "backstage", "--json").stdout)]
    port.command("keys", "revoke", mine)
    names: dict[str, str] = {}
    for section in SECTIONS:
        command = section.fence("shell") or ""
        for shown, live in names.items():
            command = command.replace(shown, live)
        command = command.replace(ORIGIN, f"http://127.0.0.1:{port.admin_port}").replace("<your_access_token>", KEY)
        done = subprocess.run(
            [*shlex.split(command.replace("\\\n", " ")), "--silent", "--show-error", "--fail"],
            capture_output=True,
            text=True,
            timeout=30,
            check=True,
        )
        as_json, as_text = section.fence("json"), section.fence("text")
        if as_json is not None:
            agree(json.loads(as_json), json.loads(done.stdout), names, shortened="is shortened" in section.text)
        elif as_text is not None:
            assert set(as_text.splitlines()) <= set(done.stdout.splitlines())
        else:
            assert done.stdout == ""
    assert set(names) == {"readers", "key_0123456789ab", "key_ba9876543210", "key_00112233aabb"}


def test_the_command_explains_a_request_that_was_made(port: GatewayProcess, tmp_path: Path) -> None:
    """It finds the admin port in a configuration whose secrets its environment lacks."""
    key = port.new_key("portal")
    target = "/api/v4/projects/platform%2Fapi"
    made = ask(port.port, target, f"PRIVATE-TOKEN: {key}", method="DELETE")
    assert made.status == 403
    config = json.loads(port.file.read_text("utf-8"))
    config["listen"]["admin"] = f"127.0.0.1:{port.admin_port}"  # what the system chose
    (tmp_path / "gateway.yaml").write_text(json.dumps(config))
    words = ["explain", "--request", made.request_id, "--config", str(tmp_path / "gateway.yaml")]
    done = subprocess.run(
        [sys.executable, "-m", "gateway", *words],
        cwd=ROOT,
        env={"PATH": os.environ["PATH"], "GATEWAY_ADMIN_KEY": KEY},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    was, now = done.stdout.split("\n\n")
    assert re.search(rf"^target +{target}$", was, re.MULTILINE)
    assert re.search(r"^code +forbidden$", was, re.MULTILINE)
    assert re.search(r"^clause +reads allow\[0\]: does not hold", now, re.MULTILINE)
    assert done.stderr == ""


# The description


def test_d5_the_description_has_the_routes_that_are_served_and_no_others() -> None:
    assert set(described()) == served()
    assert set(DESCRIPTION["paths"][TOKEN_PATH]) & METHODS == {"post"}
    assert DESCRIPTION["info"]["version"] == __version__
    assert DESCRIPTION["openapi"].startswith("3.0.")


def _conforms(tmp_path: Path, url: str, *more: str) -> None:
    """Schemathesis finds nothing: what is sent by the description, and against it, is answered as described."""
    text = (ROOT / "docs/openapi.yaml").read_text("utf-8")
    issued = 'identity: {type: string, description: "One with `key: issued`."}'
    assert text.count(issued) == 2
    file = tmp_path / "openapi.yaml"  # with identities that exist: else nothing would be reached behind that check
    file.write_text(text.replace(issued, "identity: {type: string, enum: [backstage, renovate]}"))
    schemathesis = Path(sys.executable).parent / "schemathesis"
    arguments = ["--url", url, "--max-examples", "10", "--seed", "1", "--no-color", "--warnings", "off", *more]
    # What is right by the description may still name an unknown limit; and wrong keys are limited, by design.
    arguments += ["--checks", "all", "--exclude-checks", "positive_data_acceptance,ignored_auth"]
    done = subprocess.run(
        [schemathesis, "run", file, *arguments], cwd=tmp_path, capture_output=True, text=True, timeout=110, check=False
    )
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    assert " 0 passed" not in done.stdout


def test_the_admin_port_keeps_to_the_description(port: GatewayProcess, tmp_path: Path) -> None:
    url = f"http://127.0.0.1:{port.admin_port}"
    _conforms(tmp_path, url, "--header", f"Authorization: Bearer {KEY}", "--exclude-path", TOKEN_PATH)


def test_the_token_endpoint_keeps_to_the_description(
    gitlab: DemoGitLab, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    oidc = {"issuer": "http://127.0.0.1:9", "audience": "gateway", "claims": {"job_project_id": "7"}}
    config = {"upstream": {"url": gitlab.url}, "identities": [{"id": "ci", "oidc": oidc}]}
    process = GatewayProcess(config, tmp_path_factory.mktemp("tokens"))
    try:
        _conforms(tmp_path, process.url, "--include-path", TOKEN_PATH)
    finally:
        assert process.stop() == 0
