"""The reviewed tables, row by row of what they decide."""

from __future__ import annotations

import re

import pytest

from gateway.core.catalogue import Access, Catalogue
from gateway.core.narrowing import LISTS, SEARCHES
from gateway.core.rule_match import keeps_to_place, names_place
from gateway.routes import read, review

CATALOGUE = Catalogue.decode(read())
OPERATIONS = {operation.name: operation for operation in CATALOGUE.operations()}


def names(**wanted: bool) -> set[str]:
    return {
        name
        for name, operation in OPERATIONS.items()
        if all(getattr(operation, field) is value for field, value in wanted.items())
    }


@pytest.mark.parametrize(
    ("name", "access"),
    [
        ("POST /api/v4/markdown", Access.READ),
        ("POST /api/v4/projects/:id/ci/lint", Access.READ),
        ("POST /*repository_path.git/git-upload-pack", Access.READ),
        ("POST /api/v4/projects/:id/repository/blobs/batch", Access.READ),
        ("POST /api/v4/projects/:id/packages/npm/-/npm/v1/security/audits/quick", Access.READ),
        ("POST /api/v4/projects/:id/ml/mlflow/api/2.0/mlflow/runs/search", Access.READ),
        ("GET /api/v4/projects/:id/packages/conan/v1/conans/search", Access.READ),
        ("GET /api/v4/projects/:id/packages/nuget/query", Access.READ),
        ("POST /*repository_path.git/git-receive-pack", Access.WRITE),
        ("POST /*repository_path.git/info/lfs/objects/batch", Access.WRITE),
        ("POST /api/graphql", Access.WRITE),
        ("POST /api/glql", Access.WRITE),
        ("GET /api/graphql", Access.WRITE),
        ("POST /api/v4/admin/token", Access.WRITE),
        ("POST /api/v4/jobs/request", Access.WRITE),
        ("POST /api/v4/runners/verify", Access.WRITE),
        ("POST /api/v4/mcp", Access.WRITE),
        ("GET /*project/-/jobs/:job_id/terminal.ws", Access.WRITE),
        ("GET /jwt/auth", Access.WRITE),
        ("POST /oauth/token", Access.WRITE),
        ("ANY /-/kubernetes-agent/k8s-proxy/*path", Access.WRITE),
    ],
)
def test_classes(name: str, access: Access) -> None:
    assert OPERATIONS[name].access is access


@pytest.mark.parametrize("asked", ["*module_name/@latest", "sumdb/:name/supported"])
def test_who_reads_a_projects_go_modules_may_ask_what_gitlab_has_not(asked: str) -> None:
    """GitLab's 404 sends Go on to its next proxy; a 403 ends it."""
    there, here = (OPERATIONS[f"GET /api/v4/projects/:id/packages/go/{path}"] for path in ("*module_name/@v/list", asked))
    assert (here.access, here.surface, here.permissions) == (there.access, there.surface, there.permissions)
    assert keeps_to_place(here, screened=True)


def test_only_reviewed_posts_read_and_nothing_else_that_is_not_a_get() -> None:
    reading = {name for name, operation in OPERATIONS.items() if operation.access is Access.READ}
    assert {name for name in reading if name.startswith("POST ")} == {f"POST {one}" for one in review.POSTS_THAT_READ}
    assert not {name for name in reading if name.startswith(("PUT ", "PATCH ", "DELETE "))}


def test_a_permission_to_read_lets_nobody_write_what_was_not_looked_at() -> None:
    """Writes that GitLab guards by a read permission alone: each hands something out or opens a channel."""
    writes = {
        name
        for name, operation in OPERATIONS.items()
        if operation.access is Access.WRITE
        and operation.permissions
        and not operation.blocked
        and all(permission.startswith("read_") for permission in operation.permissions)
    }
    assert writes == {
        "GET /api/v4/ai/duo_workflows/ws",
        "POST /api/v4/admin/token",
        "POST /api/v4/code_suggestions/connection_details",
        "POST /api/v4/orbit/agent/commands/:name",
    }


SECRET_WORDS = (
    "variables",
    "triggers",
    "access_tokens",
    "deploy_tokens",
    "deploy_keys",
    "hooks",
    "runners",
    "integrations",
)


@pytest.mark.parametrize("word", SECRET_WORDS)
def test_every_get_of_a_secret_thing_is_marked(word: str) -> None:
    gets = {name: each for name, each in OPERATIONS.items() if name.startswith("GET ") and f"/{word}" in name}
    assert gets
    assert [name for name, each in gets.items() if not each.secret_answer] == []


@pytest.mark.parametrize(
    "name",
    [
        "GET /api/v4/projects/:id/pipelines/:pipeline_id/variables",
        "GET /api/v4/projects/:id/pipeline_schedules/:pipeline_schedule_id",
        "GET /api/v4/personal_access_tokens/self",
        "GET /api/v4/application/settings",
        "GET /api/v4/projects/:id/terraform/state/:name",
        "GET /api/v4/projects/:id/remote_mirrors",
        "GET /api/v4/projects/:id/secure_files/:secure_file_id/download",
        "GET /api/v4/projects/:id/services/:slug",
        "GET /api/v4/users/:user_id/impersonation_tokens",
        "GET /jwt/auth",
        "GET /oauth/token/info",
        "POST /*repository_path.git/info/lfs/objects/batch",
    ],
)
def test_secret_answers(name: str) -> None:
    assert OPERATIONS[name].secret_answer


@pytest.mark.parametrize(
    "name",
    [
        "GET /api/v4/projects/:id",
        "GET /api/v4/projects/:id/issues",
        "GET /api/v4/projects/:id/merge_requests",
        "GET /api/v4/projects/:id/merge_requests/:merge_request_iid",
        "GET /api/v4/projects/:id/pipelines",
        "GET /api/v4/projects/:id/jobs",
        "GET /api/v4/projects/:id/repository/tree",
        "GET /api/v4/projects/:id/repository/branches",
        "GET /api/v4/projects/:id/releases",
        "GET /api/v4/users/:id",
        "GET /api/v4/version",
    ],
)
def test_what_is_polled_most_stays_cacheable(name: str) -> None:
    operation = OPERATIONS[name]
    assert (operation.secret_answer, operation.side_effect, operation.binary) == (False, False, False)


@pytest.mark.parametrize(
    "name",
    [
        "GET /api/v4/projects/:id/merge_requests/:merge_request_iid/merge_ref",
        "GET /api/v4/projects/:id/repository/archive",
        "GET /api/v4/projects/:id/export/download",
        "GET /api/v4/projects/:id/jobs/:job_id/artifacts",
        "GET /api/v4/projects/:id/packages/pypi/files/:sha256/*file_identifier",
        "GET /api/v4/projects/:id/terraform/state/:name",
        "GET /*repository_path.git/info/refs",
        "GET /jwt/auth",
        "GET /api/v4/job",
    ],
)
def test_gets_that_change_something(name: str) -> None:
    assert OPERATIONS[name].side_effect


def test_what_belongs_to_no_place_names_none_and_stays_by_itself() -> None:
    placeless = names(placeless=True)
    assert placeless == review.PLACELESS
    assert not {name for name in placeless if names_place(OPERATIONS[name])}
    assert not placeless & (names(wide=True) | names(names_in_body=True) | names(blocked=True))
    assert not placeless & {*LISTS, *SEARCHES}


@pytest.mark.parametrize(
    "word", [r"events", r"todos", r"projects?_?", r"memberships", r"associations\w*", r"runners", r"graphql"]
)
def test_no_word_for_things_of_projects_is_among_what_belongs_to_no_place(word: str) -> None:
    assert not [name for name in review.PLACELESS if re.search(rf"[/_]{word}(?:/|\Z)", name)]


def test_nothing_that_hands_out_a_token_belongs_to_no_place() -> None:
    """With it the same caller would go round a deny by project. OAuth's own grants are the user's."""
    writes = {name for name in review.PLACELESS if OPERATIONS[name].access is Access.WRITE}
    tokens = {name for name in writes if re.search(r"token|rotate|POST .*/keys|secret", name)}
    assert tokens == {
        "DELETE /api/v4/personal_access_tokens/self",
        "POST /oauth/token",
    }


def test_the_inner_surfaces_are_blocked_and_nothing_else_is() -> None:
    blocked = names(blocked=True)
    assert all(
        "/internal/" in name or name.endswith("/authorize") or "/geo/" in name or "/-/" in name or "_event/" in name
        for name in blocked
    )
    assert {name for name in OPERATIONS if "/api/v4/internal/" in name or "/api/v4/geo/" in name} <= blocked
    assert {f"GET /-/{page}" for page in ("health", "liveness", "readiness", "metrics")} <= blocked


# R60: each resource of the 13.0 list is there, under the path its document described; `metrics_dashboard_annotations`,
# `metrics_user_starred_dashboards` and `visual_review_discussions` were removed since.
RESOURCES = {
    "access_requests": "/projects/:id/access_requests",
    "admin_sidekiq_queues or sidekiq_metrics": "/sidekiq/queue_metrics",
    "appearance": "/application/appearance",
    "applications": "/applications",
    "audit_events": "/audit_events",
    "avatar": "/avatar",
    "award_emoji": "/projects/:id/issues/:issue_iid/award_emoji",
    "boards": "/projects/:id/boards",
    "branches": "/projects/:id/repository/branches",
    "broadcast_messages": "/broadcast_messages",
    "code_snippets (snippets)": "/snippets",
    "commits": "/projects/:id/repository/commits",
    "container_registry": "/projects/:id/registry/repositories",
    "custom_attributes": "/projects/:id/custom_attributes",
    "dependencies": "/projects/:id/dependencies",
    "deploy_keys": "/deploy_keys",
    "deploy_tokens": "/deploy_tokens",
    "deployments": "/projects/:id/deployments",
    "discussions": "/projects/:id/issues/:noteable_id/discussions",
    "environments": "/projects/:id/environments",
    "epic_issues": "/groups/:id/epics/:epic_iid/issues",
    "epic_links": "/groups/:id/(-/)epics/:epic_iid/epics",
    "epics": "/groups/:id/epics",
    "error_tracking": "/projects/:id/error_tracking/settings",
    "events": "/events",
    "feature_flag_user_lists": "/projects/:id/feature_flags_user_lists",
    "feature_flags": "/projects/:id/feature_flags",
    "features": "/features",
    "freeze_periods": "/projects/:id/freeze_periods",
    "geo_nodes": "/geo_nodes",
    "group_activity_analytics": "/analytics/group_activity/issues_count",
    "group_badges": "/groups/:id/badges",
    "group_boards": "/groups/:id/boards",
    "group_clusters": "/groups/:id/clusters",
    "group_import_export": "/groups/:id/export/download",
    "group_labels": "/groups/:id/labels",
    "group_level_variables": "/groups/:id/variables",
    "group_milestones": "/groups/:id/milestones",
    "group_wikis": "/groups/:id/wikis",
    "groups": "/groups",
    "import": "/import/github",
    "instance_clusters": "/admin/clusters",
    "instance_level_ci_variables": "/admin/ci/variables",
    "issue_links": "/projects/:id/issues/:issue_iid/links",
    "issues": "/issues",
    "issues_statistics": "/issues_statistics",
    "job_artifacts": "/projects/:id/jobs/:job_id/artifacts",
    "jobs (builds)": "/projects/:id/jobs",
    "keys": "/keys",
    "labels": "/projects/:id/labels",
    "license": "/license",
    "lint": "/projects/:id/ci/lint",
    "managed_licenses": "/projects/:id/managed_licenses",
    "markdown": "/markdown",
    "members": "/projects/:id/members",
    "merge_request_approvals": "/projects/:id/merge_requests/:merge_request_iid/approvals",
    "merge_request_context_commits": "/projects/:id/merge_requests/:merge_request_iid/context_commits",
    "merge_requests": "/merge_requests",
    "merge_trains": "/projects/:id/merge_trains",
    "milestones": "/projects/:id/milestones",
    "namespaces": "/namespaces",
    "notes": "/projects/:id/issues/:noteable_id/notes",
    "notification_settings": "/notification_settings",
    "packages": "/projects/:id/packages",
    "pages": "/projects/:id/pages",
    "pages_domains": "/pages/domains",
    "personal_access_tokens": "/personal_access_tokens",
    "pipeline_schedules": "/projects/:id/pipeline_schedules",
    "pipeline_triggers (build_triggers)": "/projects/:id/triggers",
    "pipelines": "/projects/:id/pipelines",
    "project_aliases": "/project_aliases",
    "project_badges": "/projects/:id/badges",
    "project_clusters": "/projects/:id/clusters",
    "project_import_export": "/projects/:id/export",
    "project_level_variables": "/projects/:id/variables",
    "project_repository_storage_moves": "/project_repository_storage_moves",
    "project_snippets": "/projects/:id/snippets",
    "project_statistics": "/projects/:id/statistics",
    "project_templates": "/projects/:id/templates/:type",
    "projects": "/projects",
    "protected_branches": "/projects/:id/protected_branches",
    "protected_environments": "/projects/:id/protected_environments",
    "protected_tags": "/projects/:id/protected_tags",
    "releases": "/projects/:id/releases",
    "releases/links": "/projects/:id/releases/:tag_name/assets/links",
    "remote_mirrors": "/projects/:id/remote_mirrors",
    "repositories": "/projects/:id/repository/tree",
    "repository_files": "/projects/:id/repository/files/:file_path",
    "repository_submodules": "/projects/:id/repository/submodules/:submodule",
    "resource_label_events": "/projects/:id/issues/:eventable_id/resource_label_events",
    "resource_milestone_events": "/projects/:id/issues/:eventable_id/resource_milestone_events",
    "resource_state_events": "/projects/:id/issues/:eventable_id/resource_state_events",
    "resource_weight_events": "/projects/:id/issues/:eventable_id/resource_weight_events",
    "runners": "/runners",
    "scim": "/groups/:id/scim/identities",
    "search": "/search",
    "services": "/projects/:id/services",
    "integrations": "/projects/:id/integrations",
    "settings": "/application/settings",
    "statistics": "/application/statistics",
    "suggestions": "/suggestions/:id/apply",
    "system_hooks": "/hooks",
    "tags": "/projects/:id/repository/tags",
    "templates/dockerfiles": "/templates/dockerfiles",
    "templates/gitignores": "/templates/gitignores",
    "templates/gitlab_ci_ymls": "/templates/gitlab_ci_ymls",
    "templates/licenses": "/templates/licenses",
    "todos": "/todos",
    "users": "/users",
    "version": "/version",
    "vulnerabilities": "/vulnerabilities/:id",
    "vulnerability_exports": "/security/vulnerability_exports/:id",
    "vulnerability_findings": "/projects/:id/vulnerability_findings",
    "wikis": "/projects/:id/wikis",
}


@pytest.mark.parametrize("template", RESOURCES.values(), ids=list(RESOURCES))
def test_each_resource_of_the_old_list_is_in_the_catalogue(template: str) -> None:
    assert any(name.split(" ", 1)[1] == f"/api/v4{template}" for name in OPERATIONS)


@pytest.mark.parametrize("gone", ["metrics_dashboard", "starred_dashboards", "visual_review"])
def test_what_gitlab_removed_is_not(gone: str) -> None:
    assert not any(gone in name for name in OPERATIONS)
