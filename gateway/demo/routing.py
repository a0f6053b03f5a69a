"""Routes, and what an endpoint is called with. ``:name`` in a template is one decoded segment, ``*name`` all the rest."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from .access import SAFE, Caller, Surface
from .answer import Answer, Refusal, as_text, forbidden, framework_error, missing, no_route, not_found
from .request import Request
from .state import Group, Level, Project, State


@dataclass(slots=True)
class Call:
    """One call of an endpoint."""

    state: State
    request: Request
    caller: Caller
    base_url: str
    """GitLab's external URL: what it believes it is called."""

    def __getitem__(self, name: str) -> str:
        """A path parameter, decoded."""
        return self.request.path_params[name]

    def required(self, name: str) -> str:
        value = self.request.text(name)
        if value is None:
            raise missing(name)
        return value

    def project(self, needed: Level = Level.NONE) -> Project:
        """The project of ``:id``, if the caller may see it and has the role. One that they may not see is a 404."""
        reference = self["id"]
        moved = self.state.moved.get(reference)
        project = self.state.projects.get(moved) if moved is not None else self.state.find_project(reference)
        if project is None or not self.state.may_see(self.caller.user, project):
            raise not_found("Project")
        if moved is not None:
            raise self._moved(reference, project)
        token = self.caller.token
        if token is not None and token.project_id not in {None, project.id}:
            raise forbidden(f"Authentication by CI/CD job token not allowed from platform/api to project #{project.id}.")
        if needed and self.state.level(self.caller.require_user(), project.full_path, project.members) < needed:
            raise forbidden()
        return project

    def group(self) -> Group:
        group = self.state.find_group(self["id"])
        if group is None or not self.state.may_see(self.caller.user, group):
            raise not_found("Group")
        return group

    def _moved(self, reference: str, project: Project) -> Refusal:
        if self.request.method not in SAFE:
            return Refusal(as_text("Non GET methods are not allowed for moved projects", 405))
        old = self.request.path.split("/")[1 + self.request.segments.index(reference)]
        place = self.base_url + self.request.target.replace(old, str(project.id), 1)
        return Refusal(as_text(f"This resource has been moved permanently to {place}", 301, {"Location": place}))


DEFAULT_SURFACE = Surface()
"""The surface of most routes: personal and OAuth tokens with scope ``api``, or ``read_api`` for reading; sessions."""

Endpoint = Callable[[Call], Answer]


@dataclass(frozen=True, slots=True)
class Route:
    method: str
    template: str
    endpoint: Endpoint
    surface: Surface = DEFAULT_SURFACE


class Router:
    """Finds routes by method and path. HEAD is GET without the body, as in Rack::Head, unless it has its own route."""

    def __init__(self, routes: Sequence[Route]) -> None:
        self._routes = [(route, tuple(route.template.split("/")[1:])) for route in routes]

    def find(self, method: str, segments: tuple[str, ...]) -> tuple[Route, dict[str, str]]:
        """The route, and its path parameters. Raises the Refusal for an unknown route, or for one with other methods."""
        found = self._matching(segments)
        if not found and segments and segments[-1].endswith(".json"):
            found = self._matching((*segments[:-1], segments[-1].removesuffix(".json")))
        if not found:
            raise no_route()
        for wanted in (method, "GET" if method == "HEAD" else method):
            for route, params in found:
                if route.method == wanted:
                    return route, params
        raise framework_error(
            405, "405 Not Allowed", {"Allow": ", ".join(sorted({"OPTIONS", *(route.method for route, _ in found)}))}
        )

    def _matching(self, segments: tuple[str, ...]) -> list[tuple[Route, dict[str, str]]]:
        matched = ((route, _match(template, segments)) for route, template in self._routes)
        return [(route, params) for route, params in matched if params is not None]


def _match(template: tuple[str, ...], segments: tuple[str, ...]) -> dict[str, str] | None:
    params: dict[str, str] = {}
    for position, part in enumerate(template):
        if part.startswith("*"):
            rest = segments[position:]
            return {**params, part[1:]: "/".join(rest)} if rest else None
        if position >= len(segments):
            return None
        if part.startswith(":"):
            if not segments[position]:
                return None
            params[part[1:]] = segments[position]
        elif part != segments[position]:
            return None
    return params if len(template) == len(segments) else None
