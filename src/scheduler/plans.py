"""Which plan holds for a customer: its record names it, the configuration says what is in it.

Nothing that is replicated depends on this: it is asked before a command is proposed, and when an
attempt is given out. So replicas may have different configurations while one takes another's place.
"""

from __future__ import annotations

from collections.abc import Mapping

from ..mesh import telemetry
from ..mesh.plans import STANDARD, Plan
from .core.model import Customer
from .store.queries import Queries

CUSTOMERS_REMEMBERED_MAX = 100_000
"""About 150 bytes each. Whose turn it is asks for a customer's plan again and again."""

log = telemetry.logger(__name__)


class Plans:
    """See the module. What is remembered holds while `changed` is told of every change."""

    def __init__(self, queries: Queries, configured: Mapping[str, Plan]) -> None:
        self._queries = queries
        self._plans = {STANDARD: Plan(), **configured}
        self._remembered: dict[str, tuple[str, Plan]] = {}
        self._missing: set[str] = set()
        """Names that the log has heard of, since `clear`."""

    @property
    def names(self) -> list[str]:
        """Of all plans, sorted."""
        return sorted(self._plans)

    def of(self, customer: str) -> Plan:
        """What holds for a customer."""
        return self._of(customer)[1]

    def name_of(self, customer: str) -> str:
        """The name of what holds for a customer: "standard" if there is no plan of its own."""
        return self._of(customer)[0]

    def changed(self, customer: Customer) -> bool:
        """A customer's record is another; whether another plan may hold for it."""
        known = self._remembered.pop(customer.customer, None)
        return known is None or known != self._of(customer.customer)

    def clear(self) -> None:
        """Remember nothing: the state may be another."""
        self._remembered.clear()
        self._missing.clear()

    def _of(self, customer: str) -> tuple[str, Plan]:
        known = self._remembered.get(customer)
        if known is None:
            stored = self._queries.customer(customer)
            known = self._in_force(customer, (stored and stored.plan) or STANDARD)
            if len(self._remembered) >= CUSTOMERS_REMEMBERED_MAX:
                self._remembered.clear()
            self._remembered[customer] = known
        return known

    def _in_force(self, customer: str, name: str) -> tuple[str, Plan]:
        plan = self._plans.get(name)
        if plan is not None:
            return name, plan
        if name not in self._missing:
            self._missing.add(name)
            log.warning(
                "the configuration has no such plan: the standard one holds for its customers",
                plan=name,
                customer=customer,
            )
        return STANDARD, self._plans[STANDARD]
