"""Plans: what a customer may use, and how large a share of the mesh it gets. Pure.

A plan is named in the configuration; a customer's record names its plan. Who names none has the
standard one, which is what there is without any configuration.
"""

from __future__ import annotations

import re

import msgspec

STANDARD = "standard"
"""The plan that always exists. A configuration may say what is in it."""

PLANS_MAX = 100
"""Plans of one configuration: people tell fewer apart."""

NAME = re.compile(r"[a-z]([a-z0-9-]{0,61}[a-z0-9])?")
"""As any id of the mesh."""

RUNTIME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
"""A runtime as containerd names it."""

CAPABILITIES = frozenset(
    {
        "CAP_CHOWN",
        "CAP_DAC_OVERRIDE",
        "CAP_FOWNER",
        "CAP_KILL",
        "CAP_NET_BIND_SERVICE",
        "CAP_SETGID",
        "CAP_SETUID",
    }
)
"""What a plan may grant: each is about files, processes and ports that are the sandbox's own, as
long as it has a user namespace. docs/decisions/0020-plans.md says why no other is here."""

WEIGHT_MAX = 100
"""The lightest customer still has a turn in a hundred of the heaviest's."""

MEMORY_BYTES_MIN = 8 * 1024**2
"""As of any execution: less holds no process."""

MEMORY_BYTES_MAX = 256 * 1024**3
"""Of one execution, by any plan: a large machine's."""

CPU_MILLIS_MIN = 10
CPU_MILLIS_MAX = 128_000
"""The same: a large machine has so many cores."""

TIMEOUT_S_MAX = 24 * 3_600
"""Of one attempt, by any plan: history and leases are kept for executions of a day."""

INTERVAL_S_MAX = 3_600
"""What a plan may ask for at most: a day would refuse what fires daily, as one of its days has 23
hours where clocks change."""


class Plan(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What customers on it may use. The defaults are those of the standard plan."""

    weight: int = 1
    """Turns that a customer gets where others get one, while executions wait, and so many times the
    share of the mesh that it may fill: 1 to WEIGHT_MAX."""
    runtime: str = ""
    """containerd's name of what runs its executions, as "io.containerd.runsc.v1": only executors
    that offer it get them. Empty: whatever an executor runs by default."""
    capabilities: tuple[str, ...] = ()
    """What its processes may do, of CAPABILITIES. Executors with user namespaces grant them."""
    memory_bytes_max: int = 1024**3
    """Of one execution: MEMORY_BYTES_MIN to MEMORY_BYTES_MAX."""
    cpu_millis_max: int = 4_000
    """Thousandths of a core, of one execution: CPU_MILLIS_MIN to CPU_MILLIS_MAX."""
    timeout_s_max: int = TIMEOUT_S_MAX
    """Of one attempt: 1 to TIMEOUT_S_MAX."""
    interval_s_min: int = 1
    """A schedule fires once in so many seconds at most: 1 to INTERVAL_S_MAX."""


def problem(name: str, plan: Plan) -> str:
    """What is wrong with a plan of a configuration, beginning with the field; "" if nothing is."""
    if NAME.fullmatch(name) is None:
        return 'is no name: a letter, then up to 62 of [a-z0-9-], not ending in "-"'
    ranges = (
        ("weight", plan.weight, 1, WEIGHT_MAX),
        ("memory_bytes_max", plan.memory_bytes_max, MEMORY_BYTES_MIN, MEMORY_BYTES_MAX),
        ("cpu_millis_max", plan.cpu_millis_max, CPU_MILLIS_MIN, CPU_MILLIS_MAX),
        ("timeout_s_max", plan.timeout_s_max, 1, TIMEOUT_S_MAX),
        ("interval_s_min", plan.interval_s_min, 1, INTERVAL_S_MAX),
    )
    for field, value, low, high in ranges:
        if not low <= value <= high:
            return f"{field} is {value}, not {low} to {high}"
    if plan.runtime and RUNTIME.fullmatch(plan.runtime) is None:
        return f"runtime is {plan.runtime!r}, no name of containerd's, as io.containerd.runsc.v1"
    wrong = [each for each in plan.capabilities if each not in CAPABILITIES]
    if wrong:
        return f"capabilities has {wrong[0]!r}, which is none of {', '.join(sorted(CAPABILITIES))}"
    if len(set(plan.capabilities)) < len(plan.capabilities):
        return "capabilities names one twice"
    return ""
