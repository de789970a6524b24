"""The field `id` in a tenant's filter.

Milvus knows a tenant's row by its primary key, `<tenant>/<id>`; the filter means the id. So whatever it compares `id`
with gets the prefix, and an `id` that is not compared with a text is refused, as it would mean something else.
"""

from __future__ import annotations

from collections.abc import Sequence

from search_service.filters import TOKEN
from search_service.naming import primary_key
from service_kit.errors import InvalidArgument

_COMPARES = frozenset({"==", "!=", "<", "<=", ">", ">="})
_COMPARING = frozenset("=!<>")
_AFTER = frozenset({"", ")", "&", "|", "and", "or"})
_BEFORE = frozenset({"", "(", "&", "|", "and", "or", "not"})


def with_keys(expression: str, tenant: str) -> str:
    """A rendered filter with the primary keys of a tenant's rows in the place of their ids.

    Raises:
        InvalidArgument: it does something else with `id` than comparing it with texts.
    """
    prefix = primary_key("", tenant)
    texts = [token.group() for token in TOKEN.finditer(expression)]
    words = [position for position, text in enumerate(texts) if not text.isspace()]
    compared: set[int] = set()
    for place, position in enumerate(words):
        if texts[position] == "id":
            after = [texts[each] for each in words[place + 1 :]]
            before = [texts[each] for each in reversed(words[:place])]
            behind, ahead = _operands(after), _operands(before, backwards=True)
            if behind is None or ahead is None or not (behind or ahead):
                raise InvalidArgument(
                    "in a multi-tenant collection a filter may only compare `id` with texts: use ==, !=, <, <=, >, >=, "
                    "in, not in or like, with texts on the other side"
                )
            compared.update(words[place + 1 + offset] for offset in behind)
            compared.update(words[place - 1 - offset] for offset in ahead)
    for position in compared:
        quote, rest = texts[position][0], texts[position][1:]
        texts[position] = f"{quote}{prefix}{rest}"
    return "".join(texts)


def _operands(tokens: Sequence[str], *, backwards: bool = False) -> list[int] | None:
    """Where the texts are that `id` is compared with, of the tokens on one side of it; None for any other use."""
    first = tokens[0].lower() if tokens else ""
    if first in (_BEFORE if backwards else _AFTER):
        return []
    if first in _COMPARING:
        length = 2 if len(tokens) > 1 and tokens[1] in _COMPARING else 1
        operator = "".join(reversed(tokens[:length]) if backwards else tokens[:length])
        return [length] if operator in _COMPARES and _is_text(tokens, length) else None
    if backwards:
        return None
    length = 2 if first == "not" else 1
    match tokens[length - 1].lower() if len(tokens) >= length else "":
        case "like":
            return [length] if _is_text(tokens, length) else None
        case "in" if tokens[length : length + 1] == ["["]:
            end = tokens.index("]", length)
            elements = [offset for offset in range(length + 1, end) if tokens[offset] != ","]
            return elements if elements and all(_is_text(tokens, offset) for offset in elements) else None
    return None


def _is_text(tokens: Sequence[str], offset: int) -> bool:
    return len(tokens) > offset and tokens[offset][0] in "\"'"
