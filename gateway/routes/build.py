"""Make the catalogue's data file: ``python -m gateway.routes.build SOURCE OUT``.

SOURCE is a JSON list of rows (``method``, ``template``, ``surface``, ``permission`` …) or one of GitLab's published OpenAPI
files (``doc/api/openapi/openapi_v3.yaml``, ``openapi_v2.yaml``). Several sources are joined, and the first that has an
operation wins; GitLab's own files name no permissions, so rows that do belong before them. The same sources give the same
octets.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import msgspec
import yaml

from ..core.catalogue import FORMAT_VERSION, Access, Flag, ReferenceKind, Surface
from ..core.route_tree import template_shape
from . import review


class Source(msgspec.Struct, frozen=True):
    """One operation as a source describes it."""

    method: str
    template: str
    surface: str = ""
    permission: tuple[str, ...] = ()
    also_auth: tuple[str, ...] = ()
    body: str = ""
    internal: bool = False


class SourceProblem(Exception):  # noqa: N818 — what a person must look at
    """A source can't be read, or the review no longer fits it."""


# Reading sources -----------------------------------------------------------------------------------------------------


def read_source(text: str) -> list[Source]:
    """The rows of one source, whichever format it has. Raises SourceProblem."""
    try:
        content = json.loads(text) if text.lstrip()[:1] in ("[", "{") else _load_yaml(text)
    except (ValueError, yaml.YAMLError) as broken:
        raise SourceProblem(f"neither JSON nor YAML: {broken}") from broken
    if isinstance(content, list):
        return _rows(content)
    if isinstance(content, dict) and isinstance(content.get("paths"), dict):
        return list(_openapi(content))
    raise SourceProblem("neither a list of rows nor an OpenAPI document")


def _load_yaml(text: str) -> Any:
    return yaml.load(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader))  # noqa: S506 — safe, and in C where built


_METHODS = ("get", "head", "post", "put", "patch", "delete", "options")


def _rows(content: list[Any]) -> list[Source]:
    try:
        return msgspec.convert(content, list[Source])
    except msgspec.ValidationError as broken:
        raise SourceProblem(str(broken)) from broken


def _openapi(document: Mapping[str, Any]) -> Iterable[Source]:
    base = str(document.get("basePath", "")).rstrip("/")
    for path, item in document["paths"].items():
        for method in _METHODS:
            if method not in item:
                continue
            operation = item[method] or {}
            yield Source(
                method=method.upper(),
                template=_template(base + path),
                body="may_be_binary_or_redirect" if method == "get" and _is_binary(operation) else "",
            )


_FORMAT = re.compile(r"\(\.(?::format|\{format\})\)\Z")


def _template(path: str) -> str:
    """OpenAPI's ``{id}`` and Grape's leftovers (``(.:format)``, ``(-)``) as one template."""
    path = re.sub(r"\{(\*?)([A-Za-z0-9_]+)\}", lambda name: (name[1] or ":") + name[2], _FORMAT.sub("", path))
    return path if path.startswith("/api/") else "/api/v4" + path


def _is_binary(operation: Mapping[str, Any]) -> bool:
    produces = [str(kind) for kind in operation.get("produces", ())]
    for status, answer in (operation.get("responses") or {}).items():
        if str(status).startswith("3"):
            return True
        if str(status).startswith("2") and isinstance(answer, dict):
            produces += [str(kind) for kind in answer.get("content") or ()]
    return bool(produces) and not any("json" in kind for kind in produces)


# Deriving ------------------------------------------------------------------------------------------------------------

_KIND_BY_WORD = {
    "projects": ReferenceKind.PROJECT,
    "groups": ReferenceKind.GROUP,
    "group": ReferenceKind.GROUP,
    "namespaces": ReferenceKind.NAMESPACE,
    "users": ReferenceKind.USER,
}
"""What ``:id`` stands for, by the word before it."""

_KIND_BY_NAME = {
    "project": ReferenceKind.PROJECT,
    "project_id": ReferenceKind.PROJECT,
    "target_project_id": ReferenceKind.PROJECT,
    "forked_from_id": ReferenceKind.PROJECT,
    "repository_path": ReferenceKind.PROJECT,
    "group": ReferenceKind.GROUP,
    "group_id": ReferenceKind.GROUP,
    "target_group_id": ReferenceKind.GROUP,
    "module_namespace": ReferenceKind.GROUP,
    "namespace_id": ReferenceKind.NAMESPACE,
    "user_id": ReferenceKind.USER,
}
"""What other names stand for, wherever they are."""

_SURFACES = (
    (re.compile(r"/api/v4/internal(?:/.*)?|/api/v4/container_registry_event/.*"), Surface.INTERNAL),
    (re.compile(r"/api/v4/geo(?:/|_nodes|_sites).*"), Surface.GEO),
    (re.compile(r"/api/scim/.*"), Surface.SCIM),
    (re.compile(r"/api/(?:graphql|glql)"), Surface.GRAPHQL),
    (re.compile(r"/api/v4/.*/ml/mlflow/.*"), Surface.MLFLOW),
    (re.compile(r"/api/v4/feature_flags/unleash/.*"), Surface.UNLEASH),
    (re.compile(r"/api/v4/.*/observability/.*"), Surface.OBSERVABILITY),
    (re.compile(r"/api/v4/(?:orbit/)?mcp"), Surface.MCP),
    (re.compile(r"/api/v4/jobs/(?:request|:id(?:/(?:trace|artifacts))?)"), Surface.RUNNER),
    (re.compile(r"/api/v4/runners(?:/(?:managers|verify|reset_authentication_token|router/.*))?"), Surface.RUNNER),
    (
        re.compile(
            r"/api/v4/(?:(?:projects|groups?)/:\w+/(?:-/)?)?(?:(?:dependency_proxy/)?packages/.+|debian_distributions.*)"
        ),
        Surface.PACKAGES,
    ),
    (re.compile(r"/api/v4/(?:groups/:id/-/)?virtual_registries/packages/.*"), Surface.PACKAGES),
)


def _surface(template: str) -> Surface:
    """The surface of a template whose source names none: an OpenAPI document describes ``/api`` alone."""
    return next((surface for pattern, surface in _SURFACES if pattern.fullmatch(template)), Surface.REST)


def references(template: str) -> dict[str, ReferenceKind]:
    """Which names of ``template`` stand for a project, a group, a namespace or a user."""
    found: dict[str, ReferenceKind] = {}
    before = ""
    for word in re.sub(r"[()]", "", template.partition("?")[0]).split("/"):
        name = word.removesuffix(".git")
        if name[:1] in (":", "*"):
            kind = _KIND_BY_NAME.get(name[1:]) or (_KIND_BY_WORD.get(before) if name == ":id" else None)
            if kind is not None:
                found[name[1:]] = kind
        before = word
    return found


def _access(method: str, template: str) -> Access:
    if template == "/-/kubernetes-agent/k8s-proxy/*path":
        return Access.WRITE
    if method == "POST":
        return Access.READ if template in review.POSTS_THAT_READ else Access.WRITE
    if method in ("GET", "HEAD", "OPTIONS", "ANY"):
        return Access.WRITE if template in review.GETS_THAT_WRITE else Access.READ
    return Access.WRITE


def _flags(source: Source, template: str, surface: Surface) -> list[Flag]:
    safe = source.method in ("GET", "HEAD", "ANY")
    binary = bool(source.body) or bool(review.BINARY.fullmatch(template))
    side_effect = (
        surface in review.UNCACHED_SURFACES
        or template in review.GETS_THAT_WRITE
        or bool(review.SIDE_EFFECTS.fullmatch(template))
        or (surface is Surface.PACKAGES and binary)
    )
    marks = {
        Flag.SECRET: bool(review.SECRET_ANSWERS.fullmatch(template)),
        Flag.MAY_HOLD_SECRET: template in review.MAY_HOLD_SECRET,
        Flag.SIDE_EFFECT: safe and side_effect,
        Flag.BINARY: safe and binary,
        Flag.BLOCKED: source.internal or surface in review.BLOCKED_SURFACES or bool(review.BLOCKED.fullmatch(template)),
        Flag.WIDE: any(review.WIDE.fullmatch(name) for name in (template, f"{source.method} {template}")),
        Flag.NAMES_IN_BODY: f"{source.method} {template}" in review.NAMES_IN_BODY,
        Flag.PLACELESS: f"{source.method} {template}" in review.PLACELESS,
        Flag.JOB_TOKEN: "job_token" in source.also_auth,
        Flag.DEPLOY_TOKEN: "deploy_token" in source.also_auth,
    }
    return [flag for flag, marked in marks.items() if marked]


def derive(sources: Iterable[Source]) -> list[list[Any]]:
    """The data file's rows, one for each method and shape, in the order of their templates. Raises SourceProblem."""
    rows: dict[tuple[str, str], list[Any]] = {}
    for source in sources:
        if source.template in review.DROPPED:
            continue
        template = review.CORRECTED.get(source.template, source.template)
        surface = Surface(source.surface) if source.surface else _surface(template)
        rows.setdefault(
            (template_shape(template), source.method),
            [
                source.method,
                template,
                surface,
                _access(source.method, template),
                list(review.PERMISSIONS.get(f"{source.method} {template}", source.permission)),
                references(template),
                _flags(source, template, surface),
            ],
        )
    return [rows[key] for key in sorted(rows)]


def unmatched_reviews(rows: Iterable[list[Any]]) -> list[str]:
    """Entries of the review's exact tables that match no row."""
    named = {f"{row[0]} {row[1]}" for row in rows}
    templates = {name.split(" ", 1)[1] for name in named}
    missing = {f"POST {template}" for template in review.POSTS_THAT_READ} - named
    missing |= (review.NAMES_IN_BODY | review.PLACELESS | review.PERMISSIONS.keys()) - named
    missing |= (review.GETS_THAT_WRITE | review.MAY_HOLD_SECRET) - templates
    return sorted(missing)


def encode(rows: list[list[Any]], gitlab: str) -> bytes:
    """The data file's octets, one row per line, so that a new version can be read as a diff."""
    lines = b",\n".join(msgspec.json.encode(row) for row in rows)
    head = b'{"version":%d,"gitlab":%s,"operations":[\n' % (FORMAT_VERSION, msgspec.json.encode(gitlab))
    return head + lines + b"\n]}\n"


def main(arguments: list[str] | None = None) -> int:
    """Returns 0 when the file is written, 1 when a source or the review needs attention; standard error says why."""
    parser = argparse.ArgumentParser(prog="python -m gateway.routes.build", description=__doc__)
    parser.add_argument("source", nargs="+", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--gitlab", default="19.3", help="the GitLab version the sources describe")
    parser.add_argument("--partial", action="store_true", help="the sources hold only some of the reviewed routes")
    options = parser.parse_args(arguments)
    try:
        sources = [row for path in options.source for row in read_source(path.read_text(encoding="utf-8"))]
        if not options.partial:
            sources += [Source(*added) for added in review.ADDED]
        rows = derive(sources)
        missing = [] if options.partial else unmatched_reviews(rows)
        if missing:
            raise SourceProblem("reviewed, but in no source: " + ", ".join(missing))
    except (SourceProblem, OSError, ValueError) as problem:
        sys.stderr.write(f"{problem}\n")
        return 1
    options.out.write_bytes(encode(rows, options.gitlab))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
