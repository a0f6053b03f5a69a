"""What no specification says and a person had to decide, operation by operation.

Every POST and every GET of GitLab 19.3 was gone through for these tables; ``build`` fails when an exact entry no longer
names a row, so that a new GitLab version is reviewed and not merely read. ``(?:…)`` patterns match whole templates.
"""

from __future__ import annotations

import re

# Classes -------------------------------------------------------------------------------------------------------------

POSTS_THAT_READ = frozenset(
    {
        "/*repository_path.git/git-upload-pack",
        "/*repository_path.git/info/lfs/locks/verify",
        "/api/v4/code_suggestions/enabled",
        "/api/v4/feature_flags/unleash/:project_id/client/metrics",
        "/api/v4/feature_flags/unleash/:project_id/client/register",
        "/api/v4/glql",
        "/api/v4/groups/:id/-/packages/npm/-/npm/v1/security/advisories/bulk",
        "/api/v4/groups/:id/-/packages/npm/-/npm/v1/security/audits/quick",
        "/api/v4/markdown",
        "/api/v4/orbit/query",
        "/api/v4/orbit/query/:name",
        "/api/v4/packages/npm/-/npm/v1/security/advisories/bulk",
        "/api/v4/packages/npm/-/npm/v1/security/audits/quick",
        "/api/v4/projects/:id/ci/lint",
        "/api/v4/projects/:id/ml/mlflow/api/2.0/mlflow/experiments/search",
        "/api/v4/projects/:id/ml/mlflow/api/2.0/mlflow/registered-models/get-latest-versions",
        "/api/v4/projects/:id/ml/mlflow/api/2.0/mlflow/runs/search",
        "/api/v4/projects/:id/packages/npm/-/npm/v1/security/advisories/bulk",
        "/api/v4/projects/:id/packages/npm/-/npm/v1/security/audits/quick",
        "/api/v4/projects/:id/repository/blobs/batch",
        "/api/v4/projects/:project_id/product_analytics/request/dry-run",
        "/api/v4/projects/:project_id/product_analytics/request/load",
        "/api/v4/projects/:project_id/product_analytics/request/meta",
        "/oauth/introspect",
        "/oauth/userinfo",
    }
)
"""POSTs that change nothing.

Left out on purpose: the LFS batch (its body says upload or download, and an upload's answer holds a token that writes),
GraphQL, also as ``/api/glql`` (its document decides), ``/admin/token`` (it reveals the owner of any token), runner
verification and job requests (both record the contact), model completions (they cost), Conan's ``upload_urls`` and the
tests of virtual registries (GitLab calls out), and tool calls over MCP.
"""

GETS_THAT_WRITE = frozenset(
    {
        "/*project/-/environments/:environment_id/terminal.ws",
        "/*project/-/jobs/:job_id/proxy.ws",
        "/*project/-/jobs/:job_id/terminal.ws",
        "/-/cable",
        "/-/kubernetes-agent/",
        "/-/kubernetes-agent/k8s-proxy/*path",
        "/api/glql",
        "/api/graphql",
        "/api/v4/ai/duo_workflows/ws",
        "/api/v4/mcp",
        "/api/v4/orbit/mcp",
        "/jwt/auth",
    }
)
"""GETs that open a channel through which anything can be done, or hand out a token that can write."""

SIDE_EFFECTS = re.compile(
    r"""
      /api/v4/projects/:id/merge_requests/:merge_request_iid/merge_ref   # writes the ref
    | /api/v4/projects/:id/repository/archive                            # audited and throttled
    | /api/v4/(?:projects|groups)/:id/export(?:_relations)?/download     # audited and throttled
    | /api/v4/.*/(?:artifacts|download|file)(?:/.*)?          # downloads are counted and audited
    | /api/v4/.*/upstreams/:id/test                                      # calls the upstream registry
    | /api/v4/job | /api/v4/job/allowed_agents                           # asks whose token this is, now
    | /api/v4/personal_access_tokens/self(?:/.*)?
    | /api/v4/runners/router/discovery
    | /api/v4/feature_flags/unleash/.*                                   # records the client
    | /api/v4/usage_data/service_ping
    | /api/v4/experiments/:experiment_name/assignments                   # may assign
    | /api/v4/projects/:id/terraform/state/:name(?:/.*)?                 # must never be stale: a plan is made from it
    | /oauth/.* | /-/jwks
    | /\*project/-/.* | /\*repository_path.*
    """,
    re.VERBOSE,
)
"""GETs that are never answered from the cache, besides those that write, files of packages, and whole surfaces (below).

``GET …/merge_requests/:iid`` is not here: it only queues a mergeability check, which each revalidation queues again.
"""

UNCACHED_SURFACES = frozenset(
    {"git", "lfs", "registry", "websocket", "kas", "mcp", "oauth", "runner", "web-token", "health", "internal", "graphql"}
)

# Answers -------------------------------------------------------------------------------------------------------------

SECRET_ANSWERS = re.compile(
    r"""
      .*/variables(?:/.*)?
    | .*/pipeline_schedules/:pipeline_schedule_id(?:/(?:play|take_ownership))?    # holds the schedule's variables
    | .*/triggers(?:/.*)?
    | .*/hooks(?:/.*)? | .*/flow_callbacks(?:/.*)?
    | .*/[a-z_]*(?:access|impersonation|deploy)_tokens?(?:/.*)? | .*/tokens(?:/.*)? | .*_token(?:/.*)?
    | .*/(?:admin/token|token_exchange|forge_token|connection_details|direct_access|support_pin|push_subscriptions)
    | .*/[a-z_]*deploy_keys(?:/.*)?
    | .*/runners(?:/.*)? | .*/runner_controllers(?:/.*)? | /api/v4/jobs/request
    | .*/(?:integrations|services)(?:/.*)?
    | .*/applications(?:/.*)? | /api/v4/application/settings
    | .*/clusters(?:/.*)? | .*/cluster_agents/:agent_id/tokens(?:/.*)?
    | .*/error_tracking/client_keys(?:/.*)?
    | .*/secure_files(?:/.*)?
    | .*/remote_mirrors(?:/.*)? | .*/mirror/pull
    | .*/terraform/state/:name(?:/.*)?
    | .*/ai_agent/.* | .*/google_cloud/setup/.*
    | .*/pages/domains(?:/.*)?                                           # the code that proves ownership
    | /api/v4/geo_(?:nodes|sites)(?:/.*)?
    | .*/conan/v[12]/users/.* | .*/(?:download|upload)_urls
    | .*/virtual_registries/.*upstreams(?:/.*)?
    | /api/v4/license(?:/.*)?
    | /oauth/.* | /jwt/auth | /api/scim/.*
    | /\*repository_path\.git/(?:info/lfs/objects/batch|gitlab-lfs/.*)
    """,
    re.VERBOSE,
)
"""Operations whose answers carry secrets, or what stands for one."""

MAY_HOLD_SECRET = frozenset(
    {
        "/api/v4/groups",
        "/api/v4/groups/:id",
        "/api/v4/groups/:id/restore",
        "/api/v4/groups/:id/transfer",
        "/api/v4/projects",
        "/api/v4/projects/:id",
        "/api/v4/projects/:id/archive",
        "/api/v4/projects/:id/fork",
        "/api/v4/projects/:id/restore",
        "/api/v4/projects/:id/transfer",
        "/api/v4/projects/:id/unarchive",
        "/api/v4/projects/user/:user_id",
    }
)
"""The own page of a project or group holds ``runners_token`` for those who administer it.

These are polled too much to be left out of the cache altogether: whether an answer has that member shows in its body.
"""

BINARY = re.compile(
    r"""
    .*/(?:raw|archive|trace|avatar|downloads?|artifacts|snapshot|permalink|raw_diffs|key\.asc|Release(?:\.gpg)?)(?:/.*)?
    | .*/uploads/.+ | .*/terraform/state/.* | .*\.(?:jsonl|tgz|zip|mod|sh|yaml|atom|ics)
    | /\*repository_path.* | /\*project/-/(?:archive|raw)/.*
    """,
    re.VERBOSE,
)
"""GETs that may answer with a file or a redirect where a specification does not say so."""

# Reach ---------------------------------------------------------------------------------------------------------------

WIDE = re.compile(
    r"""
      /api/v4/groups/:id                                                 # lists its projects, and those shared with it
    | /api/v4/groups/:id/(?:projects|groups)(?:/shared)? | /api/v4/groups/:id/invited_groups
    | /api/v4/groups/:id/\(-/\)search
    | /api/v4/(?:projects|groups)/:id/(?:transfer|share)_locations
    | /api/v4/projects/:id/(?:forks|groups|invited_groups)
    | /api/v4/projects/:id/ci/lint                                       # resolves include: from any project
    | /api/v4/projects/:id/job_token_scope(?:/(?:groups_)?allowlist)?
    | /api/v4/(?:groups|projects|namespaces)/:id/(?:\(-/\)|-/)?(?:epics|work_items)/:[a-z_]+/
      (?:issues|epics|related_epics|children|linked_items|linked_resources|closing_merge_requests|current_user_todos)(?:/.*)?
    | /api/v4/namespaces/:id/minutes/move/:target_id
    | /api/v4/projects/:id/issues/:issue_iid/(?:links(?:/.*)?|related_merge_requests|closed_by)
    | /api/v4/projects/:id/merge_requests/:merge_request_iid/(?:blocks(?:/.*)?|blockees|closes_issues|related_issues)
    | /api/v4/groups/:id/related_epic_links                              # epics of other groups
    | POST\ /api/v4/projects/:id/runners                                 # takes another project's, by its number
    | /api/v4/projects/:id/deploy_keys/:key_id/enable                    # the same
    | /api/v4/projects/:id/(?:labels(?:/:name)?|milestones/:milestone_id)/promote    # changes the group, and takes its
                                                                         # other projects' of that name
    """,
    re.VERBOSE,
)
"""Operations whose answer or work may reach projects and groups that their path doesn't name; some by one method alone."""

NAMES_IN_BODY = frozenset(
    {
        "POST /api/v4/groups/:id/epics/:epic_iid/related_epics",
        "POST /api/v4/groups/:id/placeholder_reassignments",
        "POST /api/v4/groups/:id/share",
        "POST /api/v4/groups/:id/transfer",
        "POST /api/v4/groups/:id/transfer_to_organization",
        "POST /api/v4/namespaces/:id/-/work_items",
        "POST /api/v4/groups/:id/-/work_items",
        "POST /api/v4/projects/:id/-/work_items",
        "POST /api/v4/projects/:id/fork",
        "POST /api/v4/projects/:id/issues/:issue_iid/clone",
        "POST /api/v4/projects/:id/issues/:issue_iid/links",
        "POST /api/v4/projects/:id/issues/:issue_iid/move",
        "POST /api/v4/projects/:id/job_token_scope/allowlist",
        "POST /api/v4/projects/:id/job_token_scope/groups_allowlist",
        "POST /api/v4/projects/:id/merge_requests",
        "POST /api/v4/projects/:id/merge_requests/:merge_request_iid/blocks",
        "POST /api/v4/projects/:id/repository/commits",
        "POST /api/v4/projects/:id/share",
        "PUT /api/v4/projects/:id/transfer",
    }
)
"""Writes whose parameters name another project or group, or a thing of one."""

PLACELESS = frozenset(
    {
        "GET /-/jwks",
        "GET /.well-known/oauth-authorization-server",
        "GET /.well-known/oauth-protected-resource",
        "GET /.well-known/openid-configuration",
        "GET /.well-known/terraform.json",
        "GET /.well-known/webfinger",
        "GET /api/v4/admin/batched_background_migrations",
        "GET /api/v4/admin/batched_background_migrations/:id",
        "GET /api/v4/admin/batched_background_operations",
        "GET /api/v4/admin/batched_background_operations/:id",
        "GET /api/v4/admin/ci/variables",
        "GET /api/v4/admin/ci/variables/:key",
        "GET /api/v4/admin/databases/:database_name/dictionary/tables/:table_name",
        "GET /api/v4/admin/migrations/pending",
        "GET /api/v4/admin/search/migrations",
        "GET /api/v4/admin/search/migrations/:migration_id",
        "GET /api/v4/admin_member_roles",
        "GET /api/v4/application/appearance",
        "PUT /api/v4/application/appearance",
        "GET /api/v4/application/plan_limits",
        "PUT /api/v4/application/plan_limits",
        "GET /api/v4/application/settings",
        "GET /api/v4/application/statistics",
        "GET /api/v4/applications",
        "GET /api/v4/avatar",
        "GET /api/v4/broadcast_messages",
        "POST /api/v4/broadcast_messages",
        "DELETE /api/v4/broadcast_messages/:id",
        "GET /api/v4/broadcast_messages/:id",
        "PUT /api/v4/broadcast_messages/:id",
        "GET /api/v4/databases/:database_name/dictionary/tables",
        "GET /api/v4/experiments",
        "GET /api/v4/features",
        "GET /api/v4/features/definitions",
        "GET /api/v4/hooks",
        "GET /api/v4/hooks/:hook_id",
        "GET /api/v4/ldap/:provider/groups",
        "GET /api/v4/ldap/groups",
        "GET /api/v4/license",
        "POST /api/v4/license",
        "DELETE /api/v4/license/:id",
        "GET /api/v4/license/:id",
        "PUT /api/v4/license/:id/refresh_billable_users",
        "GET /api/v4/license/usage_export",
        "GET /api/v4/licenses",
        "GET /api/v4/member_roles",
        "GET /api/v4/metadata",
        "GET /api/v4/notification_settings",
        "PUT /api/v4/notification_settings",
        "GET /api/v4/packages/conan/v1/ping",
        "GET /api/v4/personal_access_tokens",
        "GET /api/v4/personal_access_tokens/:id",
        "DELETE /api/v4/personal_access_tokens/self",
        "GET /api/v4/personal_access_tokens/self",
        "GET /api/v4/service_accounts",
        "GET /api/v4/sidekiq/compound_metrics",
        "GET /api/v4/sidekiq/job_stats",
        "GET /api/v4/sidekiq/process_metrics",
        "GET /api/v4/sidekiq/queue_metrics",
        "GET /api/v4/swagger_doc",
        "GET /api/v4/swagger_doc/:name",
        "GET /api/v4/templates/dockerfiles",
        "GET /api/v4/templates/dockerfiles/:name",
        "GET /api/v4/templates/gitignores",
        "GET /api/v4/templates/gitignores/:name",
        "GET /api/v4/templates/gitlab_ci_ymls",
        "GET /api/v4/templates/gitlab_ci_ymls/:name",
        "GET /api/v4/templates/licenses",
        "GET /api/v4/templates/licenses/:name",
        "POST /api/v4/usage_data/increment_counter",
        "POST /api/v4/usage_data/increment_unique_users",
        "GET /api/v4/usage_data/metric_definitions",
        "GET /api/v4/usage_data/non_sql_metrics",
        "GET /api/v4/usage_data/queries",
        "GET /api/v4/usage_data/service_ping",
        "GET /api/v4/user",
        "PUT /api/v4/user/:user_id/credit_card_validation",
        "GET /api/v4/user/activities",
        "GET /api/v4/user/applications",
        "GET /api/v4/user/applications/:id",
        "PUT /api/v4/user/avatar",
        "GET /api/v4/user/emails",
        "POST /api/v4/user/emails",
        "DELETE /api/v4/user/emails/:email_id",
        "GET /api/v4/user/emails/:email_id",
        "GET /api/v4/user/gpg_keys",
        "POST /api/v4/user/gpg_keys",
        "DELETE /api/v4/user/gpg_keys/:key_id",
        "GET /api/v4/user/gpg_keys/:key_id",
        "POST /api/v4/user/gpg_keys/:key_id/revoke",
        "GET /api/v4/user/keys",
        "DELETE /api/v4/user/keys/:key_id",
        "GET /api/v4/user/keys/:key_id",
        "GET /api/v4/user/preferences",
        "PUT /api/v4/user/preferences",
        "GET /api/v4/user/status",
        "PATCH /api/v4/user/status",
        "PUT /api/v4/user/status",
        "GET /api/v4/user/support_pin",
        "POST /api/v4/user/support_pin",
        "GET /api/v4/users",
        "GET /api/v4/users/:id",
        "POST /api/v4/users/:id/activate",
        "POST /api/v4/users/:id/approve",
        "POST /api/v4/users/:id/block",
        "GET /api/v4/users/:id/custom_attributes",
        "DELETE /api/v4/users/:id/custom_attributes/:key",
        "GET /api/v4/users/:id/custom_attributes/:key",
        "PUT /api/v4/users/:id/custom_attributes/:key",
        "POST /api/v4/users/:id/deactivate",
        "GET /api/v4/users/:id/emails",
        "DELETE /api/v4/users/:id/emails/:email_id",
        "POST /api/v4/users/:id/follow",
        "GET /api/v4/users/:id/followers",
        "GET /api/v4/users/:id/following",
        "GET /api/v4/users/:id/gpg_keys",
        "POST /api/v4/users/:id/gpg_keys",
        "DELETE /api/v4/users/:id/gpg_keys/:key_id",
        "GET /api/v4/users/:id/gpg_keys/:key_id",
        "POST /api/v4/users/:id/gpg_keys/:key_id/revoke",
        "DELETE /api/v4/users/:id/identities/:provider",
        "DELETE /api/v4/users/:id/keys/:key_id",
        "GET /api/v4/users/:id/keys/:key_id",
        "GET /api/v4/users/:id/support_pin",
        "POST /api/v4/users/:id/support_pin/revoke",
        "POST /api/v4/users/:id/unblock",
        "POST /api/v4/users/:id/unfollow",
        "GET /api/v4/users/:user_id/impersonation_tokens",
        "GET /api/v4/users/:user_id/impersonation_tokens/:impersonation_token_id",
        "GET /api/v4/users/:user_id/keys",
        "GET /api/v4/users/:user_id/status",
        "GET /api/v4/version",
        "DELETE /api/v4/vscode/settings_sync/:settings_context_hash/v1/collection",
        "GET /api/v4/vscode/settings_sync/:settings_context_hash/v1/manifest",
        "GET /api/v4/vscode/settings_sync/:settings_context_hash/v1/resource/:resource_name",
        "POST /api/v4/vscode/settings_sync/:settings_context_hash/v1/resource/:resource_name",
        "GET /api/v4/vscode/settings_sync/:settings_context_hash/v1/resource/:resource_name/:id",
        "DELETE /api/v4/vscode/settings_sync/v1/collection",
        "GET /api/v4/vscode/settings_sync/v1/manifest",
        "GET /api/v4/vscode/settings_sync/v1/resource/:resource_name",
        "POST /api/v4/vscode/settings_sync/v1/resource/:resource_name",
        "GET /api/v4/vscode/settings_sync/v1/resource/:resource_name/:id",
        "GET /api/v4/web_commits/public_key",
        "DELETE /oauth/authorize",
        "GET /oauth/authorize",
        "POST /oauth/authorize",
        "POST /oauth/authorize_device",
        "GET /oauth/device",
        "GET /oauth/discovery/keys",
        "POST /oauth/introspect",
        "POST /oauth/register",
        "POST /oauth/revoke",
        "POST /oauth/token",
        "GET /oauth/token/info",
        "GET /oauth/userinfo",
        "POST /oauth/userinfo",
        "GET /v2",
    }
)
"""Operations that name no project, group or namespace, and neither show nor change anything of one: the instance's own
things and accounts. Any other operation that names none may reach any of them, so that a deny by project refuses it.

Left out on purpose, besides all that shows things of projects (events, todos, memberships, associations, counts, audit
events, runners, deploy keys, ``/keys``, which tells the projects of a deploy key, ``/snippets/:id``, which finds a
project's snippets, too): what hands out or makes a credential (tokens, their rotation, SSH keys, accounts and their
passwords, applications), with which the same caller would get round the deny; system hooks and instance runners, which are
sent things of every project; settings, feature flags and tracked events, which may name a project in their body;
``/markdown``, which shows the titles of what it refers to; deleting and banning users, which also removes what they own or
wrote. ``/oauth/`` grants by a user's own consent, and tells at most the names of their groups.
"""

PERMISSIONS = {
    "GET /api/v4/events": ("read_event",),
    "GET /api/v4/projects": ("read_project",),
    "GET /api/v4/projects/:id/packages/go/*module_name/@latest": ("read_go_module",),
    "GET /api/v4/projects/:id/packages/go/sumdb/:name/supported": ("read_go_module",),
    "POST /api/v4/groups/:id/(-/)epics": ("create_epic",),
    "POST /api/v4/groups/:id/(-/)epics/:epic_iid/issues/:epic_issue_id": ("create_epic_issue",),
    "POST /api/v4/projects": ("create_project",),
}
"""Permissions that the specification gives wrongly (an allow for reading must not let anyone write), or of added rows."""

# Rows --------------------------------------------------------------------------------------------------------------

ADDED = (
    ("GET", "/.well-known/terraform.json", "oauth"),
    ("GET", "/*project?go-get=1", "git"),
    ("GET", "/api/v4/projects/:id/ml/mlflow/api/2.0/mlflow-artifacts/artifacts/:model_version/*file_path", "mlflow"),
    ("GET", "/api/v4/projects/:id/packages/go/*module_name/@latest", "packages"),
    ("GET", "/api/v4/projects/:id/packages/go/sumdb/:name/supported", "packages"),
    ("POST", "/jwt/auth", "registry"),
)
"""What clients ask for and no specification describes, by method, template and surface: where Terraform finds modules
(``Terraform::ServicesController``, open to anybody), where Go finds a module's repository (``Gitlab::Middleware::Go``,
which takes Basic credentials as Git over HTTP does, and no others), and a model's files, as MLflow fetches them
(``lib/api/ml/mlflow_artifacts/artifacts.rb``). Also what GitLab answers with 404. Go asks each of its proxies whether it
knows a public module's checksum; it goes on to the next one after a 404, but gives up after a 403. And containerd and
BuildKit first ask for the registry's token in this way, with their password in the body, and the body of an unknown page
would not be inspected.
"""

DROPPED = frozenset({"/api/v4/*path", "/api/v4/projects/:id/(ref/:ref/)trigger/pipeline"})
"""Grape's own catch-all for 404, with which no route would be unknown, and a row that two others describe better."""

CORRECTED = {
    "/*repository_path.git/gitlab-lfs/objects/*oid": "/*repository_path.git/gitlab-lfs/objects/:oid",
    "/*repository_path.git/gitlab-lfs/objects/*oid/*size": "/*repository_path.git/gitlab-lfs/objects/:oid/:size",
    "/gitlab.agent.*grpc": "/gitlab.agent.:service/:rpc",
}
"""Templates as GitLab's constraints make them: an object id, a size, a gRPC method are one segment each."""

BLOCKED_SURFACES = frozenset({"internal", "health"})
BLOCKED = re.compile(r"/api/v4/geo/.*")
"""Surfaces that Workhorse, GitLab Shell, KAS and monitoring use among themselves."""
