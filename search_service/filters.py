"""Filters: conditions on rows, read by a grammar of our own and written anew for Milvus.

The language is the part of Milvus' boolean expressions (https://milvus.io/docs/boolean.md) that compares a field with
values. What Milvus makes of the rest is not left to it: a filter as `1 == "a"` ends the process of a 2.3 server.
What `render` returns never reaches out of the parentheses that it is put between.

    condition  = all { ("or" | "||") all }
    all        = one { ("and" | "&&") one }
    one        = ("not" | "!") one | "(" condition ")" | "exists" attribute | test
    test       = function | operand compare operand [compare operand] | field "like" text
               | field ["not"] "in" list | field "is" ["not"] "null"
    function   = name "(" attribute "," (value | list) ")" | "array_length" "(" attribute ")" compare value
    field      = "id" | "source" | "content_sha256" | "updated_ms" | attribute
    attribute  = "attributes" "[" (text | integer) "]" { "[" (text | integer) "]" }
    list       = "[" [value {"," value}] "]"

Of the operands of a comparison one is a field, the others are values: a text, a number, a boolean or null. A name in
braces, whose value is given apart, may stand for a value, a list or the name of an attribute.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import NoReturn

from service_kit.errors import InvalidArgument

Scalar = None | bool | int | float | str
Value = Scalar | Sequence[Scalar]

# A text ends where Milvus ends it: a backslash takes the next character with it, and a line break is not allowed.
_TOKEN = re.compile(
    r"""(?P<text>"(?:[^"\\\r\n]|\\[^\r\n])*"|'(?:[^'\\\r\n]|\\[^\r\n])*')
      | (?P<value>\{[A-Za-z_][A-Za-z0-9_]*\})
      | (?P<number>[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?(?![A-Za-z0-9_.]))
      | (?P<word>[A-Za-z_][A-Za-z0-9_]*)
      | (?P<operator>[=!<>]=|&&|\|\||[<>!(),\[\]])""",
    re.VERBOSE,
)
_SPACE = re.compile(r"[ \t\r\n]*")
_ESCAPES = str.maketrans({"\\": r"\\", '"': r"\"", "\n": r"\n", "\r": r"\r"})
_COMPARISONS = ("==", "!=", "<", "<=", ">", ">=")
_MIRRORED = {"<": ">", "<=": ">=", ">": "<", ">=": "<="}
_WORDS = {"&&": "and", "||": "or", "!": "not"}
_TEXT_FIELDS = frozenset({"id", "source", "content_sha256"})
_FIELDS = "id, source, content_sha256, updated_ms and attributes"
_CONTAINING = frozenset({"json_contains", "array_contains"})
_CONTAINING_SOME = frozenset({f"{name}_{which}" for name in _CONTAINING for which in ("all", "any")})
# No row has an empty id.
_NO_ROW, _ANY_ROW = 'id == ""', 'id != ""'


@dataclass(frozen=True, slots=True)
class Filter:
    """A condition on rows: `Filter('attributes["species"] == {s}', {"s": "cat"})`.

    `{name}` outside a text stands for `values["name"]`. A list is for `in` and `json_contains_any`.
    """

    expression: str
    values: Mapping[str, Value] = field(default_factory=dict)


def render(condition: Filter, *, max_bytes: int = 65_536, max_depth: int = 32, id_prefix: str = "") -> str:
    """The filter as one Milvus expression, its values encoded as literals.

    Args:
        condition: the filter of a caller.
        max_bytes: the most bytes (UTF-8) of the expression, before and after the values are put in.
        max_depth: how deep parentheses and negations may nest.
        id_prefix: what Milvus' primary keys have before the ids that the caller knows.

    Raises:
        InvalidArgument: an expression that is not of the grammar, a missing or unused value, a value that cannot be
            written as a literal, or an expression too long or too deep.
    """
    _check_size(condition.expression, max_bytes)
    reader = _Reader(condition, max_depth, id_prefix)
    if not condition.expression.strip():
        raise InvalidArgument("filter is empty: give an expression, or leave the filter out")
    rendered = reader.whole()
    if unused := sorted(set(condition.values) - reader.used):
        raise InvalidArgument(f"filter has values its expression does not use: {', '.join(unused)}: leave them out")
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


def _check_size(expression: str, max_bytes: int) -> None:
    size = len(expression.encode(errors="surrogatepass"))
    if size > max_bytes:
        raise InvalidArgument(f"filter has {size} bytes, more than {max_bytes}: shorten it, or split its lists")


@dataclass(frozen=True, slots=True)
class _Token:
    kind: str  # a group of _TOKEN, or "end"
    text: str
    position: int

    @property
    def word(self) -> str:
        """The word or operator, in the one form that the grammar has for it."""
        return _WORDS.get(self.text, self.text.lower()) if self.kind in ("word", "operator") else ""


@dataclass(frozen=True, slots=True)
class _Operand:
    """A field or a value of a comparison, as Milvus reads it."""

    text: str
    is_field: bool
    is_text: bool
    position: int


class _Reader:
    """Reads one filter from left to right and writes it anew; a method for each line of the grammar."""

    def __init__(self, condition: Filter, max_depth: int, id_prefix: str) -> None:
        self.used: set[str] = set()
        self._values = condition.values
        self._max_depth = max_depth
        self._depth = 0
        self._id_prefix = id_prefix
        self._tokens = _tokens(condition.expression)
        self._place = 0

    def whole(self) -> str:
        rendered = self._condition()
        if self._next.kind != "end":
            self._expected("and, or, or the end")
        return rendered

    # ---- The grammar

    def _condition(self) -> str:
        return self._joined("or", lambda: self._joined("and", self._one))

    def _joined(self, word: str, part: Callable[[], str]) -> str:
        parts = [part()]
        while self._take(word):
            parts.append(part())
        return f" {word} ".join(parts)

    def _one(self) -> str:
        start = self._next.position
        if self._take("not"):
            nested = self._next.text == "("
            with self._deeper(start):
                return f"not {self._one()}" if nested else f"not ({self._one()})"
        if self._take("("):
            with self._deeper(start):
                inner = self._condition()
            self._require(")")
            return f"({inner})"
        if self._take("exists"):
            return f"exists {self._attribute()}"
        return self._test()

    def _test(self) -> str:
        if self._next.kind == "word" and self._tokens[self._place + 1].text == "(":
            return self._function()
        left = self._operand()
        match self._next.word:
            case word if word in _COMPARISONS:
                return self._comparison(left)
            case "like" if left.is_field:
                self._step()
                return f"{left.text} like {self._text_for(left)}"
            case "in" if left.is_field:
                self._step()
                return self._membership(left, "in")
            case "not" if left.is_field:
                self._step()
                self._require("in")
                return self._membership(left, "not in")
            case "is" if left.is_field:
                self._step()
                negation = "not " if self._take("not") else ""
                self._require("null")
                return f"{left.text} is {negation}null"
        self._expected(f"a comparison ({', '.join(_COMPARISONS)}, in, not in, like, is null)")

    def _comparison(self, left: _Operand) -> str:
        operator = self._step().text
        middle = self._operand()
        if middle.is_field and not left.is_field and self._next.text in _MIRRORED and operator in _MIRRORED:
            second = self._step().text
            return f"({self._compared(left, operator, middle)} and {self._compared(middle, second, self._operand())})"
        return self._compared(left, operator, middle)

    def _compared(self, left: _Operand, operator: str, right: _Operand) -> str:
        if left.is_field == right.is_field:
            what = "two fields" if left.is_field else "two values"
            raise InvalidArgument(
                f"filter compares {what} at position {left.position + 1}: compare a field ({_FIELDS}) with a value"
            )
        if right.is_field:
            left, right, operator = right, left, _MIRRORED.get(operator, operator)
        return f"{left.text} {operator} {self._fitting(left, right)}"

    def _membership(self, field: _Operand, operator: str) -> str:
        values = self._list()
        if not values:
            return _NO_ROW if operator == "in" else _ANY_ROW
        return f"{field.text} {operator} [{', '.join(self._fitting(field, value) for value in values)}]"

    def _function(self) -> str:
        name_token = self._step()
        name = name_token.word
        if name not in _CONTAINING | _CONTAINING_SOME | {"array_length"}:
            raise InvalidArgument(
                f"filter has no function {name_token.text!r}, at position {name_token.position + 1}: there are "
                f"{', '.join(sorted(_CONTAINING | _CONTAINING_SOME))} and array_length"
            )
        self._require("(")
        attribute = self._attribute()
        if name == "array_length":
            self._require(")")
            if self._next.text not in _COMPARISONS:
                self._expected("a comparison")
            return f"array_length({attribute}) {self._step().text} {self._value().text}"
        self._require(",")
        if name in _CONTAINING_SOME:
            argument = f"[{', '.join(value.text for value in self._list())}]"
        else:
            argument = self._value().text
        self._require(")")
        return f"{name}({attribute}, {argument})"

    def _operand(self) -> _Operand:
        token = self._next
        if token.kind != "word" or token.word in ("true", "false", "null"):
            return self._value()
        if token.text == "attributes":
            return _Operand(self._attribute(), is_field=True, is_text=False, position=token.position)
        if token.text not in _TEXT_FIELDS | {"updated_ms"}:
            raise InvalidArgument(
                f"filter has no field {token.text!r}, at position {token.position + 1}: there are {_FIELDS}; put texts "
                "between quotes"
            )
        self._step()
        return _Operand(token.text, is_field=True, is_text=token.text in _TEXT_FIELDS, position=token.position)

    def _attribute(self) -> str:
        if self._next.text != "attributes":
            self._expected('an attribute, as attributes["name"]')
        self._step()
        path = "attributes"
        while self._next.text == "[" or path == "attributes":
            self._require("[")
            key = self._value()
            if not key.is_text and not key.text.isdecimal():
                raise InvalidArgument(
                    f"filter has {key.text} for the name of an attribute, at position {key.position + 1}: give a text, "
                    "or the place in a list"
                )
            path += f"[{key.text}]"
            self._require("]")
        return path

    def _value(self) -> _Operand:
        """A text, number, boolean or null."""
        token = self._next
        match token.kind:
            case "text":
                text = token.text
            case "number":
                text = self._literal_of(_number(token.text), token, "number")
            case "value":
                value = self._given(token)
                if isinstance(value, list | tuple):
                    raise InvalidArgument(
                        f"filter value {token.text[1:-1]!r} is a list, at position {token.position + 1}: a single "
                        "value belongs there, and a list after in"
                    )
                text = self._literal_of(value, token, token.text[1:-1])
            case "word" if token.word in ("true", "false", "null"):
                text = token.word
            case _:
                self._expected("a value: a text between quotes, a number, true, false, null, or a {name}")
        self._step()
        return _Operand(text, is_field=False, is_text=text[0] in "\"'", position=token.position)

    def _list(self) -> list[_Operand]:
        token = self._next
        if token.kind == "value":
            self._step()
            values = self._given(token)
            if not isinstance(values, list | tuple):
                raise InvalidArgument(
                    f"filter value {token.text[1:-1]!r} is no list, at position {token.position + 1}: give one"
                )
            self._literal_of(values, token, token.text[1:-1])
            return [
                _Operand(literal(value), is_field=False, is_text=isinstance(value, str), position=token.position)
                for value in values
            ]
        self._require("[")
        found: list[_Operand] = []
        while not self._take("]"):
            if found:
                self._require(",")
            found.append(self._value())
            if found[-1].text == "null":
                raise InvalidArgument(f"filter has a null in a list, at position {found[-1].position + 1}: take it out")
        return found

    def _text_for(self, field: _Operand) -> str:
        pattern = self._value()
        if not pattern.is_text:
            raise InvalidArgument(f"filter has {pattern.text} at position {pattern.position + 1}: like takes a text")
        return self._fitting(field, pattern)

    def _fitting(self, field: _Operand, value: _Operand) -> str:
        """The value as Milvus has to get it for a comparison with the field."""
        if field.is_text and not value.is_text:
            raise InvalidArgument(
                f"filter compares {field.text} with {value.text}, at position {value.position + 1}: it is a text"
            )
        if field.text == "updated_ms" and (value.is_text or value.text in ("true", "false", "null")):
            raise InvalidArgument(
                f"filter compares updated_ms with {value.text}, at position {value.position + 1}: it is a number"
            )
        if field.text == "id":
            return f"{value.text[0]}{self._id_prefix}{value.text[1:]}"
        return value.text

    def _given(self, token: _Token) -> Value:
        name = token.text[1:-1]
        if name not in self._values:
            raise InvalidArgument(
                f"filter names {token.text} at position {token.position + 1}, but has no such value: add it"
            )
        self.used.add(name)
        return self._values[name]

    def _literal_of(self, value: Value, token: _Token, name: str) -> str:
        try:
            return literal(value)
        except InvalidArgument as error:
            raise InvalidArgument(
                f"filter value {name!r}, at position {token.position + 1}: {error.message}"
            ) from error

    # ---- Tokens

    @property
    def _next(self) -> _Token:
        return self._tokens[self._place]

    def _step(self) -> _Token:
        token = self._next
        if token.kind != "end":
            self._place += 1
        return token

    def _take(self, word: str) -> bool:
        """Takes the next token if it is this word or operator."""
        taken = self._next.word == word
        self._place += taken
        return taken

    def _require(self, word: str) -> None:
        if not self._take(word):
            self._expected(repr(word))

    def _expected(self, what: str) -> NoReturn:
        token = self._next
        found = "ends" if token.kind == "end" else f"has {token.text!r}"
        raise InvalidArgument(f"filter {found} at position {token.position + 1}, where {what} is expected")

    @contextmanager
    def _deeper(self, position: int) -> Iterator[None]:
        self._depth += 1
        if self._depth > self._max_depth:
            raise InvalidArgument(f"filter nests deeper than {self._max_depth} at position {position + 1}: simplify it")
        yield
        self._depth -= 1


def _number(text: str) -> int | float:
    try:
        return int(text)
    except ValueError:
        return float(text)


def _tokens(source: str) -> list[_Token]:
    """All tokens, and one for the end."""
    tokens = []
    position = _after_space(source, 0)
    while position < len(source):
        found = _TOKEN.match(source, position)
        if found is None:
            raise _unexpected(source, position)
        tokens.append(_Token(str(found.lastgroup), found.group(), position))
        position = _after_space(source, found.end())
    return [*tokens, _Token("end", "", len(source))]


def _after_space(source: str, position: int) -> int:
    found = _SPACE.match(source, position)
    assert found is not None
    return found.end()


def _unexpected(source: str, position: int) -> InvalidArgument:
    character, where = source[position], f"at position {position + 1}"
    if character in "\"'":
        return InvalidArgument(
            f"filter has a string {where} that does not end on its line: close it, or pass it as a value"
        )
    if character in "{}":
        return InvalidArgument(f"filter has a {character!r} {where}: a value is named {{name}}, letters and digits")
    if character in "+-*/%~^":
        return InvalidArgument(f"filter calculates ({character!r}) {where}: it can only compare, so calculate before")
    return InvalidArgument(f"filter has an unexpected {character!r} {where}: put text between quotes")
