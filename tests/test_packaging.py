"""What is shipped is whole: the wheel, the container, the compose file, the systemd unit, the two commands."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
import yaml

import gateway

ROOT = Path(__file__).parent.parent
BIN = Path(sys.executable).parent


def run(*command: str | Path, **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, timeout=100, **options)  # type: ignore[call-overload, no-any-return]


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """Built from a copy, so that no build directory is left in the checkout."""
    source, built = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    shutil.copytree(ROOT / "gateway", source / "gateway", ignore=shutil.ignore_patterns("__pycache__"))
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "wheel", "--no-index", "--no-deps"]
    done = run(*pip, "--no-build-isolation", "--wheel-dir", built, source)
    assert done.returncode == 0, done.stdout + done.stderr
    (archive,) = built.glob("*.whl")
    return zipfile.ZipFile(archive)


def test_the_wheel_holds_every_file_of_the_package(wheel: zipfile.ZipFile) -> None:
    listed = run("git", "ls-files", "--cached", "--others", "--exclude-standard", "--", "gateway", cwd=ROOT)
    files = {name for name in listed.stdout.splitlines() if (ROOT / name).exists()}
    shipped = {name for name in wheel.namelist() if name.startswith("gateway/")}
    assert "gateway/py.typed" in files
    assert shipped == files


def test_the_wheel_holds_nothing_else(wheel: zipfile.ZipFile) -> None:
    assert {name.split("/")[0] for name in wheel.namelist()} == {
        "gateway",
        f"gitlab_gateway-{gateway.__version__}.dist-info",
    }


def test_the_wheel_installs_the_command_and_its_licence(wheel: zipfile.ZipFile) -> None:
    info = f"gitlab_gateway-{gateway.__version__}.dist-info"
    assert "gitlab-gateway = gateway.__main__:main" in wheel.read(f"{info}/entry_points.txt").decode()
    assert wheel.read(f"{info}/licenses/LICENSE") == (ROOT / "LICENSE").read_bytes()


# The container


def test_the_dockerfile_is_clean() -> None:
    linted = run(BIN / "hadolint", "--failure-threshold", "style", ROOT / "Dockerfile")
    assert linted.returncode == 0, linted.stdout + linted.stderr


def dockerfile_stage() -> str:
    """The last stage: what runs."""
    return (ROOT / "Dockerfile").read_text().rpartition("\nFROM ")[2]


def test_the_container_runs_as_nobody_in_particular() -> None:
    (user,) = re.findall(r"^USER (\S+)$", dockerfile_stage(), flags=re.MULTILINE)
    assert user == "10001:10001"  # a number: `runAsNonRoot` is checked before /etc/passwd can be read


def test_the_container_needs_no_shell() -> None:
    commands = dict(re.findall(r"^(ENTRYPOINT|CMD) (.*)$", dockerfile_stage(), flags=re.MULTILINE))
    assert json.loads(commands["ENTRYPOINT"]) == ["gitlab-gateway"]
    assert json.loads(commands["CMD"])[0] == "serve"


def test_the_health_check_asks_the_admin_port() -> None:
    (argument,) = re.findall(r"^HEALTHCHECK .*\\\n\s+CMD (.*)$", dockerfile_stage(), flags=re.MULTILINE)
    command = json.loads(argument)
    assert command[0] == "python"
    compile(command[-1], "healthcheck", "exec")
    assert "/readyz" in command[-1]
    assert command == compose()["services"]["gateway"]["healthcheck"]["test"][1:]


@pytest.mark.parametrize(("status", "code"), [(200, 0), (503, 1)])
def test_the_health_check_tells_ready_from_not_ready(status: int, code: int) -> None:
    asked: list[str] = []

    class Admin(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(status)
            self.end_headers()

        def log_message(self, *_: object) -> None: ...

    program = compose()["services"]["gateway"]["healthcheck"]["test"][-1]
    with HTTPServer(("127.0.0.1", 0), Admin) as server:
        once = threading.Thread(target=server.handle_request)
        once.start()
        done = run(sys.executable, "-I", "-c", program.replace("9901", str(server.server_port)))
        once.join()
    assert (done.returncode, asked) == (code, ["/readyz"])


def test_the_build_context_holds_what_the_build_copies() -> None:
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied: set[str] = set()
    for sources in re.findall(r"^COPY (?!--from)(.+) \S+$", (ROOT / "Dockerfile").read_text(), flags=re.MULTILINE):
        copied |= set(sources.split())
    assert copied == allowed
    assert all((ROOT / name).exists() for name in copied)


# Compose


def compose() -> dict[str, dict[str, dict]]:  # type: ignore[type-arg]
    return yaml.safe_load((ROOT / "deploy/compose.yaml").read_text())  # type: ignore[no-any-return]


def test_the_compose_file_follows_its_schema() -> None:
    done = run(BIN / "check-jsonschema", "--builtin-schema", "vendor.compose-spec", ROOT / "deploy/compose.yaml")
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_schema_catches_a_mistake(tmp_path: Path) -> None:
    wrong = tmp_path / "compose.yaml"
    wrong.write_text((ROOT / "deploy/compose.yaml").read_text().replace("read_only:", "readonly:"))
    assert run(BIN / "check-jsonschema", "--builtin-schema", "vendor.compose-spec", wrong).returncode != 0


@pytest.mark.parametrize("name", ["gateway", "redis"])
def test_each_service_is_confined(name: str) -> None:
    service = compose()["services"][name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["user"].split(":")[0] not in {"0", "root"}
    assert service["tmpfs"]
    assert service["mem_limit"]
    assert service["healthcheck"]["test"][0] == "CMD"


def test_redis_keeps_nothing_and_is_reached_by_the_gateway_alone() -> None:
    services, networks = compose()["services"], compose()["networks"]
    command = services["redis"]["command"]
    assert command[command.index("--save") + 1] == ""
    assert command[command.index("--appendonly") + 1] == "no"
    assert "--maxmemory" in command
    assert "ports" not in services["redis"]
    assert [networks[name]["internal"] for name in services["redis"]["networks"]] == [True]


def test_the_mounted_configuration_is_in_order() -> None:
    secrets = {name: name.lower() * 8 for name in ("GW_PEPPER", "GW_KEY", "GW_AUDIT")}
    service = compose()["services"]["gateway"]
    # No option of `serve` alone: `keys …` run beside it must be able to read the same file.
    assert service["command"] == ["serve", "--config", "/etc/gitlab-gateway/gateway.yaml"]
    environment = {"GITLAB_URL": "https://gitlab.example.com", **secrets}
    assert environment.keys() == service["environment"].keys()
    checked = run(
        BIN / "gitlab-gateway", "check", "--config", "deploy/gateway.yaml",
        cwd=ROOT, env={"PATH": os.environ["PATH"], **environment},
    )  # fmt: skip
    assert checked.returncode == 0, checked.stderr


def test_keys_are_managed_beside_the_composed_gateway(tmp_path: Path) -> None:
    text = (ROOT / "deploy/gateway.yaml").read_text().replace("/var/lib/gitlab-gateway", str(tmp_path / "state"))
    (tmp_path / "gateway.yaml").write_text(f"{text}  - {{id: bot, key: issued}}\n")
    environment = {name: name.lower() * 8 for name in ("GW_PEPPER", "GW_KEY", "GW_AUDIT")}
    made = run(
        BIN / "gitlab-gateway", "keys", "new", "bot", "--config", tmp_path / "gateway.yaml",
        cwd=ROOT, env={"PATH": os.environ["PATH"], "GITLAB_URL": "https://gitlab.example.com", **environment},
    )  # fmt: skip
    assert (made.returncode, made.stdout[:4]) == (0, "ggw_"), made.stderr


def test_the_admin_port_is_not_published() -> None:
    assert [port.rpartition(":")[2] for port in compose()["services"]["gateway"]["ports"]] == ["8080"]


# Kubernetes


KUBERNETES = ROOT / "deploy/kubernetes"


def kubernetes() -> dict[str, dict]:  # type: ignore[type-arg]
    """What is applied, by kind."""
    objects = list(yaml.safe_load_all((KUBERNETES / "gateways.yaml").read_text()))
    by_kind = {one["kind"]: one for one in objects}
    assert len(by_kind) == len(objects)
    return by_kind


def validated(file: Path, version: str) -> subprocess.CompletedProcess[str]:
    return run(BIN / "kubernetes-validate", "--strict", "-k", version, file)


@pytest.mark.parametrize("version", ["1.27", "1.37"])
def test_the_objects_follow_the_schemas_of_kubernetes(version: str) -> None:
    done = validated(KUBERNETES / "gateways.yaml", version)
    assert done.returncode == 0, done.stdout + done.stderr


def test_their_schemas_catch_a_mistake(tmp_path: Path) -> None:
    wrong = tmp_path / "gateways.yaml"
    wrong.write_text(
        (KUBERNETES / "gateways.yaml").read_text().replace("readOnlyRootFilesystem:", "readOnlyRootFileSystem:")
    )
    assert validated(wrong, "1.37").returncode != 0


def test_what_kustomize_puts_together_is_there() -> None:
    kustomization = yaml.safe_load((KUBERNETES / "kustomization.yaml").read_text())
    pod = kubernetes()["Deployment"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert [(KUBERNETES / name).is_file() for name in kustomization["resources"]] == [True]
    ((made,), (image,)) = (kustomization["configMapGenerator"], kustomization["images"])
    assert made["name"] == pod["volumes"][0]["configMap"]["name"]
    assert [f"{container['volumeMounts'][0]['mountPath']}/{name}" for name in made["files"]] == [container["args"][-1]]
    assert (container["image"], image["newTag"]) == (image["name"], gateway.__version__)


def test_each_gateway_of_the_cluster_is_confined() -> None:
    pod = kubernetes()["Deployment"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert pod["automountServiceAccountToken"] is False
    assert pod["securityContext"] == {
        "runAsNonRoot": True, "runAsUser": 10001, "runAsGroup": 10001, "seccompProfile": {"type": "RuntimeDefault"},
    }  # fmt: skip
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]},
    }  # fmt: skip
    assert "memory" in container["resources"]["limits"]


def test_the_configuration_of_the_cluster_is_checked_as_it_says() -> None:
    comment = re.findall(
        r"^#(?: {5}(.*))?$", (KUBERNETES / "gateway.yaml").read_text().partition("version:")[0], re.MULTILINE
    )
    checked = run("sh", "-c", "\n".join(comment), cwd=ROOT, env={"PATH": f"{BIN}:{os.environ['PATH']}"})
    assert (checked.returncode, checked.stderr) == (0, "deploy/kubernetes/gateway.yaml is in order\n")


def test_the_configuration_of_the_cluster_is_in_order_and_fits_its_objects() -> None:
    objects = kubernetes()
    pod = objects["Deployment"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    environment = {entry["name"]: entry["name"].lower() * 8 for entry in container["env"]}
    environment["REDIS_URL"] = "redis+sentinel://:pass@s1,s2,s3/main"
    checked = run(
        BIN / "gitlab-gateway", "check", "--show", "json", "--config", KUBERNETES / "gateway.yaml",
        env={"PATH": os.environ["PATH"], **environment},
    )  # fmt: skip
    assert checked.returncode == 0, checked.stderr
    config = json.loads(checked.stdout)
    listen, ports = config["listen"], {port["name"]: port["containerPort"] for port in container["ports"]}
    assert (listen["address"], listen["admin"]) == (f"0.0.0.0:{ports['http']}", f"0.0.0.0:{ports['admin']}")
    assert [port["targetPort"] for port in objects["Service"]["spec"]["ports"]] == ["http"]
    seconds = [int(listen["drain"][name].removesuffix("s")) for name in ("notice", "deadline")]
    assert pod["terminationGracePeriodSeconds"] >= sum(seconds) + 10
    # A directory for all is refused as `state_dir`: the gateway's own is within it.
    assert str(Path(config["state_dir"]).parent) in [mount["mountPath"] for mount in container["volumeMounts"]]
    probes = [container[f"{name}Probe"]["httpGet"] for name in ("startup", "readiness", "liveness")]
    assert [(probe["path"], probe["port"]) for probe in probes] == [
        ("/readyz", "admin"), ("/readyz", "admin"), ("/livez", "admin"),
    ]  # fmt: skip


# systemd


def test_the_unit_confines_the_gateway() -> None:
    lines = (ROOT / "deploy/gitlab-gateway.service").read_text().splitlines()
    settings = {line for line in lines if line and not line.startswith("#")}
    assert [line for line in lines if line.startswith("[")] == ["[Unit]", "[Service]", "[Install]"]
    assert all(line.startswith("[") or re.fullmatch(r"[A-Za-z]+=.*", line) for line in settings)
    assert {
        "CapabilityBoundingSet=",
        "KillSignal=SIGTERM",
        "LogsDirectory=gitlab-gateway",
        "NoNewPrivileges=yes",
        "ProtectSystem=strict",
        "StateDirectory=gitlab-gateway",
        "StateDirectoryMode=0700",
        "User=gitlab-gateway",
    } <= settings
    assert "DynamicUser=yes" not in settings  # commands run as the gateway's user, who must be there without it


def test_the_unit_may_write_where_the_examples_have_their_state_and_audit() -> None:
    settings = dict(
        line.split("=", 1)
        for line in (ROOT / "deploy/gitlab-gateway.service").read_text().splitlines()
        if "Directory=" in line
    )
    for example in sorted((ROOT / "config").glob("*.yaml")):
        text = example.read_text()
        assert set(re.findall(r"^state_dir: (\S+)", text, re.MULTILINE)) <= {f"/var/lib/{settings['StateDirectory']}"}
        assert set(re.findall(r'sink: "file:(/\S+)/', text)) <= {f"/var/log/{settings['LogsDirectory']}"}


# The two commands

SCRIPTS = sorted(path.name for path in (ROOT / ".ci").iterdir())


@pytest.mark.parametrize("script", SCRIPTS)
def test_each_script_parses_and_stops_at_the_first_failure(script: str) -> None:
    path = ROOT / ".ci" / script
    assert os.access(path, os.X_OK)
    assert run("bash", "-n", path).returncode == 0
    assert "\nset -euo pipefail\n" in path.read_text()


@pytest.fixture
def bare_path(tmp_path: Path) -> Path:
    """A PATH with the usual small programs but without privileges, Redis, Node or git-lfs."""
    directory = tmp_path / "bin"
    directory.mkdir()
    for program in ("bash", "cat", "dirname", "git", "env", "rm", "python3"):
        found = shutil.which(program)
        assert found
        (directory / program).symlink_to(found)
    for program, script in {"id": "echo 1000", "apt-get": "exit 99"}.items():
        (directory / program).write_text(f"#!/bin/sh\n{script}\n")
        (directory / program).chmod(0o755)
    return directory


def test_without_privileges_setup_prints_the_exact_command_and_fails(bare_path: Path) -> None:
    done = run(ROOT / ".ci/setup", "test", env={"PATH": str(bare_path), "VENV": str(BIN.parent)})
    assert done.returncode == 1
    assert "sudo apt-get update && sudo apt-get install -y --no-install-recommends" in done.stderr
    assert "redis-server nodejs npm git-lfs curl procps" in done.stderr


def test_a_python_without_ensurepip_names_its_package(bare_path: Path, tmp_path: Path) -> None:
    """Debian's python3 has the venv module but not what it needs."""
    (bare_path / "python3").unlink()
    wrapper = f'#!{shutil.which("bash")}\ncase "$*" in *ensurepip*) exit 1 ;; esac\nexec {sys.executable} "$@"\n'
    (bare_path / "python3").write_text(wrapper)
    (bare_path / "python3").chmod(0o755)
    done = run(ROOT / ".ci/setup", "run", env={"PATH": str(bare_path), "VENV": str(tmp_path / "venv")})
    assert done.returncode == 1
    assert f"python{sys.version_info.major}.{sys.version_info.minor}-venv" in done.stderr
    assert not (tmp_path / "venv").exists()


def test_setup_refuses_an_unknown_purpose() -> None:
    assert run(ROOT / ".ci/setup", "play").returncode == 2


@pytest.mark.parametrize("place", ["tests/e2e", "tests/conformance"])
def test_node_packages_are_named_as_npm_9_can_read_them(place: str) -> None:
    # `npm ci` of Debian's npm 9.2 takes an override by another package's name for a version, and says that there's no lock.
    assert "overrides" not in json.loads((ROOT / place / "package.json").read_text())
    lock = json.loads((ROOT / place / "package-lock.json").read_text())
    assert lock["lockfileVersion"] <= 3
    for name, package in lock["packages"].items():
        assert "://" not in package.get("resolved", ""), f"{name} names a registry"
