"""What each method asks of its caller; the one place where calls and their messages are held against it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from google.protobuf import descriptor_pool

from service_kit.errors import PermissionDenied
from service_kit.identity import Identity, Role

_SHOWN = 64  # characters of what a caller sent


@dataclass(frozen=True, slots=True)
class Needs:
    """What a method asks of its caller.

    Attributes:
        role: the least.
        shared: whether callers bound to tenants may call it though its request names no tenant: only where it neither
            shows nor changes what belongs to another one.
    """

    role: Role
    shared: bool = False


# For each service, by its full name, what each of its methods needs. A method that is not here is open to nobody.
AccessTable: TypeAlias = Mapping[str, Mapping[str, Needs]]


class MethodAccess:
    """Who may call one method, and with which messages."""

    def __init__(self, service: str, name: str, needs: Needs | None) -> None:
        self._name = name
        self._needs = needs
        fields: Any = _request_fields(service, name)
        self.names_tenant = "tenant" in fields
        self._has_all_tenants = "all_tenants" in fields

    def refusal(self, caller: Identity) -> PermissionDenied | None:
        """Returns why a caller may not call the method at all, or None."""
        needs = self._needs
        if needs is None:
            return PermissionDenied(f"{self._name} is open to nobody: no role is declared for it in this server")
        if caller.role < needs.role:
            return PermissionDenied(
                f"{self._name} takes the role {needs.role.name.lower()}, and {caller.name!r} has the role "
                f"{caller.role.name.lower()}"
            )
        if caller.tenants is not None and not (self.names_tenant or needs.shared):
            return PermissionDenied(f"{self._name} concerns all tenants, and {caller.name!r} is bound to some")
        return None

    def check(self, message: Any, caller: Identity, *, begun: bool = False) -> None:
        """Makes sure that a message of a method that `names_tenant` asks for no tenant that is not the caller's.

        An empty tenant, that of collections without tenants, belongs to nobody who is bound to some; only when a stream
        has `begun` it stands for the tenant of the message before.

        Raises:
            PermissionDenied: it does.
        """
        if caller.tenants is None:
            return
        tenant: str = message.tenant
        if self._has_all_tenants and message.all_tenants:
            raise PermissionDenied(f"all tenants are asked for, and {caller.name!r} is bound to some")
        if tenant in caller.tenants or (begun and not tenant):
            return
        if not tenant:
            raise PermissionDenied(f"no tenant is named, and {caller.name!r} is bound to some: name one of them")
        raise PermissionDenied(f"tenant {tenant[:_SHOWN]!r} is not one of those that {caller.name!r} is bound to")


def _request_fields(service: str, name: str) -> Any:
    """Returns the fields of a method's request by name; none for a method that no contract in this process has."""
    try:
        contract = descriptor_pool.Default().FindServiceByName(service)
        return contract.methods_by_name[name].input_type.fields_by_name
    except KeyError:
        return {}
