"""What a GraphQL request does: whether its operations only query, and how many there are.

Decided on the document itself, by the rules of the language (October 2021, §2.3, §6.1). Whatever could be read in two
ways, or is too large to be read at all, is a write: only what surely queries is a read. GitLab also takes parameters from
the query string, and several requests as ``_json``: a request that mixes these is never a read.
"""

from __future__ import annotations

import re

from .body_credentials import scanner_for
from .catalogue import Access
from .messages import RequestHead, first
from .query import query_parameters
from .request_intent import (
    LIGHT_BYTES,
    MOST_TOGETHER,
    UNCOUNTED,
    UNKNOWN,
    ParsingDeferred,
    RequestIntent,
    is_plain_json,
    parse_json,
)
from .target import Target

_MAX_DOCUMENT_BYTES = 10_000
"""GitLab's own limit (``GitlabSchema``, in characters)."""
_MAX_TOKENS = 5_000
"""The most tokens in a document, and in all of a request: parsing these holds up everybody else for some 50 ms."""
_OCTETS_OF_A_TOKEN = 20
"""At most so many octets count as one token: long strings and comments take time, too."""
_MAX_DEPTH = 100

_BATCHES = frozenset({"_json", "operations", "map"})
"""Parameters that hold several requests, or that make several out of one."""
_PARAMETERS = _BATCHES | {"query", "operationName", "variables", "extensions"}
_TYPES = frozenset({"application/json"})
_MEMO_BOUND = 512
_OPEN, _CLOSE = b"{[(", b"}])"
_TOKEN = re.compile(rb'"(?:[^"\\\n]|\\.)*"?|\w+|\.\.\.|[^\s\w,]')
"""Finds at least every token of the language, in a document that ``_reads_alike``. An unterminated string is a token, and
the last one that the parser reads."""

_Kinds = tuple[tuple[str, bool], ...]
"""For each operation in a document, its name and whether it is a query; empty if that is undecidable."""
_memo: dict[bytes, _Kinds] = {}


def parse_query_intent(target: Target, *, parse: bool = True) -> RequestIntent:
    """What a GET without a body asks for. (GitLab refuses mutations there, but only after it has parsed them.)

    Without ``parse``, raises ParsingDeferred for a document that was not read lately.
    """
    found: dict[str, bytes] = {}
    is_unambiguous = True
    for parameter in query_parameters(target.query or b""):
        name = parameter.name.partition("[")[0]
        if name in _BATCHES:
            return UNCOUNTED
        is_unambiguous &= parameter.name not in found and (name not in _PARAMETERS or parameter.plain)
        found[parameter.name] = parameter.value
    if "query" not in found or not is_unambiguous:
        return UNKNOWN
    name = found.get("operationName", b"").decode("utf-8", "replace")
    return RequestIntent(_access(found["query"], name, parse=parse))


def parse_body_intent(head: RequestHead, target: Target, body: bytes, *, room: int = MOST_TOGETHER) -> RequestIntent:
    """What a POST asks for. A multipart request carries an upload, and only mutations take uploads.

    Raises ParsingDeferred for a long body without any ``room``, and for documents that were not read lately in a body that
    holds more requests than there is ``room`` for.
    """
    beside = {parameter.name.partition("[")[0] for parameter in query_parameters(target.query or b"")}
    if not beside.isdisjoint(_BATCHES):
        return UNCOUNTED
    content_type = first(head.fields, b"content-type")
    if not body or scanner_for(content_type, None, head.method) is None:
        return UNKNOWN  # a type from which GitLab reads no parameters
    if not is_plain_json(head, _TYPES):
        return UNCOUNTED
    if len(body) > LIGHT_BYTES and not room:
        raise ParsingDeferred
    try:
        parsed = parse_json(body)
    except ValueError:
        return UNCOUNTED
    if isinstance(parsed, dict) and "_json" in parsed:
        return UNCOUNTED
    requests = parsed if isinstance(parsed, list) else [parsed]
    count = max(1, len(requests))
    few = 0 < len(requests) <= MOST_TOGETHER and _tokens_in(requests) <= _MAX_TOKENS
    try:
        reads = few and beside.isdisjoint(_PARAMETERS) and all(_is_query(one, parse=count <= room) for one in requests)
    except ParsingDeferred:
        raise ParsingDeferred(count) from None
    return RequestIntent(Access.READ if reads else Access.WRITE, count)


def _tokens_in(requests: list[object]) -> int:
    """How many tokens are in the documents of ``requests``; counting stops once there are too many."""
    tokens = 0
    for request in requests:
        document = request.get("query") if isinstance(request, dict) else None
        if isinstance(document, str) and tokens <= _MAX_TOKENS:
            octets = document.encode("utf-8", "surrogatepass")[: _MAX_DOCUMENT_BYTES + 1]
            tokens += max(len(_TOKEN.findall(octets)), len(octets) // _OCTETS_OF_A_TOKEN)
    return tokens


def _is_query(request: object, *, parse: bool) -> bool:
    if not isinstance(request, dict) or "_json" in request:
        return False
    document, name = request.get("query"), request.get("operationName")
    if not isinstance(document, str) or not (name is None or isinstance(name, str)):
        return False
    return _access(document.encode("utf-8", "surrogatepass"), name or "", parse=parse) is Access.READ


def _access(document: bytes, name: str, *, parse: bool) -> Access:
    kinds = _memo.get(document)
    if kinds is None:
        if not parse:
            raise ParsingDeferred
        kinds = _parse(document)
        if len(_memo) >= _MEMO_BOUND:
            _memo.clear()
        if len(document) <= _MAX_DOCUMENT_BYTES:
            _memo[document] = kinds
    chosen = [is_query for operation, is_query in kinds if not name or operation == name]
    return Access.READ if chosen and all(chosen) else Access.WRITE


def _parse(document: bytes) -> _Kinds:
    # Imported here, as it costs a tenth of the start-up and ten megabytes: most gateways never see a GraphQL request.
    from graphql import GraphQLError, OperationDefinitionNode, OperationType, Source, parse
    from graphql.language import FragmentDefinitionNode

    if len(document) > _MAX_DOCUMENT_BYTES or _depth(document) > _MAX_DEPTH or not _reads_alike(document):
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
    # Two operations of one name, or a nameless one beside others, are invalid: GitLab refuses them, whichever was meant.
    return tuple(kinds) if len(set(names)) == len(names) and ("" not in names or len(names) == 1) else ()


def _reads_alike(document: bytes) -> bool:
    """Whether strings and comments of ``document`` end at the same place for every reader.

    GitLab's reader ends a comment only at a line feed, and among many quotation marks ends a block string at another one
    than the language does. Before it reads, it looks for strings in comments, too (``escape_single_quoted_newlines``).
    """
    if b'"""' in document or b"\r" in document.replace(b"\r\n", b"\n"):
        return False
    return b"#" not in document or b'"' not in document


def _depth(document: bytes) -> int:
    """How deep brackets nest, including those in strings: never less than the true depth."""
    depth = deepest = 0
    for octet in document:
        if octet in _OPEN:
            depth += 1
            deepest = max(deepest, depth)
        elif octet in _CLOSE:
            depth = max(0, depth - 1)
    return deepest
