"""What a GraphQL request does: whether its operations only query, and how many they are.

Decided on the document itself, by the rules of the language (October 2021, §2.3, §6.1). Whatever could be read in two
ways, or is too large to be read at all, is a write: only what surely queries is a read. GitLab takes parameters from the
query string, too, and several requests as ``_json``: a request that mixes those is never a read.
"""

from __future__ import annotations

import json

import msgspec

from .body import is_utf_8, media_type
from .catalogue import Access, Operation
from .messages import RequestHead, first
from .query import query_parameters
from .target import Target

MAX_BODY_BYTES = 1 << 20
"""Larger bodies are not looked at."""
_MAX_DOCUMENT_BYTES = 10_000
"""GitLab's own limit (``GitlabSchema``, in characters)."""
_MAX_TOKENS = 5_000
_MAX_DEPTH = 100
_MAX_BATCH = 100

_PARAMETERS = frozenset({"query", "operationName", "variables", "_json", "operations", "map", "extensions"})
_MEMO_BOUND = 512
_OPEN, _CLOSE = b"{[(", b"}])"

_Kinds = tuple[tuple[str, bool], ...]
"""Of each operation in a document: its name and whether it is a query; empty: undecidable."""
_memo: dict[bytes, _Kinds] = {}


class Asked(msgspec.Struct, frozen=True, gc=False):
    """What a request asks for."""

    access: Access = Access.WRITE
    operations: int = 1
    """A batch's; each is work of its own."""


UNKNOWN = Asked()


def is_graphql(operation: Operation) -> bool:
    """Its document decides what it does."""
    return operation.name.endswith("/api/graphql")


def asked_in_query(target: Target) -> Asked:
    """Of a GET without a body. (GitLab refuses mutations there, after it has parsed them.)"""
    found: dict[str, bytes] = {}
    for parameter in query_parameters(target.query or b""):
        if parameter.name in found or (parameter.name in _PARAMETERS and not parameter.plain):
            return UNKNOWN
        found[parameter.name] = parameter.value
    if not found.keys().isdisjoint({"_json", "operations", "map"}) or "query" not in found:
        return UNKNOWN
    name = found.get("operationName", b"").decode("utf-8", "replace")
    return Asked(_access(found["query"], name))


def asked_in_body(head: RequestHead, target: Target, body: bytes) -> Asked:
    """Of a POST. A multipart request carries an upload, and only mutations take those."""
    content_type = first(head.fields, b"content-type")
    if content_type is None or media_type(content_type) != "application/json" or not is_utf_8(content_type):
        return UNKNOWN
    if first(head.fields, b"content-encoding") is not None:
        return UNKNOWN
    if any(parameter.name.partition("[")[0] in _PARAMETERS for parameter in query_parameters(target.query or b"")):
        return UNKNOWN
    try:
        # A member twice is one thing to us and may be another to GitLab: the one JSON reader that tells.
        asked = json.loads(body.decode("utf-8"), object_pairs_hook=_members)
    except (ValueError, RecursionError):
        return UNKNOWN
    requests = asked if isinstance(asked, list) else [asked]
    count = max(1, len(requests))
    if not requests or count > _MAX_BATCH:
        return Asked(Access.WRITE, count)
    return Asked(Access.READ if all(_queries(request) for request in requests) else Access.WRITE, count)


def _members(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a member twice")
    return found


def _queries(request: object) -> bool:
    if not isinstance(request, dict) or "_json" in request:
        return False
    document, name = request.get("query"), request.get("operationName")
    if not isinstance(document, str) or not (name is None or isinstance(name, str)):
        return False
    return _access(document.encode("utf-8", "surrogatepass"), name or "") is Access.READ


def _access(document: bytes, name: str) -> Access:
    kinds = _memo.get(document)
    if kinds is None:
        kinds = _parse(document)
        if len(_memo) >= _MEMO_BOUND:
            _memo.clear()
        if len(document) <= _MAX_DOCUMENT_BYTES:
            _memo[document] = kinds
    chosen = [is_query for operation, is_query in kinds if not name or operation == name]
    return Access.READ if chosen and all(chosen) else Access.WRITE


def _parse(document: bytes) -> _Kinds:
    # Here, because it is a tenth of the start-up and ten megabytes: most gateways never see a GraphQL request.
    from graphql import GraphQLError, OperationDefinitionNode, OperationType, Source, parse
    from graphql.language import FragmentDefinitionNode

    if len(document) > _MAX_DOCUMENT_BYTES or _depth(document) > _MAX_DEPTH:
        return ()
    try:
        found = parse(Source(document.decode("utf-8")), no_location=True, max_tokens=_MAX_TOKENS)
    except (GraphQLError, UnicodeDecodeError, RecursionError):
        return ()
    kinds: list[tuple[str, bool]] = []
    for definition in found.definitions:
        if isinstance(definition, OperationDefinitionNode):
            name = definition.name.value if definition.name is not None else ""
            kinds.append((name, definition.operation is OperationType.QUERY))
        elif not isinstance(definition, FragmentDefinitionNode):
            return ()
    names = [name for name, _ in kinds]
    # Two of one name, or one without beside others, are invalid: GitLab refuses them, whichever it would have meant.
    return tuple(kinds) if len(set(names)) == len(names) and ("" not in names or len(names) == 1) else ()


def _depth(document: bytes) -> int:
    """How deep brackets nest, those in strings counted too: never less than the truth."""
    depth = deepest = 0
    for octet in document:
        if octet in _OPEN:
            depth += 1
            deepest = max(deepest, depth)
        elif octet in _CLOSE:
            depth = max(0, depth - 1)
    return deepest
