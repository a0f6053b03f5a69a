"""What a private cache learns from answers, and which of them it must not store."""

from __future__ import annotations

import re

from ..core.answer_shape import shape_of_head
from ..core.cache_tags import answer_tags, extra_write_tags, project_tags, resource_of, write_tags
from ..core.catalogue import Operation
from ..core.content_coding import decode_content
from ..core.messages import ResponseHead
from ..core.project_names import MAX_BODY_BYTES, ProjectNames, parse_project_names, projects_written
from ..core.target import parse_target
from ..reply import Reply

# The member's name, or an escape of one of its characters: GitLab escapes `<`, `>` and `&`, but none of these.
_SECRET_MEMBER = re.compile(rb"runners_token|\\u00(?:5f|6[5bef]|7[2-5])", re.IGNORECASE)


class Tagging:
    """Makes tags from the names known so far; one per gateway, shared by cache, hooks and the rules' places.

    Args:
        names: Project names; more are added here.
        prefix: GitLab's relative URL root.
    """

    def __init__(self, names: ProjectNames, prefix: str = "") -> None:
        self.names = names
        self._prefix = prefix

    def tags_of_answer(self, partition: bytes, target: bytes) -> tuple[bytes, ...]:
        return answer_tags(partition, target, self.names)

    def tags_of_write(self, target: bytes, operation: Operation, partition: bytes) -> tuple[bytes, ...]:
        """Tags of what a write makes doubtful, by the request itself. ``partition``: its caller's."""
        segments = parse_target(target, max_bytes=len(target), prefix=self._prefix.encode()).segments
        reached = extra_write_tags(operation, segments, partition, self.names)
        return tuple(dict.fromkeys((*write_tags(target, self.names), *reached)))

    def tags_of_written(self, target: bytes, reply: Reply) -> tuple[bytes, ...]:
        """Tags of what a write makes doubtful, by its answer, which has been read: a new name (of a renamed or new
        project), and the projects of the things that it made or changed."""
        if not reply.whole or reply.head.status >= 300:
            return ()
        coding = shape_of_head(reply.head).first(reply.head.fields, b"content-encoding")
        self.learn_coded(target, coding, reply.whole, written=True)
        content = decode_content(reply.whole, coding)
        numbers = projects_written(content) if content else ()
        named = [tag for number in numbers for tag in project_tags((number,), self.names)]
        return tuple(dict.fromkeys((*write_tags(target, self.names), *named)))

    def has_nothing_to_learn(self, target: bytes) -> bool:
        """Whether an answer to ``target`` can bring no name that is not known."""
        place = resource_of(target)
        if place.owner == b"project" and len(place.segments) > 2 and self.names.others(place.spelt):
            return True
        return not place.names_projects

    def learn(self, target: bytes, head: ResponseHead, body: bytes) -> None:
        """Learn names of projects, where the answer brings some that are not known."""
        self.learn_coded(target, shape_of_head(head).first(head.fields, b"content-encoding"), body)

    def learn_coded(self, target: bytes, coding: bytes | None, body: bytes, *, written: bool = False) -> None:
        """As ``learn``, from an answer whose ``Content-Encoding`` is ``coding``. ``written``: it answers a write."""
        if len(body) > MAX_BODY_BYTES or self.has_nothing_to_learn(target):
            return
        place = resource_of(target)
        content = decode_content(body, coding)
        found = parse_project_names(place.segments, content, self._prefix, written=written) if content else ()
        for number, path in found:
            self.names.learn(number, path)


def hides_secret(head: ResponseHead, body: bytes) -> bool:
    """Whether an answer, which may hold a secret for those who administer the thing, does so or can't be read: then it is
    not stored."""
    content = decode_content(body, shape_of_head(head).first(head.fields, b"content-encoding"))
    return content is None or _SECRET_MEMBER.search(content) is not None
