"""The part of the configuration that says whose workloads are believed. As in ``model``, a field's docstring is its
description."""

from __future__ import annotations

from .section import Section
from .vocabulary import Algorithm, Claim, Duration, OidcPreset, Path, WebUrl


class Oidc(Section, frozen=True):
    """Whose tokens are believed (JWTs: GitLab CI `id_tokens`, Kubernetes service accounts), and what they must say."""

    issuer: WebUrl
    """The token's `iss`, letter by letter; its keys are found at `/.well-known/openid-configuration` below it."""
    audience: str
    """Must be the token's `aud`, or one of them."""
    claims: dict[str, Claim]
    """Claim → what its whole value must be; `*` stands for a run without `/`, `**` for any. All must hold; of a claim that
    is a list, one member."""
    preset: OidcPreset | None = None
    """`gitlab_ci`: `claims` must pin `job_project_id` by its number, which no fork can borrow, and `ref_protected` is
    `"true"` unless they say otherwise."""
    jwks_uri: WebUrl | None = None
    """Where its keys are; absent: discovery says."""
    algorithms: tuple[Algorithm, ...] = tuple(Algorithm)
    """How its tokens may be signed; never with a shared secret."""
    skew: Duration = 30.0
    """How far its clock and ours may be apart."""
    ca_file: Path | None = None
    """PEM file of the authorities that may sign its certificate; absent: the system's."""

    @property
    def pins(self) -> dict[str, str]:
        """``claims`` with those of the preset."""
        return {"ref_protected": "true", **self.claims} if self.preset is not None else dict(self.claims)


class Session(Section, frozen=True):
    """Credentials given in exchange for a workload's token."""

    ttl: Duration = 900.0
    """How long one lives at most; its caller may ask for less."""
