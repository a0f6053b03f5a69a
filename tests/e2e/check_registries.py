"""Clients of GitLab's registries, of images and of packages: ``make clients`` fetches them and runs this. ``make test``
does not collect it. What is not to be had here is skipped, and says so.

Images lie in a real registry, which sends its clients to the gateway for their tokens; the GitLab behind it is a fake.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from socket import create_connection, create_server
from types import SimpleNamespace
from typing import Any

import pytest

from tests.e2e.running import ROOT, START_S, GatewayProcess
from tests.fakes.certificates import Authority
from tests.fakes.package_gitlab import ISSUER, QUESTIONS, PackageGitLab, write_image

OWN, SHARED = "glpat-own-00000000000000", "glpat-shared-00000000000"
CLIENTS = ROOT / ".clients"
TOKENS = 30
"""For the registry, an hour, of each identity."""
PLACES = [str(CLIENTS / "usr/bin"), os.environ["PATH"]]
LIBRARIES = [str(found) for at in ("lib", "usr/lib") for found in CLIENTS.glob(f"{at}/*-linux-gnu")]

Client = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def gitlab(authority: Authority) -> Iterator[PackageGitLab]:
    everything = {"pull", "push", "delete"}
    fake = PackageGitLab(authority.issue(ISSUER, with_rsa=True), {OWN: everything, SHARED: everything})
    yield fake
    fake.close()


@pytest.fixture(scope="module")
def gateway(gitlab: PackageGitLab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    place = f"127.0.0.1:{_free_port()}"
    gitlab.address = f"http://{place}"
    config = {
        "listen": {"address": place, "admin": "127.0.0.1:0"},
        "upstream": {"url": gitlab.url, "external_url": gitlab.address},
        "identities": [
            *({"id": name, "key": "issued"} for name in ("bot", "reader", "greedy")),
            {"id": "people", "gitlab_token": True},
        ],
        "credentials": [{"id": "shared", "token": "${env:SHARED}"}],
        "rules": [
            {"id": "writes", "for": ["bot", "greedy"], "use": "shared", "allow": [{"access": "write"}]},
            {"id": "reads", "for": ["reader"], "use": "shared", "allow": [{"access": "read"}]},
        ],
        "limits": [{"id": "tokens", "by": "identity", "rate": f"{TOKENS}/h", "match": {"surfaces": ["registry"]}}],
    }
    process = GatewayProcess(config, tmp_path_factory.mktemp("gateway"), {"SHARED": SHARED})
    yield process
    assert process.stop() == 0


@pytest.fixture(scope="module")
def keys(gateway: GatewayProcess) -> SimpleNamespace:
    return SimpleNamespace(**{name: gateway.new_key(name) for name in ("bot", "reader", "greedy")})


@pytest.fixture(params=["own", "brokered"])
def token(request: pytest.FixtureRequest, keys: SimpleNamespace) -> str:
    return OWN if request.param == "own" else keys.bot


@pytest.fixture(autouse=True)
def journal(gitlab: PackageGitLab) -> Iterator[None]:
    """Nobody went round the gateway, and nobody's key went up."""
    before = len(gitlab.heads)
    yield
    for line, fields in gitlab.heads[before:]:
        assert fields.get("via") in {"1.1 gateway", "1.0 gateway"} or line.split()[1] in QUESTIONS, line
        assert "ggw_" not in line + str(fields), line


@pytest.fixture
def run(tmp_path: Path) -> Client:
    """A command, in a directory of its own."""

    def run(*command: str, **environment: str) -> subprocess.CompletedProcess[str]:
        known = {"PATH": ":".join(PLACES), "LD_LIBRARY_PATH": ":".join(LIBRARIES), "HOME": str(tmp_path), "LANG": "C.UTF-8"}
        return subprocess.run(
            command,
            cwd=tmp_path,
            env=known | environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=110,
            check=False,
        )

    return run


def _needs(*programs: str) -> None:
    for program in programs:
        if shutil.which(program, path=":".join(PLACES)) is None:
            pytest.skip(f"{program} is not to be had here")


def _free_port() -> int:
    with closing(create_server(("127.0.0.1", 0))) as free:
        return int(free.getsockname()[1])


def _wait_for(holds: Callable[[], Any]) -> None:
    until = time.monotonic() + START_S
    while True:
        try:
            holds()
            return
        except OSError:
            assert time.monotonic() < until
            time.sleep(0.05)


# Images


@pytest.fixture(scope="module")
def registry(gateway: GatewayProcess, authority: Authority, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Where it is."""
    _needs("docker-registry")
    directory, port = tmp_path_factory.mktemp("registry"), _free_port()
    config = {
        "version": "0.1",
        "log": {"level": "error"},
        "storage": {"filesystem": {"rootdirectory": str(directory / "images")}, "delete": {"enabled": True}},
        "http": {"addr": f"127.0.0.1:{port}", "secret": "x"},
        "auth": {
            "token": {
                "realm": f"{gateway.url}/jwt/auth",
                "service": "container_registry",
                "issuer": ISSUER,
                "rootcertbundle": str(authority.file),
            }
        },
    }
    (directory / "config.json").write_text(json.dumps(config))
    program = shutil.which("docker-registry", path=":".join(PLACES)) or ""
    process = subprocess.Popen(
        [program, "serve", str(directory / "config.json")], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    _wait_for(lambda: create_connection(("127.0.0.1", port)).close())
    yield f"127.0.0.1:{port}"
    process.terminate()
    process.wait(10)


@pytest.fixture
def skopeo(run: Client, tmp_path: Path) -> Client:
    _needs("skopeo")
    if run("skopeo", "--version").returncode != 0:
        pytest.skip("skopeo lacks a library here")
    write_image(tmp_path / "image")
    return lambda verb, *rest: run("skopeo", "--insecure-policy", verb, *rest)


def _push(skopeo: Client, key: str, image: str) -> subprocess.CompletedProcess[str]:
    return skopeo("copy", "--dest-tls-verify=false", "--dest-creds", f"me:{key}", "oci:image", f"docker://{image}")


def _inspect(skopeo: Client, key: str, image: str) -> subprocess.CompletedProcess[str]:
    return skopeo("inspect", "--tls-verify=false", "--creds", f"me:{key}", f"docker://{image}")


def test_skopeo(registry: str, skopeo: Client, token: str) -> None:
    """It pushes, looks, mounts what lies in another repository, and deletes."""
    image = f"{registry}/group/project/app:{token[:3]}"
    assert skopeo("login", "--tls-verify=false", "-u", "me", "-p", token, registry).returncode == 0
    assert (pushed := _push(skopeo, token, image)).returncode == 0, pushed.stderr
    assert json.loads(_inspect(skopeo, token, image).stdout)["Name"] == f"{registry}/group/project/app"
    other = image.replace("/app:", "/other:")
    creds = (
        "--src-tls-verify=false",
        "--dest-tls-verify=false",
        "--src-creds",
        f"me:{token}",
        "--dest-creds",
        f"me:{token}",
    )
    assert skopeo("copy", *creds, f"docker://{image}", f"docker://{other}").returncode == 0
    assert skopeo("delete", "--tls-verify=false", "--creds", f"me:{token}", f"docker://{other}").returncode == 0
    assert _inspect(skopeo, token, other).returncode != 0


def test_who_may_read_pulls_and_does_not_push(registry: str, skopeo: Client, keys: SimpleNamespace) -> None:
    image = f"{registry}/group/project/read:1"
    assert _push(skopeo, keys.bot, image).returncode == 0
    assert skopeo("login", "--tls-verify=false", "-u", "me", "-p", keys.reader, registry).returncode == 0
    assert _inspect(skopeo, keys.reader, image).returncode == 0
    refused = _push(skopeo, keys.reader, image.replace("/read:", "/new:"))
    assert (refused.returncode, "orbidden" in refused.stderr) == (1, True), refused.stderr


def test_what_a_person_reads(registry: str, skopeo: Client, keys: SimpleNamespace) -> None:
    image = f"{registry}/group/project/told:1"
    wrong = _inspect(skopeo, keys.bot[:-3] + "abc", image)
    assert "unauthorized: 401 Unauthorized" in wrong.stderr
    for _ in range(TOKENS + 1):
        refused = _inspect(skopeo, keys.greedy, image)  # takes one, or two where the image is there
    assert "too many requests to registry" in refused.stderr  # it does not try again


@pytest.fixture
def containerd(run: Client, tmp_path: Path) -> Iterator[Client]:
    _needs("containerd", "ctr")
    if os.geteuid() != 0:
        pytest.skip("containerd is root's")
    address = tmp_path / "containerd.sock"
    program = shutil.which("containerd", path=":".join(PLACES)) or ""
    places = [f"--{name}={tmp_path / name}" for name in ("root", "state")]
    process = subprocess.Popen(
        [program, *places, f"--address={address}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    _wait_for(address.stat)
    yield lambda *rest: run("ctr", "--address", str(address), *rest)
    process.terminate()
    process.wait(10)


def test_containerd(registry: str, skopeo: Client, containerd: Client, token: str) -> None:
    """It asks by a form first, with the password in it, and goes on to Basic."""
    image = f"{registry}/group/project/ctr-{token[:3]}:1"
    assert _push(skopeo, token, image).returncode == 0
    got = containerd("content", "fetch", "--plain-http", "--user", f"me:{token}", image)
    assert got.returncode == 0, got.stderr
    sent = containerd("images", "push", "--plain-http", "--user", f"me:{token}", image.replace(":1", ":2"), image)
    assert sent.returncode == 0, sent.stderr


# Packages


def _npmrc(directory: Path, gateway: GatewayProcess, token: str) -> None:
    address = f"{gateway.url}/api/v4/projects/1/packages/npm/"
    secret = f"{address.removeprefix('http:')}:_authToken={token}"
    (directory / ".npmrc").write_text(f"@acme:registry={address}\n{secret}\nupdate-notifier=false\n")


def test_npm(gateway: GatewayProcess, gitlab: PackageGitLab, run: Client, token: str, tmp_path: Path) -> None:
    """It publishes, tags, installs and audits."""
    _needs("npm")
    name = f"@acme/lib-{token[:3]}"
    _npmrc(tmp_path, gateway, token)
    (tmp_path / "package.json").write_text(json.dumps({"name": name, "version": "1.0.0", "files": ["index.js"]}))
    (tmp_path / "index.js").write_text("//\n")
    assert (published := run("npm", "publish")).returncode == 0, published.stderr
    assert (tagged := run("npm", "dist-tag", "add", f"{name}@1.0.0", "next")).returncode == 0, tagged.stderr
    assert gitlab.npm[name]["dist-tags"] == {"latest": "1.0.0", "next": "1.0.0"}
    (tmp_path / "package.json").write_text('{"name": "user", "version": "1.0.0", "private": true}')
    assert (installed := run("npm", "install", f"{name}@next")).returncode == 0, installed.stderr
    assert (tmp_path / "node_modules" / name / "index.js").exists()
    audited = run("npm", "audit", "--registry", f"{gateway.url}/api/v4/projects/1/packages/npm/")
    assert audited.returncode == 0, audited.stderr


def test_npm_says_why(gateway: GatewayProcess, run: Client, keys: SimpleNamespace, tmp_path: Path) -> None:
    _needs("npm")
    _npmrc(tmp_path, gateway, keys.reader)
    (tmp_path / "package.json").write_text('{"name": "@acme/none", "version": "1.0.0", "files": []}')
    assert "Not allowed by the gateway's rules" in run("npm", "publish").stderr


def _wheel(directory: Path) -> Path:
    file = directory / "acme_lib-1.0-py3-none-any.whl"
    about = "acme_lib-1.0.dist-info/"
    with zipfile.ZipFile(file, "w") as wheel:
        wheel.writestr("acme_lib.py", "")
        wheel.writestr(about + "METADATA", "Metadata-Version: 2.1\nName: acme-lib\nVersion: 1.0\n")
        wheel.writestr(about + "WHEEL", "Wheel-Version: 1.0\nGenerator: x\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(about + "RECORD", "")
    return file


def test_twine_and_pip(gateway: GatewayProcess, run: Client, token: str, tmp_path: Path) -> None:
    """pip sends what ``.netrc`` holds, once it is asked."""
    if not (CLIENTS / "python/twine").is_dir():
        pytest.skip("twine is not to be had here")
    address = f"{gateway.url}/api/v4/projects/1/packages/pypi"
    twine = [
        sys.executable,
        "-m",
        "twine",
        "upload",
        "--non-interactive",
        "--repository-url",
        address,
        "-u",
        "me",
        "-p",
        token,
    ]
    sent = run(*twine, str(_wheel(tmp_path)), PYTHONPATH=str(CLIENTS / "python"))
    assert sent.returncode == 0, sent.stdout
    (tmp_path / ".netrc").write_text(f"machine 127.0.0.1 login me password {token}\n")
    pip = [sys.executable, "-m", "pip", "--isolated", "--no-input", "download", "--no-cache-dir", "--no-deps"]
    got = run(*pip, "--dest", "got", "--index-url", f"{address}/simple", "acme-lib")
    assert (got.returncode, os.listdir(tmp_path / "got")) == (0, ["acme_lib-1.0-py3-none-any.whl"]), got.stderr


def test_gem(gateway: GatewayProcess, gitlab: PackageGitLab, run: Client, token: str, tmp_path: Path) -> None:
    """It sends the key as the whole of ``Authorization``."""
    _needs("gem")
    specification = "Gem::Specification.new { |s| s.name, s.version, s.summary, s.authors = 'acme', '1.0.0', 'x', ['a'] }"
    (tmp_path / "acme.gemspec").write_text(specification)
    assert run("gem", "build", "acme.gemspec").returncode == 0
    address = f"{gateway.url}/api/v4/projects/1/packages/rubygems"
    pushed = run("gem", "push", "acme-1.0.0.gem", "--host", address, GEM_HOST_API_KEY=token)
    assert pushed.returncode == 0, pushed.stdout
    assert gitlab.files["api/v1/gems"] == (tmp_path / "acme-1.0.0.gem").read_bytes()
