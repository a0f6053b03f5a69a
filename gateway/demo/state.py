"""The state of the demo GitLab: users, tokens, groups, projects and what is in them, all in memory."""

from __future__ import annotations

import datetime
import hashlib
import secrets
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from enum import Enum, IntEnum

from .request import parse_id

Json = dict[str, object]

_EPOCH = "2026-01-{day:02}T{hour:02}:{minute:02}:{second:02}.000Z"


class Level(IntEnum):
    """GitLab's roles."""

    NONE = 0
    GUEST = 10
    REPORTER = 20
    DEVELOPER = 30
    MAINTAINER = 40
    OWNER = 50


class Visibility(Enum):
    PUBLIC = "public"
    INTERNAL = "internal"
    PRIVATE = "private"


class Kind(Enum):
    """The kind of a token, which decides where in a request GitLab looks for it."""

    PERSONAL = "personal"
    OAUTH = "oauth"
    JOB = "job"
    DEPLOY = "deploy"
    SESSION = "session"
    TRIGGER = "trigger"


@dataclass(slots=True)
class User:
    id: int
    username: str
    name: str
    admin: bool = False
    bot: bool = False
    blocked: bool = False


@dataclass(slots=True)
class Token:
    id: int
    kind: Kind
    user: User
    name: str
    value: str = field(repr=False)
    scopes: tuple[str, ...] = ("api",)
    expires_on: datetime.date | None = None
    revoked: bool = False
    project_id: int | None = None
    family: int = 0
    """The id of the token from which this one descends by rotations; its own for a first one."""


@dataclass(slots=True)
class Group:
    id: int
    full_path: str
    visibility: Visibility
    members: dict[int, Level] = field(default_factory=dict)

    @property
    def path(self) -> str:
        return self.full_path.rpartition("/")[2]


@dataclass(slots=True)
class Commit:
    id: str
    title: str
    author: str
    at: str
    parents: tuple[str, ...]


@dataclass(slots=True)
class Branch:
    """A branch or tag: the files at its tip, and the commits that led there, newest first."""

    files: dict[str, bytes]
    commits: list[Commit]


@dataclass(slots=True)
class Entry:
    """An issue, merge request or label: its fields, kept as answers send them."""

    fields: Json
    notes: list[Json] = field(default_factory=list)


@dataclass(slots=True)
class Project:
    id: int
    full_path: str
    visibility: Visibility
    created_at: str
    members: dict[int, Level] = field(default_factory=dict)
    description: str = ""
    branches: dict[str, Branch] = field(default_factory=dict)
    tags: dict[str, Branch] = field(default_factory=dict)
    issues: dict[int, Entry] = field(default_factory=dict)
    merge_requests: dict[int, Entry] = field(default_factory=dict)
    labels: dict[str, Entry] = field(default_factory=dict)
    variables: dict[str, Json] = field(default_factory=dict)
    uploads: dict[str, bytes] = field(default_factory=dict)
    packages: dict[str, bytes] = field(default_factory=dict)
    releases: dict[str, Json] = field(default_factory=dict)

    @property
    def path(self) -> str:
        return self.full_path.rpartition("/")[2]

    @property
    def namespace(self) -> str:
        return self.full_path.rpartition("/")[0]


class State:
    """All state, and the two clocks that make it deterministic: ids and instants both count writes."""

    def __init__(self) -> None:
        self.today: Callable[[], datetime.date] = _today
        self.users: dict[int, User] = {}
        self.tokens: dict[str, Token] = {}
        self.groups: dict[int, Group] = {}
        self.projects: dict[int, Project] = {}
        self.moved: dict[str, int] = {}
        self._numbers: dict[str, int] = {}
        self._writes = 0

    def number(self, of: str) -> int:
        """The next id of its kind."""
        self._numbers[of] = self._numbers.get(of, 0) + 1
        return self._numbers[of]

    def now(self) -> str:
        """The next instant: one second for each write."""
        self._writes += 1
        minutes, second = divmod(self._writes, 60)
        hours, minute = divmod(minutes, 60)
        days, hour = divmod(hours, 24)
        return _EPOCH.format(day=1 + days % 28, hour=hour, minute=minute, second=second)

    def mint(
        self,
        user: User,
        name: str,
        scopes: tuple[str, ...],
        prefix: str,
        expires_on: datetime.date | None,
        *,
        family: int = 0,
    ) -> Token:
        """Make a personal token, with a value that nobody could guess."""
        number = self.number("token")
        value = prefix + secrets.token_urlsafe(15)
        token = Token(number, Kind.PERSONAL, user, name, value, scopes, expires_on, family=family or number)
        self.tokens[value] = token
        return token

    def find_token(self, number: int) -> Token | None:
        return next((one for one in self.tokens.values() if one.id == number and one.kind is Kind.PERSONAL), None)

    def is_expired(self, token: Token) -> bool:
        """Whether a token has expired: it has from the first second of its day on."""
        return token.expires_on is not None and token.expires_on <= self.today()

    def revoke_family(self, token: Token) -> None:
        """Revoke all tokens that descend from the same one. Called when a revoked token asks to be rotated: if it was
        replaced before, two parties hold it, and nothing that descends from it can be trusted."""
        for one in self.tokens.values():
            if one.kind is token.kind and one.family == token.family:
                one.revoked = True

    def find_user(self, reference: str) -> User | None:
        """The user with an id or a username, whose case does not matter."""
        if (number := parse_id(reference)) is not None:
            return self.users.get(number)
        return next((user for user in self.users.values() if user.username.lower() == reference.lower()), None)

    def find_project(self, reference: str) -> Project | None:
        if (number := parse_id(reference)) is not None:
            return self.projects.get(number)
        return next((one for one in self.projects.values() if one.full_path.lower() == reference.lower()), None)

    def find_group(self, reference: str) -> Group | None:
        if (number := parse_id(reference)) is not None:
            return self.groups.get(number)
        return next((one for one in self.groups.values() if one.full_path.lower() == reference.lower()), None)

    def level(self, user: User | None, path: str, members: dict[int, Level]) -> Level:
        """A user's role: the highest of their own and those inherited from the groups above."""
        if user is None:
            return Level.NONE
        if user.admin:
            return Level.OWNER
        inherited = (
            group.members.get(user.id, Level.NONE)
            for group in self.groups.values()
            if f"{path}/".startswith(f"{group.full_path}/")
        )
        return max(members.get(user.id, Level.NONE), *inherited, Level.NONE)

    def may_see(self, user: User | None, resource: Project | Group) -> bool:
        if resource.visibility is Visibility.PUBLIC or self.level(user, resource.full_path, resource.members):
            return True
        return resource.visibility is Visibility.INTERNAL and user is not None

    def visible_projects(self, user: User | None) -> Iterable[Project]:
        return (project for project in self.projects.values() if self.may_see(user, project))

    def commit(self, branch: Branch, title: str, author: str) -> Commit:
        """Record a change at a branch's tip. The id is a digest of what was committed, so it is the same every time."""
        parents = tuple(commit.id for commit in branch.commits[:1])
        at = self.now()
        digest = hashlib.sha1("\0".join((title, author, at, *parents)).encode(), usedforsecurity=False)
        for path in sorted(branch.files):
            digest.update(path.encode() + b"\0" + branch.files[path])
        commit = Commit(digest.hexdigest(), title, author, at, parents)
        branch.commits.insert(0, commit)
        return commit


def _today() -> datetime.date:
    return datetime.datetime.now(datetime.UTC).date()
