from __future__ import annotations

import json
import re
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.config import Config, Severity, load
from gateway.config.load import EMBEDDED, load_admin_place
from gateway.config.model import Identity
from gateway.config.units import HostPort

from .world import ENV, SECRETS, read_file

BAD = sorted((Path(__file__).parent / "bad").glob("*.yaml"))
EXAMPLES = sorted((Path(__file__).parents[2] / "config").glob("*.yaml"))
MINIMAL = "version: 1\nupstream: {url: https://gitlab.internal}\n"


def config_of(text: str, env: dict[str, str] | None = None) -> Config:
    loaded = load(text, ENV if env is None else env, read_file)
    assert loaded.config is not None, loaded.problems
    return loaded.config


def test_the_corpus_is_there() -> None:
    assert len(BAD) > 100


@pytest.mark.parametrize("file", BAD, ids=lambda file: file.stem)
def test_each_mistake_is_reported_with_its_line_and_nothing_else(file: Path) -> None:
    text = file.read_text("utf-8")
    expected = []
    for line in text.splitlines():
        if not line.startswith("# "):
            break
        expected.append(line.removeprefix("# "))
    loaded = load(text, ENV, read_file, file="F")
    assert [str(problem).removeprefix("F:").removeprefix(" ") for problem in loaded.problems] == expected
    stops = any(problem.severity is Severity.ERROR for problem in loaded.problems)
    assert (loaded.config is None) is stops


@pytest.mark.parametrize("file", BAD, ids=lambda file: file.stem)
def test_no_problem_quotes_a_secret(file: Path) -> None:
    shown = " ".join(str(problem) for problem in load(file.read_text("utf-8"), ENV, read_file).problems)
    assert not [secret for secret in [*SECRETS, "hunter2"] if secret in shown]


@pytest.mark.parametrize("file", EXAMPLES, ids=lambda file: file.stem)
def test_examples_are_in_order(file: Path) -> None:
    loaded = load(file.read_text("utf-8"), ENV | {"REDIS_URL": "redis://redis:6379/0"}, read_file, file=file.name)
    assert loaded.problems == ()
    assert loaded.config is not None


def test_an_upstream_on_the_command_line_needs_no_file() -> None:
    loaded = load(EMBEDDED, ENV, read_file, overrides={("upstream", "url"): "https://gitlab.internal"})
    assert loaded.problems == ()
    assert loaded.config is not None
    assert loaded.config.identities == (Identity(id="people", gitlab_token=True),)
    assert loaded.config.limits == ()
    assert loaded.config.listen.address == HostPort("127.0.0.1", 8080)
    assert loaded.config.listen.admin == HostPort("127.0.0.1", 9901)


def test_the_command_line_wins_over_the_file_and_is_named_in_problems() -> None:
    listen = ("listen", "address")
    loaded = load(MINIMAL + "listen: {address: '0.0.0.0:1', hosts: []}\n", ENV, read_file, overrides={listen: "[::1]:0"})
    assert loaded.config is not None
    assert loaded.config.listen.address == HostPort("::1", 0)
    refused = load(MINIMAL, ENV, read_file, file="F", overrides={listen: "8080"})
    assert str(refused.problems[0]).startswith("command line: listen.address: is not an address")


def test_problems_of_the_whole_file_come_at_once_in_its_order() -> None:
    text = MINIMAL + "listen: {adress: 1}\ncache: {ttl: 5}\nrules:\n  - {id: a, for: [x], deny: [{methods: [get]}]}\n"
    problems = load(text, ENV, read_file).problems
    assert [(problem.line, problem.path) for problem in problems] == [
        (3, "listen.adress"),
        (4, "cache.ttl"),
        (6, "rules[0].deny[0].methods[0]"),
        (6, "rules[0].for[0]"),
    ]


def test_warnings_do_not_stop() -> None:
    loaded = load("version: 1\nupstream: {url: 'http://gitlab'}\n", ENV, read_file)
    assert loaded.config is not None
    assert [problem.path for problem in loaded.warnings] == ["upstream.url"]
    assert loaded.errors == ()


@pytest.mark.parametrize("indent", [None, 2, "\t"])
def test_json_is_accepted_however_it_is_indented(indent: int | str | None) -> None:
    document = {
        "version": 1,
        "upstream": {"url": "https://gitlab.internal"},
        "credentials": [{"id": "sa", "token": "${env:TOKEN}", "sudo": True}],
        "identities": [{"id": "bot", "key": "issued"}],
        "rules": [{"id": "r", "for": ["bot"], "use": "sa", "allow": [{"permissions": ["\U0001f98a"]}]}],
    }
    config = config_of(json.dumps(document, indent=indent, separators=(",", ":")))
    assert config.rules[0].allow[0].permissions == ("\U0001f98a",)


def test_references_resolve_to_secrets_that_do_not_print() -> None:
    text = MINIMAL + (
        "credentials:\n  - {id: a, token: '${env:TOKEN}'}\n  - {id: b, token: '${file:/run/secrets/token}'}\n"
    )
    first, second = config_of(text).credentials
    assert first.token.reveal() == "glpat-R3aderOne"
    assert second.token.reveal() == "glpat-Fr0mFile"
    assert "glpat" not in repr(first)


def test_any_word_may_be_a_reference() -> None:
    config = config_of("version: 1\nupstream: {url: '${env:GL}'}\n", ENV | {"GL": "https://gitlab.internal:8443/gitlab/"})
    assert str(config.upstream.url) == "https://gitlab.internal:8443/gitlab"


@pytest.mark.parametrize(
    ("env", "expected"),
    [
        pytest.param({"XDG_STATE_HOME": "/s/", "HOME": "/h"}, "/s/gitlab-gateway", id="xdg"),
        pytest.param({"XDG_STATE_HOME": "s", "HOME": "/h"}, "/h/.local/state/gitlab-gateway", id="relative-xdg"),
        pytest.param({}, "/var/lib/gitlab-gateway", id="no-home"),
    ],
)
def test_the_state_directory_follows_xdg(env: dict[str, str], expected: str) -> None:
    config = config_of(MINIMAL, env)
    assert config.state_dir == expected
    assert config.stores.keys is not None
    assert config.stores.keys.path == f"{expected}/keys.db"


def test_keys_live_in_redis_when_that_is_shared() -> None:
    text = MINIMAL + (
        "stores: {shared: '${env:REDIS_URL}'}\n"
        "secrets: {pepper: '${env:GW_PEPPER}', encryption_key: '${env:GW_KEY}', audit_key: '${env:GW_AUDIT}'}\n"
    )
    stores = config_of(text).stores
    assert stores.keys == stores.shared
    assert stores.shared.shown == "redis://redis:6379/0"
    assert "s3cr3t" not in repr(stores)


def test_a_ca_file_is_read() -> None:
    config = config_of("version: 1\nupstream: {url: https://gitlab.internal, ca_file: /etc/ca.pem}\n")
    assert config.upstream.ca_file == "/etc/ca.pem"


def test_nobody_is_let_in_by_an_empty_list_of_identities() -> None:
    assert config_of(MINIMAL + "identities: []\n").identities == ()


def test_a_text_beyond_reason_is_not_read() -> None:
    loaded = load(" " * (64 * 1024 * 1024 + 1), ENV, read_file)
    assert loaded.config is None
    assert [problem.message for problem in loaded.problems] == ["is too large to be a configuration"]


def test_a_configuration_is_frozen() -> None:
    with pytest.raises(AttributeError):
        config_of(MINIMAL).version = 2  # type: ignore[misc]  # that it can't be set is the point


def test_thousands_of_entries_are_read_in_reasonable_time() -> None:
    people = "".join(f"  - {{id: bot{number}, key: issued}}\n" for number in range(2000))
    names = ", ".join(f"bot{number}" for number in range(2000))
    rule = f"rules:\n  - {{id: r, for: [{names}], use: sa, allow: [{{access: read}}]}}\n"
    credential = "credentials:\n  - {id: sa, token: '${env:TOKEN}'}\n"
    config = config_of(MINIMAL + "identities:\n" + people + credential + rule)
    assert len(config.identities) == 2000
    assert msgspec.structs.asdict(config.rules[0])["for_"][-1] == "bot1999"


WORDS = sorted({word for file in (*BAD, *EXAMPLES) for word in re.findall(r"\S+|\s+", file.read_text("utf-8"))})


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.one_of(st.sampled_from(WORDS), st.text(max_size=3)), max_size=30),
    st.sampled_from([*BAD, *EXAMPLES]),
    st.data(),
)
def test_no_text_brings_the_loader_down(words: list[str], file: Path, data: st.DataObject) -> None:
    text = file.read_text("utf-8")
    at = data.draw(st.integers(0, len(text)))
    loaded = load(text[:at] + "".join(words) + text[at:], ENV, read_file)
    assert (loaded.config is None) is bool(loaded.errors)


# Where the admin port is


@pytest.mark.parametrize(
    ("text", "place"),
    [
        (MINIMAL, "127.0.0.1:9901"),
        ("version: 1\nlisten: {workers: 4}\n", "127.0.0.1:9901"),
        ("version: 1\nlisten: {admin: '[::1]:9911'}\n", "[::1]:9911"),
        ("listen: {admin: '${env:ADMIN}', tls: {cert_file: /no, key_file: /private}}\nadmin: 5\n", "10.0.0.1:1"),
        ("secrets: {pepper: '${env:NOT_HERE}'}\ncredentials: [{token: '${file:/root/token}'}]\n", "127.0.0.1:9901"),
    ],
    ids=["minimal", "default", "given", "a reference, beside what can't be read", "secrets that are elsewhere"],
)
def test_the_admin_port_is_found_without_what_else_there_is(text: str, place: str) -> None:
    def read_nothing(path: str) -> str:
        raise AssertionError(path)

    found, problems = load_admin_place(text, {"ADMIN": "10.0.0.1:1"}, read_nothing)
    assert (str(found), problems) == (place, ())


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("listen: {admin: here}\n", "F:1: listen.admin: is not an address"),
        ("version: 1\nlisten:\n", "F:2: listen: has no value"),
        ("listen: {admin: '${env:ADMIN}'}\n", "F:1: listen.admin: names the environment variable ADMIN, which is not set"),
        ("listen: {admin: 'a:1'}\nlisten: {admin: 'b:1'}\n", "F:2: listen: is given twice"),
        ("{", "F:2: is not YAML"),
    ],
)
def test_where_the_admin_port_is_can_be_written_wrongly(text: str, problem: str) -> None:
    _, problems = load_admin_place(text, {}, read_file, file="F")
    (found,) = problems
    assert str(found).startswith(problem)
