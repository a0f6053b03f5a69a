"""What is in the demo GitLab when it starts: the same every time, so that examples and tests can refer to it."""

from __future__ import annotations

import base64
import datetime
import zlib
from types import SimpleNamespace

from .state import Branch, Entry, Group, Kind, Level, Project, State, Token, User, Visibility

PERSONAL_PREFIX = "glpat-"
_LONG_AGO = datetime.date(2026, 1, 1)


def _value(prefix: str, name: str, length: int = 20) -> str:
    """A token of the right shape, plainly not a real one."""
    return prefix + f"demo-{name}-".ljust(length, "0")


def _routable(name: str) -> str:
    """A personal token in the newer form: payload, version, length and checksum."""
    payload = f"o:1\nu:1-{name}".encode().rjust(27, b"0")
    text = base64.urlsafe_b64encode(payload).decode().rstrip("=")
    head = f"{PERSONAL_PREFIX}{text}.01.{_base36(len(text), 2)}"
    return head + _base36(zlib.crc32(head.encode()), 7)


def _base36(number: int, width: int) -> str:
    digits = ""
    while number:
        number, rest = divmod(number, 36)
        digits = "0123456789abcdefghijklmnopqrstuvwxyz"[rest] + digits
    return digits.rjust(width, "0")


TOKENS = SimpleNamespace(
    root=_value(PERSONAL_PREFIX, "root"),
    root_sudo=_value(PERSONAL_PREFIX, "root-sudo"),
    ada=_value(PERSONAL_PREFIX, "ada"),
    ada_read=_value(PERSONAL_PREFIX, "ada-read"),
    ada_registry=_value(PERSONAL_PREFIX, "ada-registry"),
    ada_routable=_routable("ada"),
    bob=_value(PERSONAL_PREFIX, "bob"),
    eve=_value(PERSONAL_PREFIX, "eve"),
    eve_sudo=_value(PERSONAL_PREFIX, "eve-sudo"),
    mallory=_value(PERSONAL_PREFIX, "mallory"),
    bot=_value(PERSONAL_PREFIX, "bot"),
    expired=_value(PERSONAL_PREFIX, "expired"),
    revoked=_value(PERSONAL_PREFIX, "revoked"),
    oauth=f"{0xDA:064x}",
    oauth_expired=f"{0xDB:064x}",
    job=_value("glcbt-64_", "job"),
    deploy=_value("gldt-", "deploy"),
    session=_value("", "session", 32),
    trigger=_value("glptt-", "trigger", 40),
)
"""The token values by name: ``TOKENS.ada`` is Ada's personal token with scope ``api``."""

FILES = {
    "README.md": b"# Demo\n\nServed by a small GitLab of the gateway's own.\n",
    "src/app.py": b'print("hello")\n',
    "src/a+b.txt": b"plus\n",
    "src/deep/er/than/usual.txt": b"deep\n",
    "docs/\u00fcber uns.md": "# \u00dcber uns\n".encode(),
    "docs/100%.txt": b"per cent\n",
    "docs/[x]?#.txt": b"reserved\n",
    "config/.env.example": b"KEY=value\n",
    "image.bin": bytes(range(256)),
}

BRANCHES = ("feature/login", "feature/deep/er", "release/1.0+hotfix", "fix#42", "\u00fcml\u00e4ut")
TAGS = ("v1.0.0", "rel/2.0")

MEMBERS = {2: Level.MAINTAINER, 3: Level.DEVELOPER, 5: Level.DEVELOPER}


def seed(items: int) -> State:
    """Build a fresh state, with ``items`` public projects in ``open/many`` to page through."""
    state = State()
    _add_people(state)
    _add_groups(state)
    platform = dict(MEMBERS)
    _add_project(state, "platform/api", Visibility.PRIVATE, platform, issues=25)
    _add_project(state, "platform/tools/deploy/runner-images", Visibility.INTERNAL, platform, issues=3)
    _add_project(state, "open/handbook", Visibility.PUBLIC, {2: Level.MAINTAINER}, issues=5)
    _add_project(state, "ada/dotfiles", Visibility.PRIVATE, {2: Level.OWNER}, issues=0)
    for number in range(1, items + 1):
        _add_project(state, f"open/many/item-{number:03}", Visibility.PUBLIC, {}, issues=0, empty=True)
    state.moved["platform/legacy-api"] = 1
    return state


def _add_people(state: State) -> None:
    people = [
        User(1, "root", "Administrator", admin=True),
        User(2, "ada", "Ada Lovelace"),
        User(3, "bob", "Bob Builder"),
        User(4, "eve", "Eve Outside"),
        User(5, "project_1_bot", "ci-bot", bot=True),
        User(6, "mallory", "Mallory Blocked", blocked=True),
    ]
    state.users = {user.id: user for user in people}
    root, ada, bob, eve, bot, mallory = people
    personal: tuple[tuple[User, str, tuple[str, ...]], ...] = (
        (root, "root", ("api",)),
        (root, "root_sudo", ("api", "sudo")),
        (ada, "ada", ("api",)),
        (ada, "ada_read", ("read_api",)),
        (ada, "ada_registry", ("read_registry",)),
        (ada, "ada_routable", ("api",)),
        (bob, "bob", ("api",)),
        (eve, "eve", ("api",)),
        (eve, "eve_sudo", ("api", "sudo")),
        (mallory, "mallory", ("api",)),
        (bot, "bot", ("api",)),
        (ada, "expired", ("api",)),
        (ada, "revoked", ("api",)),
    )
    for user, name, scopes in personal:
        _add_token(state, Kind.PERSONAL, user, name, scopes)
    others: tuple[tuple[Kind, str, tuple[str, ...]], ...] = (
        (Kind.OAUTH, "oauth", ("api",)),
        (Kind.OAUTH, "oauth_expired", ("api",)),
        (Kind.JOB, "job", ()),
        (Kind.DEPLOY, "deploy", ("read_package_registry",)),
        (Kind.SESSION, "session", ()),
        (Kind.TRIGGER, "trigger", ()),
    )
    for kind, name, scopes in others:
        _add_token(state, kind, ada, name, scopes)


def _add_token(state: State, kind: Kind, user: User, name: str, scopes: tuple[str, ...]) -> None:
    value = getattr(TOKENS, name)
    token = Token(state.number("token"), kind, user, name, value, scopes)
    token.family = token.id
    token.expires_on, token.revoked = _LONG_AGO if name.endswith("expired") else None, name == "revoked"
    if kind in {Kind.JOB, Kind.DEPLOY, Kind.TRIGGER}:
        token.project_id = 1
    state.tokens[value] = token


def _add_groups(state: State) -> None:
    for path, visibility, members in (
        ("platform", Visibility.PRIVATE, MEMBERS),
        ("platform/tools", Visibility.PRIVATE, {}),
        ("platform/tools/deploy", Visibility.INTERNAL, {}),
        ("open", Visibility.PUBLIC, {}),
        ("open/many", Visibility.PUBLIC, {}),
    ):
        number = state.number("group")
        state.groups[number] = Group(number, path, visibility, dict(members))


def _add_project(
    state: State, path: str, visibility: Visibility, members: dict[int, Level], issues: int, *, empty: bool = False
) -> None:
    project = Project(state.number("project"), path, visibility, state.now(), members)
    state.projects[project.id] = project
    main = Branch({"README.md": FILES["README.md"]} if empty else dict(FILES), [])
    state.commit(main, "Initial commit", "ada")
    project.branches["main"] = main
    for name in () if empty else BRANCHES:
        project.branches[name] = Branch(dict(main.files), list(main.commits))
        project.branches[name].files[f"on/{name}.txt"] = name.encode()
        state.commit(project.branches[name], f"Start {name}", "bob")
    for name in () if empty else TAGS:
        project.tags[name] = Branch(dict(main.files), list(main.commits))
    for number in range(1, issues + 1):
        add_issue(state, project, state.users[2], f"Issue {number}", f"The text of issue {number}.")
    if issues:
        for label, color in (("bug", "#d9534f"), ("team::platform/api", "#428bca")):
            fields = {"id": state.number("label"), "name": label, "color": color, "description": None, "priority": None}
            project.labels[label] = Entry(dict(fields))
        project.variables["DEPLOY_KEY"] = {
            "variable_type": "env_var",
            "key": "DEPLOY_KEY",
            "value": "demo-variable-secret",
            "protected": True,
            "masked": True,
            "raw": False,
            "environment_scope": "*",
        }


def add_issue(state: State, project: Project, author: User, title: str, description: str | None) -> Entry:
    """Add the next issue to a project."""
    iid = len(project.issues) + 1 if not project.issues else max(project.issues) + 1
    at = state.now()
    entry = Entry(
        {
            "id": state.number("issue"),
            "iid": iid,
            "project_id": project.id,
            "title": title,
            "description": description,
            "state": "opened",
            "created_at": at,
            "updated_at": at,
            "closed_at": None,
            "labels": [],
            "author": {"id": author.id, "username": author.username, "name": author.name, "state": "active"},
            "confidential": False,
            "user_notes_count": 0,
        }
    )
    project.issues[iid] = entry
    return entry
