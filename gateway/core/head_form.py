"""The form of an answer's head: the lines that it shares with all answers of its kind, and the fields in which they differ.

The heads of GitLab's answers to the pages of a list are equal line by line, but for a handful of fields: ``ETag``,
``Link``, ids, times, numbers. Code that has derived something from one such head can record where those values ended up in
the result; for the next head it only has to put that head's values in the same places.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from .answer_shape import Shape, make_picker, shape_of
from .messages import Fields, ResponseHead

Values = tuple[bytes, ...]
"""The values of the fields that differ, in wire order."""

# As in the parser of heads: no white space at either end, and no control octet except the tab. The value is matched as one
# run, with a look back at its end: matched word by word, a date takes five times as long. There is only one way to match
# it, so nothing is tried twice.
_VALUE = rb"([!-~\x80-\xff][\t -~\x80-\xff]*+(?<![\t ])|)"
_LENGTH = rb"(0|[1-9][0-9]{0,17})"
_LENGTH_NAME = b"content-length"
_OFTEN = 256
"""A form read this many times is worth a pattern of its own, which takes a millisecond or two to compile."""
_LONGEST_PATTERN = 1024
"""The most octets of constant lines for which that pattern is compiled: they are compiled one by one."""


class HeadForm:
    """The form of heads with status 200 that state their length and leave their connection open, learnt from one of them.

    Args:
        lines: The lines of that head as they came, its status line first.
        fields: The fields parsed from it.
        reason: The reason phrase parsed from it.
        own: Names of the fields, in lower case, whose values are each answer's own; ``Content-Length`` always is.

    Raises:
        ValueError: The line of such a field is not spelt ``Name: value``, or ``Content-Length`` is not there exactly once.
    """

    __slots__ = (
        "_common",
        "_lines",
        "_matches",
        "_opening",
        "_own",
        "_own_lines",
        "_pick",
        "_places",
        "fields",
        "length",
        "names",
        "place",
        "reason",
        "shape",
    )

    def __init__(self, lines: Sequence[bytes], fields: Fields, reason: bytes, own: frozenset[bytes]) -> None:
        self.reason = reason
        self.shape: Shape = shape_of(fields)
        own |= {_LENGTH_NAME}
        names = self.shape.names
        places = [at for at, name in enumerate(names) if name in own]
        self.names = tuple([names[at] for at in places])
        """The names of the fields that differ, in lower case."""
        if self.names.count(_LENGTH_NAME) != 1:
            raise ValueError("one length is told")
        self.length = self.names.index(_LENGTH_NAME)
        """The index of ``Content-Length`` among the values. Its value is digits, without leading zeros."""
        self.place = {name: number for number, name in reversed(list(enumerate(self.names)))}
        """Name → the index of its first value among the values."""
        patterns = []
        for at in places:
            name, value = fields[at]
            if lines[at + 1] != b"%b: %b" % (name, value):
                raise ValueError("spelt otherwise")
            patterns.append(re.escape(name) + b": " + (_LENGTH if names[at] == _LENGTH_NAME else _VALUE))
        self._own = re.compile(rb"\r\n".join(patterns)).fullmatch
        self._pick: Callable[[Sequence[bytes]], tuple[bytes, ...]]
        self._pick = make_picker([0, *(at + 1 for at in range(len(fields)) if at not in places)])  # type: ignore[assignment]
        self._own_lines: Callable[[Sequence[bytes]], tuple[bytes, ...]]
        self._own_lines = make_picker([at + 1 for at in places])  # type: ignore[assignment]  # any sequence will do, as above
        self._common = self._pick(lines)
        # Values that differ are kept neither here nor in `fields`.
        self._lines = tuple([b"" if at - 1 in places else line for at, line in enumerate(lines)])
        self.fields = tuple([(name, b"") if at in places else (name, value) for at, (name, value) in enumerate(fields)])
        """All fields; the values of those that differ are empty."""
        self._places = places
        self._matches = 0
        self._opening: Callable[[bytes], re.Match[bytes] | None] | None = None

    def read(self, lines: Sequence[bytes]) -> Values | None:
        """The values of another head; None if it is not of this form."""
        if self._pick(lines) != self._common:
            return None
        found = self._own(b"\r\n".join(self._own_lines(lines)))
        return None if found is None else found.groups()

    def count_match(self, instead: bytes) -> None:
        """Count one more head of this form. ``instead``: a line, always the same, that may stand in place of the length."""
        self._matches += 1
        if self._matches == _OFTEN and sum(map(len, self._common)) <= _LONGEST_PATTERN:
            self._opening = re.compile(self._pattern(instead)).match

    def match_start(self, data: bytes) -> tuple[Values, bytes] | None:
        """If ``data`` starts with a head of this form: its values, and the data after its blank line. The length is empty
        where the other line stands in its place. None if it doesn't, or while too few such heads have come."""
        opening = self._opening
        found = opening(data) if opening is not None else None
        return None if found is None else (found.groups(b""), data[found.end() :])

    def _pattern(self, instead: bytes) -> bytes:
        patterns = []
        for at, line in enumerate(self._lines):
            name = self.fields[at - 1][0] if at - 1 in self._places else None
            if name is None:
                patterns.append(re.escape(line))
            elif self.shape.names[at - 1] != _LENGTH_NAME:
                patterns.append(re.escape(name) + b": " + _VALUE)
            elif name == b"Content-Length":
                patterns.append(b"(?:Content-Length: %b|%b)" % (_LENGTH, re.escape(instead)))
            else:
                patterns.append(re.escape(name) + b": " + _LENGTH)
        return rb"\r\n".join([*patterns, b"", b""])

    def with_content_length(self, values: Values, length: int) -> Values:
        """``values`` of a head without a length, with this length put in."""
        at = self.length
        return (*values[:at], b"%d" % length, *values[at + 1 :])

    def conflicting_names(self, other: HeadForm) -> list[bytes] | None:
        """The names of the fields that are constant in this form and in ``other``, of the same shape, but not equal.

        None if the status lines differ, or if a field is the same in both and only its line is spelt differently: then
        neither form can take the place of the other.
        """
        own = {*self._places, *other._places}
        both = [at for at in range(len(self.fields)) if at not in own and self._lines[at + 1] != other._lines[at + 1]]
        if self._lines[0] != other._lines[0] or any(self.fields[at] == other.fields[at] for at in both):
            return None
        return [self.shape.names[at] for at in both]

    def head(self, values: Sequence[bytes]) -> ResponseHead:
        """The head of this form with these values."""
        fields = list(self.fields)
        for at, value in zip(self._places, values, strict=True):
            fields[at] = (fields[at][0], value)
        return ResponseHead(200, tuple(fields), self.reason, self.shape)


class HeadPlaceholders:
    """A head with a placeholder for each differing value: code that transforms heads shows with it where each goes."""

    def __init__(self, form: HeadForm) -> None:
        self.form = form
        # No value contains a NUL, so a placeholder can't be mistaken for a constant value.
        self._marks = [b"\0%d" % number for number in range(len(form.names))]
        self.head = form.head(self._marks)

    def filler_for(self, fields: Fields) -> Callable[[Sequence[bytes]], Fields]:
        """A function that puts another head's values, as picked by ``picker_for``, into the placeholders of ``fields``.

        ``fields`` were made from ``self.head``.

        Raises:
            ValueError: A placeholder is no longer there as a whole value.
        """
        self.picker_for(fields)
        places = [at for at, (_, value) in enumerate(fields) if b"\0" in value]
        names = [fields[at][0] for at in places]
        # Picks from ``fields`` followed by the new ones.
        arranged = make_picker([len(fields) + places.index(at) if at in places else at for at in range(len(fields))])

        def filled(picked: Sequence[bytes]) -> Fields:
            return arranged((*fields, *zip(names, picked)))  # noqa: B905 — `strict` costs as much again

        return filled

    def picker_for(self, fields: Fields) -> Callable[[Sequence[bytes]], tuple[bytes, ...]]:
        """A function that picks the values found in ``fields``, made from ``self.head``. Raises as ``filler_for`` does."""
        return make_picker([self._number(value) for _, value in fields if b"\0" in value])  # type: ignore[return-value]

    def template(self, fields: Fields) -> tuple[bytes, Callable[[Sequence[bytes]], tuple[bytes, ...]]]:
        """``fields`` as lines for ``%``, and a function that picks the values for it. Raises as ``filler_for`` does."""
        lines, numbers = [], []
        for name, value in fields:
            text = b"%b: %b\r\n" % (name, value)
            if b"\0" in value:
                numbers.append(self._number(value))
                lines.append(name.replace(b"%", b"%%") + b": %b\r\n")
            else:
                lines.append(text.replace(b"%", b"%%"))
        return b"".join(lines), make_picker(numbers)  # type: ignore[return-value]  # any sequence will do

    def _number(self, value: bytes) -> int:
        return self._marks.index(value)
