"""Filters: Milvus boolean expressions with values, rendered into one safe expression.

Milvus Lite and older servers know no expression templates, so values are encoded here, as literals. What `render`
returns can be put between parentheses and joined with other conditions: it never reaches out of them.

The grammar is that of Milvus (https://milvus.io/docs/boolean.md); it is Milvus that judges the meaning.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from service_kit.errors import InvalidArgument

Scalar = None | bool | int | float | str
Value = Scalar | Sequence[Scalar]

# A string ends where Milvus ends it: a backslash takes the next character with it, and a line break is not allowed.
TOKEN = re.compile(
    r"""(?P<space>[ \t\r\n]+)
      | (?P<string>"(?:[^"\\\r\n]|\\[^\r\n])*"|'(?:[^'\\\r\n]|\\[^\r\n])*')
      | (?P<placeholder>\{[A-Za-z_][A-Za-z0-9_]*\})
      | (?P<word>[A-Za-z0-9_$]+)
      | (?P<open>[(\[])
      | (?P<close>[)\]])
      | (?P<operator>[-+*<>=!&|,.~^])""",
    re.VERBOSE,
)
_CLOSES = {")": "(", "]": "["}
_ESCAPES = str.maketrans({"\\": r"\\", '"': r"\"", "\n": r"\n", "\r": r"\r"})


@dataclass(frozen=True, slots=True)
class Filter:
    """A condition on rows: `Filter('attributes["species"] == {s}', {"s": "cat"})`.

    `{name}` outside a string stands for `values["name"]`. A list is for `in` and `json_contains_any`.
    """

    expression: str
    values: Mapping[str, Value] = field(default_factory=dict)


def render(condition: Filter, *, max_bytes: int = 65_536, max_depth: int = 32) -> str:
    """The filter as one Milvus expression, its values encoded as literals.

    Args:
        condition: the filter of a caller.
        max_bytes: the most bytes (UTF-8) of the expression, before and after the values are put in.
        max_depth: how deep brackets may nest.

    Raises:
        InvalidArgument: an unclosed string or bracket, a character that has no place in an expression, a missing or
            unused value, a value that cannot be written as a literal, or an expression too long or too deep.
    """
    source = condition.expression
    _check_size(source, max_bytes)
    parts: list[str] = []
    brackets: list[tuple[str, int]] = []
    used: set[str] = set()
    position, previous = 0, "space"
    while position < len(source):
        token = TOKEN.match(source, position)
        if token is None:
            raise _unexpected(source, position)
        kind, text = str(token.lastgroup), token.group()
        if kind == "placeholder":
            name = text[1:-1]
            used.add(name)
            # `in{ids}` must not become `in"..."`, nor `r{s}` the raw string `r"..."`.
            text = (" " if previous == "word" else "") + _value_of(name, condition.values, position)
        elif kind == "open":
            brackets.append((text, position))
            if len(brackets) > max_depth:
                raise InvalidArgument(
                    f"filter nests deeper than {max_depth} brackets at position {position + 1}: simplify it"
                )
        elif kind == "close" and (not brackets or brackets.pop()[0] != _CLOSES[text]):
            raise InvalidArgument(
                f"filter has a {text!r} at position {position + 1} that closes nothing: balance its brackets"
            )
        parts.append(text)
        position, previous = token.end(), kind
    if brackets:
        text, position = brackets[-1]
        raise InvalidArgument(f"filter has a {text!r} at position {position + 1} that is never closed: close it")
    if unused := sorted(set(condition.values) - used):
        raise InvalidArgument(f"filter has values its expression does not use: {', '.join(unused)}: leave them out")
    rendered = "".join(parts).strip()
    if not rendered:
        raise InvalidArgument("filter is empty: give an expression, or leave the filter out")
    _check_size(rendered, max_bytes)
    return rendered


def literal(value: Value) -> str:
    """A value as a literal of a Milvus expression. Raises InvalidArgument for what has none."""
    match value:
        case None:
            return "null"
        case bool():
            return "true" if value else "false"
        case int():
            if not -(2**63) <= value < 2**63:
                raise InvalidArgument(f"{value} is no 64-bit integer: pass a float or a string")
            # Server 2.3.5 reads a number without its sign, and the smallest has no positive.
            return str(value) if value > -(2**63) else f"({value + 1} - 1)"
        case float():
            if not math.isfinite(value):
                raise InvalidArgument(f"{value} is not a finite number: filters compare finite numbers only")
            return repr(value)
        case str():
            return string_literal(value)
        case list() | tuple():
            return _list_literal(value)
    raise InvalidArgument(f"{type(value).__name__} is no type for a filter: use null, bool, number, string or list")


def string_literal(text: str) -> str:
    """A string between double quotes. Only what both Milvus Lite and the server read alike is escaped."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InvalidArgument(f"{text!r} holds a lone surrogate: strings must be valid UTF-8") from error
    return f'"{text.translate(_ESCAPES)}"'


def _list_literal(items: Sequence[Scalar]) -> str:
    if any(item is None or isinstance(item, list | tuple | Mapping) for item in items):
        raise InvalidArgument("a list in a filter holds booleans, numbers and strings only: take nulls and lists out")
    return f"[{', '.join(literal(item) for item in items)}]"


def _value_of(name: str, values: Mapping[str, Value], position: int) -> str:
    if name not in values:
        raise InvalidArgument(f"filter names {{{name}}} at position {position + 1}, but has no such value: add it")
    try:
        return literal(values[name])
    except InvalidArgument as error:
        raise InvalidArgument(f"filter value {name!r}: {error.message}") from error


def _check_size(expression: str, max_bytes: int) -> None:
    size = len(expression.encode(errors="surrogatepass"))
    if size > max_bytes:
        raise InvalidArgument(f"filter has {size} bytes, more than {max_bytes}: shorten it, or split its lists")


def _unexpected(source: str, position: int) -> InvalidArgument:
    character, where = source[position], f"at position {position + 1}"
    if character in "\"'":
        return InvalidArgument(
            f"filter has a string {where} that does not end on its line: close it, or pass it as a value"
        )
    if character in "{}":
        return InvalidArgument(f"filter has a {character!r} {where}: a value is named {{name}}, letters and digits")
    if character in "/%":
        # A division by zero in a filter ends the whole process of a Milvus 2.3 server.
        return InvalidArgument(f"filter divides ({character!r}) {where}, which is not allowed: multiply the other side")
    return InvalidArgument(f"filter has an unexpected {character!r} {where}: put text between quotes")
