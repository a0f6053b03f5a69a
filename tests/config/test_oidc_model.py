"""What a workload's token must say."""

from __future__ import annotations

from gateway.config.oidc_model import Oidc
from gateway.config.vocabulary import OidcPreset

ISSUER = "https://gitlab.internal"


def test_without_a_preset_what_is_written() -> None:
    assert Oidc(ISSUER, "gw", {"sub": "x"}).pins == {"sub": "x"}


def test_gitlab_cis_preset_asks_for_a_protected_ref() -> None:
    claims = {"job_project_id": "7", "environment": "production"}
    pins = Oidc(ISSUER, "gw", claims, preset=OidcPreset.GITLAB_CI).pins
    assert pins == {**claims, "ref_protected": "true"}


def test_what_the_claims_say_goes_before() -> None:
    claims = {"job_project_id": "7", "ref_protected": "*"}
    assert Oidc(ISSUER, "gw", claims, preset=OidcPreset.GITLAB_CI).pins == claims
