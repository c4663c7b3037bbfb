"""Tenants: the name of the key for which a task works, and the spaces in which requests share what is kept of them."""

from contextvars import ContextVar

current: ContextVar[str] = ContextVar("current", default="")
"""Name of the key that the current task's request was sent with; empty without keys."""


def space(salt: str | None) -> str:
    """Return the space of the current tenant's requests with this `cache_salt`; no two tenants share one.

    It is empty without a key and a salt.
    """
    tenant = current.get()
    return f"{tenant}/{salt or ''}" if tenant or salt else ""  # the name of a key has no slash
