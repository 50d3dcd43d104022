"""What a schedule's ledger tells: its rows, how the last day went, and whether it is the truth.

Reads only. What looks at many rows does so a little at a time, or in a thread, so that fires of
others are not held up.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator

from google.protobuf.message import Message

from ...mesh import names
from ...mesh.errors import NotFound, Overloaded, invalid
from ...proto.tickmesh.v1 import schedule_pb2
from .. import convert, pages
from ..core import audit, pins
from ..core.history import PERIOD_MS
from ..core.ids import UID_BYTES, execution_id, unspell
from ..core.ledger import Outcome, Row
from ..core.model import Execution, ExecutionState, Schedule
from ..core.recurrence.limits import COUNT_MAX, HORIZON_MS
from ..shard import Shard
from ..store.queries import PAGE_BYTES_MAX
from . import found
from .writes import Methods

STATISTICS_MS = 86_400_000
"""A schedule's statistics are about the last day."""

STATISTICS_ROWS_MAX = 10_000
"""Rows that one answer looks at, with their executions: about 0.2 s of work."""

STATISTICS_CHUNK = 100
"""Rows looked at before others have their turn: about 2 ms."""

LATE_NS = 100_000_000
"""An execution that starts later than this after its due time is counted as late."""

VERIFY_ROWS_MAX = 250_000
"""Rows of the range that one verification holds: about 100 MB while it goes on. It reads all that
are kept, for their hashes."""

VERIFY_CHUNK = 5_000
"""Rows that it reads at a time."""

VERIFY_TRIES_MAX = 2
"""Of a verification under which history is dropped: that happens once a day."""

VERIFY_RETRY_AFTER_MS = 2_000
"""Only one verification goes on at a time; another caller is told to come back."""


class Ledgers:
    """The methods of ScheduleService that read ledgers."""

    def __init__(self, shard: Shard) -> None:
        self._shard = shard
        self._verifying = False
        service = "tickmesh.v1.ScheduleService"
        self.methods = Methods(
            writes={},
            reads={f"{service}/ListFires": (schedule_pb2.ListFiresRequest, self.list_fires)},
            steps={
                f"{service}/GetScheduleStatistics": (
                    schedule_pb2.GetScheduleStatisticsRequest,
                    self.statistics,
                ),
                f"{service}/VerifySchedule": (schedule_pb2.VerifyScheduleRequest, self.verify),
            },
        )

    def list_fires(self, request: schedule_pb2.ListFiresRequest) -> Message:
        """See the proto."""
        schedule, _ = self._found(request.parent, "parent", request.uid)
        newest_first = request.newest_first
        listing = ("fires", request.parent, schedule.uid.hex(), str(newest_first))
        size = pages.size(request.page_size)
        start = pages.start(request.page_token, *listing)
        if newest_first:
            newest = schedule.ledger_count - 1
            upto = min(int.from_bytes(start, "big"), newest) if start else newest
            first = max(0, upto - size + 1)
            rows = self._shard.queries.numbered_rows(schedule.uid, first, upto - first + 1)
            rows.reverse()
            # Rows before the first that is kept have been forgotten.
            following = first - 1 if first and rows and rows[-1][0] == first else -1
        else:
            first = min(int.from_bytes(start, "big"), schedule.ledger_count)
            rows = self._shard.queries.rows(schedule.uid, first, size)
            last = rows[-1][0] if rows else schedule.ledger_count
            following = last + 1 if last + 1 < schedule.ledger_count else -1
        response = schedule_pb2.ListFiresResponse()
        told_bytes = 0
        for number, row in rows:
            message = convert.row_message(schedule, number, row)
            told_bytes += message.ByteSize()
            if response.rows and told_bytes > PAGE_BYTES_MAX:
                following = number
                break
            response.rows.append(message)
        after = b"" if following < 0 else following.to_bytes(8, "big")
        response.next_page_token = pages.token(after, *listing)
        return response

    async def statistics(self, request: schedule_pb2.GetScheduleStatisticsRequest) -> Message:
        """See the proto."""
        await self._shard.replica.read_barrier()
        schedule = found.schedule(self._shard.queries, request.name)
        now_ms = self._shard.now_ms()
        counted = Counted(now_ms - STATISTICS_MS)
        upto, looked_at = schedule.ledger_count, 0
        while upto and not counted.day_is_over:
            if looked_at == STATISTICS_ROWS_MAX:
                counted.complete = False
                break
            first = max(0, upto - STATISTICS_CHUNK)
            rows = self._shard.queries.numbered_rows(schedule.uid, first, upto - first)
            for _, row in reversed(rows):
                counted.add(row, lambda row: self._fired(schedule, row))
            if not rows:
                break
            looked_at += STATISTICS_CHUNK
            upto = first
            await asyncio.sleep(0)
        return counted.message(now_ms)

    def _fired(self, schedule: Schedule, row: Row) -> tuple[Execution, int] | None:
        """The execution of a row, and when its first attempt started (0: not yet)."""
        identity = execution_id(row.first_ms, schedule.uid)
        execution = self._shard.queries.execution(schedule.job_uid, identity)
        if execution is None:
            return None
        first = convert.first_try(execution)
        started_ns = execution.attempts[first].started_ns if execution.attempts else 0
        if not started_ns and len(execution.attempts) == first + 1:
            soft = self._shard.soft(execution)
            started_ns = soft.started_ns if soft is not None else 0
        return execution, started_ns

    async def verify(self, request: schedule_pb2.VerifyScheduleRequest) -> Message:
        """See the proto."""
        from_ms, until_ms = 0, self._shard.now_ms() + 1
        if request.HasField("start_time"):
            from_ms = convert.to_ms(request.start_time)
        if request.HasField("end_time"):
            until_ms = min(convert.to_ms(request.end_time), HORIZON_MS)
        if until_ms < from_ms:
            raise invalid("end_time", "is before start_time")
        if self._verifying:
            raise Overloaded(
                "the shard verifies another ledger: try again later",
                retry_after_ms=VERIFY_RETRY_AFTER_MS,
            )
        self._verifying = True
        try:
            await self._shard.replica.read_barrier()
            schedule, deleted = self._found(request.name, "name", request.uid)
            for _ in range(VERIFY_TRIES_MAX):
                history_from = self._shard.state.meta.history_from
                # Nobody notes which executions of a deleted schedule are forgotten.
                kept_ms = until_ms if deleted else history_from * PERIOD_MS
                report = await asyncio.to_thread(
                    self._verify, schedule, max(0, from_ms), until_ms, kept_ms
                )
                if self._shard.state.meta.history_from == history_from:
                    break
        except audit.TooManyRows as error:
            until = convert.from_ms(error.at_ms).ToJsonString()
            raise invalid(
                "end_time",
                f"the range has more than {VERIFY_ROWS_MAX:,} rows: verify it in parts, the first "
                f"one until {until}, the next from there",
            ) from error
        finally:
            self._verifying = False
        response = schedule_pb2.VerifyScheduleResponse(
            instant_count=report.instants, row_count=report.rows, complete=report.complete
        )
        for problem in report.problems:
            response.problems.add(
                kind=schedule_pb2.LedgerProblemKind.Value(f"LEDGER_PROBLEM_KIND_{problem.kind}"),
                time=convert.from_ms(problem.at_ms),
                text=problem.text,
            )
        return response

    def _verify(
        self, schedule: Schedule, from_ms: int, until_ms: int, kept_ms: int
    ) -> audit.Report:
        """Rows are only ever appended: those that this state of the schedule counts are there."""
        queries = self._shard.queries
        return audit.verify(
            schedule,
            self._rows(schedule),
            lambda instant_ms: queries.execution(
                schedule.job_uid, execution_id(instant_ms, schedule.uid)
            ),
            from_ms=from_ms,
            until_ms=until_ms,
            kept_ms=kept_ms,
            ready=lambda spec: pins.ready(queries.view(), schedule.customer, spec),
            rows_max=VERIFY_ROWS_MAX,
        )

    def _rows(self, schedule: Schedule) -> Iterator[tuple[int, Row]]:
        """All that are kept of a schedule's rows, some at a time."""
        first = 0
        while first < schedule.ledger_count:
            rows = self._shard.queries.rows(schedule.uid, first, VERIFY_CHUNK)
            if not rows:
                return
            first = rows[-1][0] + 1
            for number, row in rows:
                if number >= schedule.ledger_count:
                    return
                yield number, row

    def _found(self, name: str, field: str, uid: str) -> tuple[Schedule, bool]:
        """A schedule of a name, and whether it was deleted; the one with a uid, if one is given."""
        raw = unspell(uid, UID_BYTES) if uid else None
        if uid and raw is None:
            raise invalid("uid", f"{uid!r} is not one that was given out")
        try:
            schedule = found.schedule(self._shard.queries, name, field)
        except NotFound:
            pass
        else:
            if raw in (None, schedule.uid):
                return schedule, False
        deleted = self._shard.queries.deleted_schedule(*names.parse_schedule(name, field), raw)
        if deleted is None:
            meant = f"{name} with uid {uid}" if uid else name
            raise NotFound(
                f"there is no {meant}, nor the ledger of one that was deleted: that is kept as long"
                " as history is"
            )
        return deleted, True


class Counted:
    """What the rows of a day add up to."""

    def __init__(self, from_ms: int) -> None:
        self.from_ms = from_ms
        self.complete = True
        self.day_is_over = False
        self._oldest_ms = 0
        self._outcomes: Counter[Outcome] = Counter()
        self._failed = 0
        self._late_ns: list[int] = []

    def add(self, row: Row, fired: Callable[[Row], tuple[Execution, int] | None]) -> None:
        """One row, newer ones first."""
        if self.day_is_over or row.at_ms < self.from_ms:
            self.day_is_over = True
            return
        self._oldest_ms = row.at_ms
        self._outcomes[row.outcome] += row.count or COUNT_MAX
        found = fired(row) if row.outcome in convert.FIRED else None
        if found is not None:
            execution, started_ns = found
            self._failed += execution.state is ExecutionState.FAILED
            if started_ns:
                self._late_ns.append(convert.late_ns(execution, started_ns))

    def message(self, now_ms: int) -> schedule_pb2.ScheduleStatistics:
        """The public message."""
        outcomes = self._outcomes
        message = schedule_pb2.ScheduleStatistics(
            start_time=convert.from_ms(self.from_ms if self.complete else self._oldest_ms),
            end_time=convert.from_ms(now_ms),
            complete=self.complete,
            fired_count=sum(outcomes[each] for each in convert.FIRED),
            caught_up_count=outcomes[Outcome.CAUGHT_UP],
            missed_count=outcomes[Outcome.MISSED],
            failed_count=self._failed,
            late_count=sum(each > LATE_NS for each in self._late_ns),
            started_count=len(self._late_ns),
        )
        for outcome in sorted(outcomes):
            if outcome >= Outcome.OVERLAP and outcome is not Outcome.PURGED:
                message.skipped.add(outcome=convert.outcome(outcome), count=outcomes[outcome])
        if self._late_ns:
            self._late_ns.sort()
            message.lateness_p50.FromNanoseconds(self._percentile(50))
            message.lateness_p99.FromNanoseconds(self._percentile(99))
        return message

    def _percentile(self, percent: int) -> int:
        """The least value that so many of 100 do not exceed."""
        return self._late_ns[-(-len(self._late_ns) * percent // 100) - 1]
