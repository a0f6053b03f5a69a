"""What one answer's head says as all of its kind do, and where they differ.

GitLab's answers to the pages of a list are the same lines but for a handful: ``ETag``, ``Link``, ids, times, numbers.
Whoever made something of one of them can say where those values came to stand in it, and need only put in another's.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from .answer_shape import Shape, picking, shape_of
from .messages import Fields, ResponseHead

Values = tuple[bytes, ...]
"""Of the fields that differ, in their order."""

# As the reader of heads has it: no space at either end, and not a control octet but the tabulator. One run, whose end is
# looked back at: word by word, a date takes five times as long. There is but one way to read it, so none is tried twice.
_VALUE = rb"([!-~\x80-\xff][\t -~\x80-\xff]*+(?<![\t ])|)"
_LENGTH = rb"(0|[1-9][0-9]{0,17})"
_LENGTH_NAME = b"content-length"
_OFTEN = 256
"""A head that was read so often is worth a pattern of its own, which takes a millisecond or two to compile."""
_LONGEST_PATTERN = 1024
"""Octets of what stays the same: they are compiled one by one."""


class HeadForm:
    """Of heads of status 200 that tell their length and leave their connection open.

    Args:
        lines: Of one of them, its status line first, each as it came.
        fields: That were read of it.
        reason: That was read of it.
        own: Names of fields, in lower case, whose values are an answer's own; the length's is.

    Raises:
        ValueError: A line of these is not spelt ``Name: value``, or the length stands there more or less than once.
    """

    __slots__ = (
        "_common",
        "_lines",
        "_met",
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
        """Of the fields that differ, in lower case."""
        if self.names.count(_LENGTH_NAME) != 1:
            raise ValueError("one length is told")
        self.length = self.names.index(_LENGTH_NAME)
        """Where among the values it stands: digits, without a zero before them."""
        self.place = {name: number for number, name in reversed(list(enumerate(self.names)))}
        """Of the first value of each name."""
        patterns = []
        for at in places:
            name, value = fields[at]
            if lines[at + 1] != b"%b: %b" % (name, value):
                raise ValueError("spelt otherwise")
            patterns.append(re.escape(name) + b": " + (_LENGTH if names[at] == _LENGTH_NAME else _VALUE))
        self._own = re.compile(rb"\r\n".join(patterns)).fullmatch
        self._pick: Callable[[Sequence[bytes]], tuple[bytes, ...]]
        self._pick = picking([0, *(at + 1 for at in range(len(fields)) if at not in places)])  # type: ignore[assignment]
        self._own_lines: Callable[[Sequence[bytes]], tuple[bytes, ...]]
        self._own_lines = picking([at + 1 for at in places])  # type: ignore[assignment]  # any sequence will do, as above
        self._common = self._pick(lines)
        # Of the values that differ none is kept, here and in the next.
        self._lines = tuple([b"" if at - 1 in places else line for at, line in enumerate(lines)])
        self.fields = tuple([(name, b"") if at in places else (name, value) for at, (name, value) in enumerate(fields)])
        """With their values; those that differ without."""
        self._places = places
        self._met = 0
        self._opening: Callable[[bytes], re.Match[bytes] | None] | None = None

    def read(self, lines: Sequence[bytes]) -> Values | None:
        """The values of another head, if it is of this form."""
        if self._pick(lines) != self._common:
            return None
        found = self._own(b"\r\n".join(self._own_lines(lines)))
        return None if found is None else found.groups()

    def met(self, instead: bytes) -> None:
        """It was read once more. ``instead``: a line, always the same, that may stand in place of the length."""
        self._met += 1
        if self._met == _OFTEN and sum(map(len, self._common)) <= _LONGEST_PATTERN:
            self._opening = re.compile(self._pattern(instead)).match

    def starts(self, data: bytes) -> tuple[Values, bytes] | None:
        """Of a head of this form at the start of ``data``: its values, and what comes behind its blank line. The length is
        empty where the other line stands in its place. None, too, while the form has been met too seldom."""
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

    def telling(self, values: Values, length: int) -> Values:
        """``values``, of a head that told no length, with this one."""
        at = self.length
        return (*values[:at], b"%d" % length, *values[at + 1 :])

    def apart(self, other: HeadForm) -> list[bytes] | None:
        """Of a form of the same shape: the names of fields that stay the same in either, and are not the same.

        None: lines that say the same are spelt otherwise, so neither form can take the place of the other.
        """
        own = {*self._places, *other._places}
        both = [at for at in range(len(self.fields)) if at not in own and self._lines[at + 1] != other._lines[at + 1]]
        if self._lines[0] != other._lines[0] or any(self.fields[at] == other.fields[at] for at in both):
            return None
        return [self.shape.names[at] for at in both]

    def head(self, values: Sequence[bytes]) -> ResponseHead:
        """The head with these values."""
        fields = list(self.fields)
        for at, value in zip(self._places, values, strict=True):
            fields[at] = (fields[at][0], value)
        return ResponseHead(200, tuple(fields), self.reason, self.shape)


class Blanks:
    """A head with a blank for each value that differs: handed through whatever is made of heads, it shows where they go."""

    def __init__(self, form: HeadForm) -> None:
        self.form = form
        # No value holds a NUL: a blank is like nothing that stays.
        self._marks = [b"\0%d" % number for number in range(len(form.names))]
        self.head = form.head(self._marks)

    def filling(self, fields: Fields) -> Callable[[Sequence[bytes]], Fields]:
        """``fields``, made of ``head``, of another, whose values ``within`` picked: put in their places.

        Raises:
            ValueError: They no longer stand there whole.
        """
        self.within(fields)
        blank = [at for at, (_, value) in enumerate(fields) if b"\0" in value]
        names = [fields[at][0] for at in blank]
        # Out of all of ``fields`` and, behind them, the new ones.
        arranged = picking([len(fields) + blank.index(at) if at in blank else at for at in range(len(fields))])

        def filled(picked: Sequence[bytes]) -> Fields:
            return arranged((*fields, *zip(names, picked)))  # noqa: B905 — `strict` costs as much again

        return filled

    def within(self, fields: Fields) -> Callable[[Sequence[bytes]], tuple[bytes, ...]]:
        """Picks the values that stand in ``fields``, made of ``head``. Raises as ``filling``."""
        return picking([self._number(value) for _, value in fields if b"\0" in value])  # type: ignore[return-value]

    def template(self, fields: Fields) -> tuple[bytes, Callable[[Sequence[bytes]], tuple[bytes, ...]]]:
        """``fields`` as lines for ``%``, and what picks the values for it. Raises as ``filling``."""
        lines, numbers = [], []
        for name, value in fields:
            text = b"%b: %b\r\n" % (name, value)
            if b"\0" in value:
                numbers.append(self._number(value))
                lines.append(name.replace(b"%", b"%%") + b": %b\r\n")
            else:
                lines.append(text.replace(b"%", b"%%"))
        return b"".join(lines), picking(numbers)  # type: ignore[return-value]  # any sequence will do

    def _number(self, value: bytes) -> int:
        return self._marks.index(value)
