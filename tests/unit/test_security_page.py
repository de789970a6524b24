"""The table of docs/security.md says who may do what; here is what says that it is so."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from embedder_service.rpc import ACCESS as EMBEDDER_ACCESS
from search_service.rpc import ACCESS as SEARCH_ACCESS
from service_kit.access import MethodAccess
from service_kit.identity import Identity, Role

PAGE = Path(__file__).resolve().parents[2] / "docs" / "security.md"
BOUND = Identity("one", Role.WRITE, frozenset({"a"}))


def rows() -> Iterator[str]:
    for service, methods in {**SEARCH_ACCESS, **EMBEDDER_ACCESS}.items():
        for name, needs in methods.items():
            access = MethodAccess(service, name, needs)
            own = "in their tenants" if access.names_tenant else "yes"
            bound = "no" if access.refusal(BOUND) else own
            yield f"| `{service.rpartition('.')[2]}/{name}` | {needs.role.name.lower()} | {bound} |"


def test_the_table_of_calls_and_roles_is_what_the_servers_ask_for() -> None:
    table = "\n".join(["| call | role | bound to tenants |", "|---|---|---|", *rows(), ""])
    assert f"\n{table}\n" in PAGE.read_text(), f"put this table into {PAGE}:\n{table}"
