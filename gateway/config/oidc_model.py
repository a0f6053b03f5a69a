"""The part of the configuration about workloads' tokens. As in ``model``, a field's docstring is its description."""

from __future__ import annotations

from .section import Section
from .vocabulary import Algorithm, Claim, Duration, OidcPreset, Path, WebUrl


class Oidc(Section, frozen=True):
    """Whose tokens are accepted (JWTs: GitLab CI `id_tokens`, Kubernetes service accounts), and what they must say."""

    issuer: WebUrl
    """The token's `iss`, letter by letter; its keys are found through `/.well-known/openid-configuration` below it."""
    audience: str
    """What the token's `aud` must be, or contain if it is a list."""
    claims: dict[str, Claim]
    """Claim → pattern that its whole value must match; `*` stands for a run without `/`, `**` for any run. All must match;
    of a claim that is a list, one member."""
    preset: OidcPreset | None = None
    """`gitlab_ci`: `claims` must pin `job_project_id` by its number, which no fork can borrow, and `ref_protected` must be
    `"true"` unless `claims` say otherwise."""
    audit_claims: tuple[str, ...] | None = None
    """Claims that the audit shows beside `sub`, to tell the bearers of such tokens from one another; if absent, with the
    preset, `job_id` and `user_login`."""
    jwks_uri: WebUrl | None = None
    """URL of the issuer's keys; if absent, it is found by discovery."""
    algorithms: tuple[Algorithm, ...] = tuple(Algorithm)
    """Accepted signature algorithms; none of them uses a shared secret."""
    skew: Duration = 30.0
    """How far the issuer's clock and the gateway's may be apart."""
    ca_file: Path | None = None
    """PEM file of the authorities that may sign the issuer's certificate; if absent, the system's."""

    @property
    def pins(self) -> dict[str, str]:
        """``claims``, with those that the preset adds."""
        return {"ref_protected": "true", **self.claims} if self.preset is not None else dict(self.claims)

    @property
    def audited(self) -> tuple[str, ...]:
        """``audit_claims``, or those of the preset."""
        if self.audit_claims is not None:
            return self.audit_claims
        return ("job_id", "user_login") if self.preset is not None else ()


class Session(Section, frozen=True):
    """Credentials given in exchange for a workload's token."""

    ttl: Duration = 900.0
    """Maximum lifetime of a credential given in exchange for a workload's token; its caller may ask for less."""
