"""What the service reads from a replica's state: records, pages of listings, timers.

Every scan is bounded by the caller's count.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from ..core.ids import EXECUTION_ID_BYTES
from ..core.ledger import Row
from ..core.model import Execution, Job, JobSpec, Schedule, Timer
from . import keys
from .backend import Backend
from .view import Meta, StoreView, decode_execution, decode_job, decode_row, decode_schedule


class Queries:
    """Reads of what is applied. After a read barrier they are linearizable."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend

    def _view(self) -> StoreView:
        return StoreView(self._backend, Meta(), 0)

    def job(self, customer: str, job_id: str) -> Job | None:
        """The job, if there is one."""
        return self._view().job(customer, job_id)

    def spec(self, job: Job | None, job_uid: bytes, revision: int) -> JobSpec | None:
        """What a revision of a job runs, be the job deleted meanwhile or not."""
        if job is not None and job.uid == job_uid and job.revision == revision:
            return job.spec
        return self._view().spec(job_uid, revision)

    def schedule(self, job_uid: bytes, schedule_id: str) -> Schedule | None:
        """The schedule, if there is one."""
        return self._view().schedule(job_uid, schedule_id)

    def execution(self, job_uid: bytes, execution: bytes) -> Execution | None:
        """The execution, if it is kept."""
        return self._view().execution(job_uid, execution)

    def owner(self, customer: str, execution: bytes) -> bytes | None:
        """The uid of the job that a customer's execution belongs to, if it is kept."""
        return self._backend.get(keys.customer_execution(customer, execution))

    def jobs(self, customer: str, after: bytes, count: int) -> tuple[list[Job], bytes]:
        """A page of a customer's jobs by id, and where the next begins (empty at the end)."""
        prefix = keys.job(customer, "")
        pairs, following = self._page(prefix, after, count)
        return [decode_job(value) for _, value in pairs], following

    def schedules(self, job_uid: bytes, after: bytes, count: int) -> tuple[list[Schedule], bytes]:
        """A page of a job's schedules by id, and where the next begins."""
        pairs, following = self._page(keys.schedule(job_uid, ""), after, count)
        return [decode_schedule(value) for _, value in pairs], following

    def executions(
        self,
        customer: str,
        job_uid: bytes | None,
        after: bytes,
        count: int,
        keep: Callable[[Execution], bool],
        looked_at_max: int,
    ) -> tuple[list[Execution], bytes]:
        """A page of a job's (or a customer's) executions, newest first, and where the next begins.

        `keep` filters; after `looked_at_max` executions the page ends, short or even empty.
        """
        found: list[Execution] = []
        stored = self._executions(customer, job_uid, after)
        for looked_at, (key, execution) in enumerate(stored):
            if len(found) == count or looked_at == looked_at_max:
                return found, key
            if execution is not None and keep(execution):
                found.append(execution)
        return found, b""

    def _executions(
        self, customer: str, job_uid: bytes | None, after: bytes
    ) -> Iterator[tuple[bytes, Execution | None]]:
        if job_uid is not None:
            prefix = keys.executions_of_job(job_uid)
            for key, value in self._backend.scan(after or prefix, keys.after_prefix_of(prefix)):
                yield key, decode_execution(value)
            return
        prefix = keys.executions_of_customer(customer)
        for key, uid in self._backend.scan(after or prefix, keys.after_prefix_of(prefix)):
            identity = keys.newest_first(key[-EXECUTION_ID_BYTES:])
            yield key, self.execution(uid, identity)

    def _page(
        self, prefix: bytes, after: bytes, count: int
    ) -> tuple[list[tuple[bytes, bytes]], bytes]:
        pairs: list[tuple[bytes, bytes]] = []
        for key, value in self._backend.scan(after or prefix, keys.after_prefix_of(prefix)):
            if len(pairs) == count:
                return pairs, key
            pairs.append((key, value))
        return pairs, b""

    def schedule_ids(self, job_uid: bytes, count: int) -> list[str]:
        """Some of a job's schedules, by id."""
        prefix = keys.schedule(job_uid, "")
        pairs, _ = self._page(prefix, b"", count)
        return [key[len(prefix) :].decode() for key, _ in pairs]

    def rows(self, schedule_uid: bytes, first: int, count: int) -> list[Row]:
        """Rows of a schedule's ledger, from a number on."""
        start = keys.row(schedule_uid, first)
        found: list[Row] = []
        stop = keys.after_prefix_of(keys.row(schedule_uid, 0)[:-8])
        for _, value in self._backend.scan(start, stop):
            if len(found) == count:
                break
            found.append(decode_row(value))
        return found

    def numbered_rows(self, schedule_uid: bytes, first: int, count: int) -> list[tuple[int, Row]]:
        """The rows of a schedule's ledger with first <= number < first + count that are kept."""
        start, stop = keys.row(schedule_uid, first), keys.row(schedule_uid, first + count)
        return [
            (int.from_bytes(key[-8:], "big"), decode_row(value))
            for key, value in self._backend.scan(start, stop)
        ]

    def first_rows(self, schedule_uid: bytes, first: int, count: int) -> list[tuple[int, Row]]:
        """The first `count` rows from a number on that are kept: older ones may be forgotten."""
        stop = keys.after_prefix_of(keys.row(schedule_uid, 0)[:-8])
        found: list[tuple[int, Row]] = []
        for key, value in self._backend.scan(keys.row(schedule_uid, first), stop):
            if len(found) == count:
                break
            found.append((int.from_bytes(key[-8:], "big"), decode_row(value)))
        return found

    def request(self, customer: str, request: bytes) -> list[tuple[bytes, bytes]] | None:
        """(job uid, id) of the executions that a request made; None if it is not known."""
        return self._view().request(customer, request)

    def active(self) -> Iterator[Execution]:
        """Every execution that has not ended."""
        for key, _ in self._backend.scan(keys.ACTIVE, keys.after_prefix_of(keys.ACTIVE)):
            execution = self.execution(*keys.split_active(key))
            assert execution is not None, "the index of active executions names one that is not"
            yield execution

    def timers(self, from_ms: int, until_ms: int, count: int) -> list[Timer]:
        """The first `count` timers with from_ms <= due < until_ms, soonest first."""
        found: list[Timer] = []
        for key, _ in self._backend.scan(keys.timers_from(from_ms), keys.timers_from(until_ms)):
            found.append(keys.split_timer(key))
            if len(found) == count:
                break
        return found
