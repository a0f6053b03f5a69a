"""Runs the public suite for HTTP caches against nginx and Varnish, for docs/caching.md: ``make bench-conformance``.

The suite is npm's http-cache-tests, which ``make test`` runs against this gateway (``tests/conformance``), with its own
origin behind each peer, on loopback. Each peer is tested twice, and a test counts as passed only if both runs passed it:
the suite measures freshness in seconds, and a busy machine can sleep through them. A peer that is not installed is left
out, with a message.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.processes import Program, free_port

ROOT = Path(__file__).parent.parent
SUITE = ROOT / "tests/conformance/node_modules/http-cache-tests"
PEERS = Path(__file__).parent / "peers"
RESULTS = Path(__file__).parent / "results/conformance.json"
RUNS = 2
KINDS = ("required", "optimal")

Passed = dict[str, bool]


def start_origin(directory: Path) -> tuple[Program, int]:
    """Start the suite's own origin. It listens on all addresses, where a port that is free on loopback may be taken."""
    both = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if both else socket.AF_INET
    with socket.create_server(("", 0), family=family, dualstack_ipv6=both) as listener:
        port = int(listener.getsockname()[1])
    settings = {"protocol": "http", "port": str(port), "pidfile": str(directory / "origin.pid")}
    environment = {f"npm_config_{name}": value for name, value in settings.items()}
    program = Program(["node", "server/server.mjs"], cpu=0, log=directory / "origin.log", cwd=SUITE, env=environment)
    program.wait_for_port(port)
    return program, port


def from_template(name: str, directory: Path, **holes: object) -> str:
    """Write a peer's configuration with its ports filled in; returns the file's path."""
    text = (PEERS / name).read_text("utf-8")
    for hole, value in {"DIR": directory, **holes}.items():
        text = text.replace(f"@{hole}@", str(value))
    path = directory / name
    path.write_text(text)
    return str(path)


def nginx(directory: Path, origin: int, port: int) -> list[str]:
    return ["nginx", "-c", from_template("nginx_cache.conf", directory, ORIGIN=origin, PORT=port)]


def varnish(directory: Path, port: int) -> list[str]:
    return ["varnishd", "-F", "-j", "none", "-n", str(directory / "varnish"), "-a", f"127.0.0.1:{port}"]


def varnish_as_shipped(directory: Path, origin: int, port: int) -> list[str]:
    return [*varnish(directory, port), "-b", f"127.0.0.1:{origin}"]


def varnish_tuned(directory: Path, origin: int, port: int) -> list[str]:
    return [*varnish(directory, port), "-f", from_template("varnish_cache.vcl", directory, ORIGIN=origin)]


CACHES = {
    "nginx, tuned": nginx,
    "Varnish, as shipped": varnish_as_shipped,
    "Varnish, tuned": varnish_tuned,
}


def run_suite(port: int) -> Passed:
    """One run of every test."""
    settings = {"npm_config_base": f"http://127.0.0.1:{port}", "npm_config_id": "", "npm_package_config_id": ""}
    ran = subprocess.run(
        ["node", "--no-warnings", "cli.mjs"],
        cwd=SUITE,
        env={**os.environ, **settings},
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    return {test: result is True for test, result in json.loads(ran.stdout).items()}


def kinds() -> dict[str, str]:
    """The suite's kind of each test: required, optimal or check."""
    listed = subprocess.run(
        ["node", "scores.mjs"], cwd=SUITE.parent.parent, capture_output=True, text=True, timeout=30, check=True
    )
    return dict(json.loads(listed.stdout))


def run_suite_against(name: str, kind_of: dict[str, str]) -> dict[str, dict[str, int]] | None:
    """Run the suite against a cache: how many tests it passed, of how many, by kind. None: it is not installed."""
    with tempfile.TemporaryDirectory(prefix="gateway-conformance-") as path:
        directory = Path(path)
        directory.chmod(0o755)  # nginx and Varnish give up root, and keep answers in this directory
        origin, at = start_origin(directory)
        try:
            port = free_port()
            argv = CACHES[name](directory, at, port)
            if shutil.which(argv[0]) is None:
                return None
            cache = Program(argv, cpu=1, log=directory / "cache.log", cwd=directory)
            try:
                cache.wait_for_port(port)
                runs = [run_suite(port) for _ in range(RUNS)]
            finally:
                cache.stop()
        finally:
            origin.stop()
    score = {}
    for kind in KINDS:
        tests = [test for test, its in kind_of.items() if its == kind]
        score[kind] = {"passed": sum(all(run[test] for run in runs) for test in tests), "of": len(tests)}
    return score


def version(program: str) -> str:
    """The first line of what a program prints about its version."""
    if shutil.which(program) is None:
        return "not installed"
    flag = {"nginx": "-v"}.get(program, "-V")
    done = subprocess.run([program, flag], capture_output=True, text=True, timeout=10, check=False)
    return (done.stderr or done.stdout).splitlines()[0]


def main() -> int:
    if not SUITE.is_dir() or shutil.which("node") is None:
        print("bench-conformance: the suite is missing: `.ci/setup test` installs it", file=sys.stderr)
        return 1
    kind_of = kinds()
    scores: dict[str, object] = {}
    for name in CACHES:
        score = run_suite_against(name, kind_of)
        if score is None:
            print(f"{name}: not installed", file=sys.stderr)
            continue
        scores[name] = score
        print(
            f"{name:20} " + "  ".join(f"{kind} {score[kind]['passed']}/{score[kind]['of']}" for kind in KINDS), flush=True
        )
    versions = {program: version(program) for program in ("nginx", "varnishd")}
    RESULTS.write_text(
        json.dumps({"suite": "http-cache-tests 0.4.5", "versions": versions, "scores": scores}, indent=2) + "\n"
    )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
