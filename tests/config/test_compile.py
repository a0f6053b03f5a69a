from __future__ import annotations

import pytest

from gateway.config import Config, load
from gateway.config.compile import identity_settings, limits, rules
from gateway.core.access import PrincipalKind
from gateway.core.catalogue import Access
from gateway.core.limits import Limit, Scope
from gateway.core.rule_match import Clause, Projects, Rule
from gateway.identity.settings import Passthrough

from .world import ENV, read_file

TEXT = """
version: 1
upstream: {url: https://gitlab.internal}
identities:
  - {id: bot, key: issued, team: t, bind: {cidr: [10.0.0.0/8]}}
  - {id: people, gitlab_token: true, verify: {ttl: 1m, negative_ttl: 2s, stale: 1h}}
  - {id: anyone, anonymous: true}
passthrough: [runner, lfs]
stores: {on_error: {keys: closed}}
credentials:
  - {id: sa, token: "${env:TOKEN}", sudo: true}
rules:
  - id: r
    for: [bot]
    use: sa
    allow:
      - {access: read, projects: {under_group: [platform, 7]}}
      - {routes: [/api/v4/version], methods: [GET], surfaces: [rest], permissions: [read_project]}
    deny: [{projects: [42, platform%2Fsecret]}]
    sudo: [alice]
    mode: shadow
limits:
  - {id: a, by: caller, rate: 600/min}
  - {id: b, by: team, rate: 10/s, burst: 50, advertise: true, mode: shadow}
"""


@pytest.fixture(scope="module")
def config() -> Config:
    loaded = load(TEXT, ENV, read_file)
    assert loaded.config is not None, loaded.problems
    return loaded.config


def test_rules(config: Config) -> None:
    first = Clause(access=Access.READ, projects=Projects(under_group=("platform", "7")))
    assert rules(config) == (
        Rule(
            id="r",
            identities=("bot",),
            use="sa",
            allow=(
                first,
                Clause(
                    methods=("GET",),
                    routes=("/api/v4/version",),
                    permissions=("read_project",),
                    surfaces=config.rules[0].allow[1].surfaces,
                ),
            ),
            deny=(Clause(projects=Projects(named=("42", "platform/secret"))),),
            sudo=("alice",),
            shadow=True,
        ),
    )


def test_limits(config: Config) -> None:
    assert limits(config) == (
        Limit("a", Scope.CALLER, 10.0, 600.0, 60.0),
        Limit("b", Scope.TEAM, 10.0, 50.0, 1.0, advertise=True, shadow=True),
    )


def test_callers(config: Config) -> None:
    settings = identity_settings(config)
    assert [(key.id, key.team) for key in settings.keys] == [("bot", "t")]
    assert "10.1.2.3" in settings.keys[0].networks
    assert "11.1.2.3" not in settings.keys[0].networks
    assert settings.gitlab_token is not None
    assert (settings.gitlab_token.ttl_s, settings.gitlab_token.negative_ttl_s, settings.gitlab_token.stale_s) == (
        60,
        2,
        3600,
    )
    assert settings.anonymous is not None
    assert settings.passthrough == {Passthrough.RUNNER, Passthrough.LFS}
    assert settings.keys_stale_s == 0
    assert [identity.kind for identity in config.identities] == [
        PrincipalKind.KEY,
        PrincipalKind.GITLAB_TOKEN,
        PrincipalKind.ANONYMOUS,
    ]


def test_a_single_group_is_a_list_of_one() -> None:
    loaded = load(
        TEXT.replace("[platform, 7]", "platform").replace("keys: closed", "keys: last_known_good"), ENV, read_file
    )
    assert loaded.config is not None
    assert rules(loaded.config)[0].allow[0].projects == Projects(under_group=("platform",))
    assert identity_settings(loaded.config).keys_stale_s == 600
