"""Settings that more than one line of the configuration determines."""

from __future__ import annotations

from pathlib import Path

import pytest

from gateway.app.component_settings import (
    admission_settings,
    edge_settings,
    limit_subjects,
    upstream_host,
    upstream_settings,
    validation_settings,
)
from gateway.core.client_address import TrustedPeers
from gateway.core.limits import Scope
from gateway.hardening import most_connections
from tests.fakes.world import configured

OWN = """\
version: 1
identities: [{id: people, gitlab_token: true}]
"""
SHARED = """\
version: 1
cache: {mode: shared}
"""


@pytest.mark.parametrize(
    ("text", "host"),
    [
        ('upstream: {url: "http://10.0.0.7:8080"}', b"10.0.0.7:8080"),
        ('upstream: {url: "http://10.0.0.7"}\nlisten: {public_url: "https://gateway.example"}', b"gateway.example"),
        (
            'upstream: {url: "http://10.0.0.7", external_url: "https://GitLab.example"}\n'
            'listen: {public_url: "https://gateway.example"}',
            b"gitlab.example",
        ),
    ],
    ids=["its address", "ours", "its own"],
)
def test_gitlab_sees_the_name_that_it_believes_it_has(tmp_path: Path, text: str, host: bytes) -> None:
    assert upstream_host(configured(f"{OWN}{text}\n", tmp_path)) == host


def test_hosts_are_compared_as_they_are_sent(tmp_path: Path) -> None:
    text = """\
upstream: {url: "http://10.0.0.7/gitlab"}
listen: {public_url: "https://Gateway.example/gitlab", hosts: [API.example, "XN--BCHER-KVA.example:8443"]}
"""
    settings = validation_settings(configured(OWN + text, tmp_path))
    assert settings.hosts == {b"gateway.example", b"api.example", b"xn--bcher-kva.example:8443"}
    assert settings.prefix == b"/gitlab"


def test_admission_adapts_only_where_it_may(tmp_path: Path) -> None:
    text = 'upstream: {{url: "http://10.0.0.7", max_in_flight: {most}, adaptive: {adaptive}}}\n'
    for most, adaptive, least in ((64, "true", 10), (4, "true", 4), (64, "false", 64)):
        settings = admission_settings(configured(OWN + text.format(most=most, adaptive=adaptive), tmp_path))
        assert (settings.adaptive.most, settings.adaptive.least) == (most, least)


def test_tunnels_count_twice_among_connections(tmp_path: Path) -> None:
    text = 'upstream: {url: "http://10.0.0.7", max_in_flight: 20, max_tunnels: 10}\n'
    peers = TrustedPeers([])
    unset = edge_settings(configured(OWN + text, tmp_path), peers)
    assert unset.max_connections == most_connections(40)
    asked = edge_settings(configured(f"{OWN}{text}listen: {{limits: {{connections: 7}}}}\n", tmp_path), peers)
    assert asked.max_connections == 7


def test_a_shared_cache_leaves_fields_and_codings_alone(tmp_path: Path) -> None:
    text = 'upstream: {url: "http://10.0.0.7"}\n'
    peers = TrustedPeers([])
    for kind, shared in ((OWN, False), (SHARED, True)):
        config = configured(kind + text, tmp_path)
        assert edge_settings(config, peers).sets_correlation_aside is not shared
        assert upstream_settings(config).foreign_codings is shared


def test_whom_a_bucket_may_be_for_is_known_of_identities_teams_and_the_organisation(tmp_path: Path) -> None:
    text = (
        "version: 1\nupstream: {url: 'http://127.0.0.1:9'}\n"
        "identities: [{id: people, gitlab_token: true, team: staff}, {id: bot, key: issued}]\n"
    )
    assert limit_subjects(configured(text, tmp_path)) == {
        Scope.IDENTITY: {"people", "bot", "passthrough"},
        Scope.TEAM: {"staff"},
        Scope.ORGANISATION: {"all"},
    }
