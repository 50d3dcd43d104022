"""Whether a schedule's ledger tells the truth: recomputed from its own definitions, and compared.

Three things are held against each other: the rows' hashes and numbers (nothing was changed, removed
or put in between); the instants that the definitions in the ledger name (each decided once); and
the executions (each that a row speaks of is there). Pure: it reads what it is given.
"""

from __future__ import annotations

import enum
import itertools
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator

import msgspec
from msgspec.structs import replace

from . import recurrence
from .ledger import Definition, Outcome, Row, chained, definition_of, purged_of
from .model import Execution, ExecutionState, Schedule, ScheduleState
from .recurrence import Spec
from .recurrence.limits import COUNT_MAX

PROBLEMS_MAX = 100
"""Problems that a report names: then something is wrong at large."""

INSTANTS_MAX = 1_000_000
"""Instants that one report covers: 11 days of a schedule to the second, some seconds' work."""


AHEAD_MS = 60_000
"""An instant is decided so long before it at most: it is armed a few seconds ahead."""


FIRED = (Outcome.FIRED, Outcome.CAUGHT_UP)
"""Outcomes of instants that have an execution."""


class Kind(enum.StrEnum):
    """What is wrong."""

    TAMPERED = "TAMPERED"
    """A row is not what was written: its hash does not follow, or it cannot be read."""
    REMOVED = "REMOVED"
    """Rows are missing: the numbers have a gap, or the end is not where the schedule says."""
    MISSING = "MISSING"
    """An instant has no row."""
    DOUBLED = "DOUBLED"
    """An instant has more than one row."""
    UNEXPECTED = "UNEXPECTED"
    """A row is about what was no instant of the schedule then, or counts them wrongly."""
    NO_EXECUTION = "NO_EXECUTION"
    """A row says that an instant fired, and its execution is not there."""
    REVOKED = "REVOKED"
    """An execution was taken back though nothing changed the schedule."""


class Problem(msgspec.Struct, frozen=True):
    """One thing that is wrong: at which instant (or row's time), and in words."""

    kind: Kind
    at_ms: int
    text: str


class Report(msgspec.Struct):
    """What was looked at, and what was found."""

    rows: int = 0
    instants: int = 0
    problems: list[Problem] = []
    complete: bool = True
    """Everything asked for was looked at: not stopped by a limit, no older row forgotten."""

    def add(self, kind: Kind, at_ms: int, text: str) -> None:
        """Report a problem, unless there are very many already."""
        if len(self.problems) < PROBLEMS_MAX:
            self.problems.append(Problem(kind, at_ms, text))
        else:
            self.complete = False


class TooManyRows(Exception):
    """A range has more rows than are looked at together; `at_ms`: the instant of the last one."""

    def __init__(self, at_ms: int) -> None:
        super().__init__(at_ms)
        self.at_ms = at_ms


def verify(
    schedule: Schedule,
    rows: Iterable[tuple[int, Row]],
    execution: Callable[[int], Execution | None],
    *,
    from_ms: int,
    until_ms: int,
    kept_ms: int = 0,
    ready: Callable[[Spec], Spec] = lambda spec: spec,
    rows_max: int = INSTANTS_MAX,
) -> Report:
    """Checks a schedule's whole chain, and every instant with from_ms <= instant < until_ms.

    schedule: as it stands now. rows: all of its ledger that is kept, (number, row) in order, read
    at one moment with it. execution: the execution of an instant, if it is kept. kept_ms:
    executions that were due before may have been forgotten. ready: a definition's spec with its
    calendars' content. rows_max: those that are held together, of the range and definitions.

    Raises TooManyRows.
    """
    report = Report()
    kept: list[Row] = []
    oldest_ms = 0
    written_ms = _written_ms(schedule, ready)
    for row in _chain(report, schedule, rows, kept_ms, written_ms):
        oldest_ms = oldest_ms or row.at_ms
        if _concerns(row, from_ms, until_ms):
            if len(kept) == rows_max:
                raise TooManyRows(row.first_ms)
            kept.append(row)
    timeline = _Timeline(report, kept, ready)
    if not timeline.definitions:
        report.complete = False
        return report
    covered = _Coverage(report, kept, timeline)
    if not report.complete:
        # Instants that were decided ahead, before the oldest row that is kept.
        from_ms = max(from_ms, oldest_ms + AHEAD_MS)
    _expected(report, schedule, timeline, covered, from_ms, until_ms)
    purged = _purged(report, kept, from_ms, until_ms)
    for row in kept:
        if row.outcome in FIRED and from_ms <= row.first_ms < until_ms:
            found = execution(row.first_ms)
            _check_execution(report, timeline, row, found, kept_ms, row.first_ms in purged)
    return report


def _concerns(row: Row, from_ms: int, until_ms: int) -> bool:
    """Whether a row says something of the instants of a range."""
    if row.outcome in (Outcome.DEFINED, Outcome.PURGED):
        return True
    return row.last_ms >= from_ms and row.first_ms < until_ms


def _written_ms(schedule: Schedule, ready: Callable[[Spec], Spec]) -> int:
    """When its latest row was written, at the earliest."""
    decided_ms = schedule.last_ms
    if decided_ms in schedule.waiting:
        # Those that wait get their rows when they run: maybe long after those before were dropped.
        key, spec = schedule.uid.hex(), ready(schedule.spec)
        before_ms = schedule.waiting[0] - 1
        latest_ms, _ = recurrence.latest_fire(spec, schedule.update_ms, before_ms, hash_key=key)
        decided_ms = latest_ms or 0
    return max(decided_ms - AHEAD_MS, schedule.update_ms, schedule.purged_ms)


def _chain(
    report: Report,
    schedule: Schedule,
    rows: Iterable[tuple[int, Row]],
    kept_ms: int,
    written_ms: int,
) -> Iterator[Row]:
    """The rows, checked one against the next and the last against the schedule."""
    expected, previous, at_ms = 0, b"", 0
    for number, row in rows:
        if number != expected and not report.rows:
            report.complete = False  # older rows have been forgotten with their time
        elif number != expected:
            report.add(Kind.REMOVED, row.at_ms, f"rows {expected} to {number - 1} are missing")
        elif row.hash != chained(previous, number, row):
            report.add(Kind.TAMPERED, row.at_ms, f"row {number} does not follow the one before it")
        if row.at_ms < at_ms:
            report.add(Kind.TAMPERED, row.at_ms, f"row {number} is older than the one before it")
        expected, previous, at_ms = number + 1, row.hash, row.at_ms
        report.rows += 1
        yield row
    if not report.rows and written_ms < kept_ms:
        report.complete = False  # all of them have been: it has been at rest for long
    elif (expected, previous) != (schedule.ledger_count, schedule.ledger_hash):
        report.add(
            Kind.REMOVED,
            at_ms,
            f"the ledger ends with row {expected - 1}, the schedule says "
            f"{schedule.ledger_count - 1} and another hash",
        )


class _Timeline:
    """Which definition held when."""

    def __init__(self, report: Report, rows: list[Row], ready: Callable[[Spec], Spec]) -> None:
        self.definitions: list[Definition] = []
        """All, in the ledger's order."""
        self.starts: list[int] = []
        self.held: list[Definition] = []
        """Those that came to hold, and from when. One that has finished does from its last instant
        on: a change before that, which takes back what was armed, is there first."""
        self._changes: list[int] = []
        """When somebody changed the schedule. A definition may begin later than it was written, as
        that of one that has finished does; and to finish by itself is no change."""
        for row in rows:
            if row.outcome is Outcome.DEFINED:
                try:
                    definition = definition_of(row)
                    definition = replace(definition, spec=ready(definition.spec))
                    _check_contents(definition.spec)
                except (msgspec.DecodeError, LookupError) as error:
                    report.add(Kind.TAMPERED, row.at_ms, f"a definition cannot be read: {error}")
                    continue
                if not self.definitions or definition.version != self.definitions[-1].version:
                    self._changes.append(row.at_ms)
                self.definitions.append(definition)
                while self.starts and self.starts[-1] > row.first_ms:
                    self.starts.pop()
                    self.held.pop()
                self.starts.append(row.first_ms)
                self.held.append(definition)

    def at(self, instant_ms: int) -> Definition | None:
        """What named an instant: the definition that began last before it."""
        at = bisect_left(self.starts, instant_ms)
        return self.held[at - 1] if at else None

    def changed_within(self, after_ms: int, until_ms: int) -> bool:
        """Whether the schedule was changed with after <= time <= until."""
        at = bisect_left(self._changes, after_ms)
        return at < len(self._changes) and self._changes[at] <= until_ms


def _check_contents(spec: Spec) -> None:
    for pin in spec.calendars:
        if pin.content is not None and recurrence.calendar_digest(pin.content) != pin.digest:
            raise LookupError(f"what calendar {pin.name} said was changed")


class _Coverage:
    """How many rows speak of an instant."""

    def __init__(self, report: Report, rows: list[Row], timeline: _Timeline) -> None:
        self._singles: dict[int, int] = {}
        self._runs: list[tuple[int, int, Definition | None]] = []
        """Of several instants: the first, the last, and what named them."""
        definitions = iter(timeline.definitions)
        held: Definition | None = None
        for row in rows:
            if row.outcome is Outcome.DEFINED:
                held = next(definitions, held)
            elif row.outcome not in (Outcome.CLOCK, Outcome.EXCLUDED, Outcome.PURGED):
                self._add(report, row, held, timeline.at(row.first_ms))
        self._runs.sort(key=lambda run: run[:2])
        self._starts = [start for start, _, _ in self._runs]
        self._ends = list(itertools.accumulate((end for _, end, _ in self._runs), max))
        """The latest end of each run and those that begin before it."""

    def _add(
        self, report: Report, row: Row, held: Definition | None, due: Definition | None
    ) -> None:
        """One row. held: the definition before it in the ledger, by which it was decided; due: the
        one that held at its instant, which is older where the instant waited for another's end."""
        if row.last_ms == row.first_ms and row.count == 1:
            self._singles[row.first_ms] = self._singles.get(row.first_ms, 0) + 1
            named = [each for each in (held, due) if each is not None]
            if len(named) < 2 and not report.complete:
                named = []  # what named it may have been forgotten
            count = 1 if not named or any(_names(each, row.first_ms) for each in named) else 0
        else:
            self._runs.append((row.first_ms, row.last_ms, held))
            count = row.count
            if held is not None:
                _, count = recurrence.latest_fire(
                    held.spec, row.first_ms - 1, row.last_ms, hash_key=held.uid.hex()
                )
        told = row.count or count if count >= COUNT_MAX - 1 else row.count
        if told != count:
            text = f"{row.outcome.name} of {told or 'very many'} instants, there are {count}"
            report.add(Kind.UNEXPECTED, row.first_ms, text)

    def count(self, instant_ms: int, definition: Definition) -> int:
        """Rows about an instant of a definition. What a run passes over, as its own definition does
        not name it, is none of it."""
        found = self._singles.get(instant_ms, 0)
        at = bisect_right(self._starts, instant_ms) - 1
        while at >= 0 and self._ends[at] >= instant_ms:
            _, end_ms, held = self._runs[at]
            if end_ms >= instant_ms and (
                held is None or held.spec == definition.spec or _names(held, instant_ms)
            ):
                found += 1
            at -= 1
        return found


def _names(definition: Definition, instant_ms: int) -> bool:
    key = definition.uid.hex()
    found = recurrence.next_fire(definition.spec, instant_ms - 1, hash_key=key)
    return found == instant_ms


def _expected(
    report: Report,
    schedule: Schedule,
    timeline: _Timeline,
    covered: _Coverage,
    from_ms: int,
    until_ms: int,
) -> None:
    """Every instant that a definition named while it held must have one row."""
    undecided = set(schedule.waiting)
    # What is not decided yet begins with the schedule's next instant; a finished one has no next.
    horizon_ms = schedule.next_ms or schedule.last_ms + 1
    ends = [*timeline.starts[1:], horizon_ms]
    for start_ms, end_ms, definition in zip(timeline.starts, ends, timeline.held, strict=True):
        if definition.state is ScheduleState.FINISHED:
            continue
        key = definition.uid.hex()
        last_ms = min(end_ms, horizon_ms - 1, until_ms - 1)
        instant_ms = recurrence.next_fire(definition.spec, max(start_ms, from_ms - 1), hash_key=key)
        while instant_ms is not None and instant_ms <= last_ms:
            if report.instants >= INSTANTS_MAX:
                report.complete = False
                return
            report.instants += 1
            count = covered.count(instant_ms, definition)
            if not count and instant_ms not in undecided:
                report.add(Kind.MISSING, instant_ms, "nothing says what became of this instant")
            elif count > 1:
                report.add(Kind.DOUBLED, instant_ms, f"{count} rows are about this instant")
            instant_ms = recurrence.next_fire(definition.spec, instant_ms, hash_key=key)


def _purged(report: Report, rows: list[Row], from_ms: int, until_ms: int) -> set[int]:
    """The instants whose executions were forgotten by the customer's retention."""
    purged: set[int] = set()
    fired = {row.first_ms for row in rows if row.outcome in FIRED}
    for row in rows:
        if row.outcome is not Outcome.PURGED:
            continue
        try:
            instants = purged_of(row)
        except msgspec.DecodeError as error:
            report.add(Kind.TAMPERED, row.at_ms, f"what was forgotten cannot be read: {error}")
            continue
        if [len(instants), *instants[:1], *instants[-1:]] != [row.count, row.first_ms, row.last_ms]:
            report.add(Kind.TAMPERED, row.at_ms, "a row contradicts itself about what is forgotten")
        for instant_ms in instants:
            if instant_ms in purged:
                report.add(Kind.DOUBLED, instant_ms, "its execution was forgotten twice")
            elif report.complete and from_ms <= instant_ms < until_ms and instant_ms not in fired:
                report.add(Kind.UNEXPECTED, instant_ms, "what never fired was forgotten")
            purged.add(instant_ms)
    return purged


def _check_execution(
    report: Report,
    timeline: _Timeline,
    row: Row,
    found: Execution | None,
    kept_ms: int,
    purged: bool,
) -> None:
    instant_ms = row.first_ms
    if purged:
        if found is not None:
            report.add(Kind.UNEXPECTED, instant_ms, "its execution was forgotten, and is there")
    elif found is None:
        if instant_ms >= kept_ms:
            report.add(Kind.NO_EXECUTION, instant_ms, f"{row.outcome.name}, but no execution")
    elif found.state is ExecutionState.REVOKED and not timeline.changed_within(
        row.at_ms, max(found.due_ms, found.end_ms)
    ):
        report.add(Kind.REVOKED, instant_ms, "taken back, but nothing changed the schedule")
