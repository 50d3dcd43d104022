"""What the service reads from a replica's state: records, pages of listings, timers.

Every scan is bounded by the caller's count.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from ..core.customers import CREDENTIALS_MAX
from ..core.ids import EXECUTION_ID_BYTES, UID_BYTES
from ..core.ledger import Row
from ..core.model import (
    ApiKey,
    Calendar,
    Customer,
    Execution,
    Job,
    JobSpec,
    RegistryCredential,
    Schedule,
    Timer,
    Zone,
)
from . import keys
from .backend import Backend
from .view import (
    Meta,
    StoreView,
    decode_api_key,
    decode_calendar,
    decode_customer,
    decode_execution,
    decode_job,
    decode_registry_credential,
    decode_request,
    decode_row,
    decode_schedule,
    decode_zone,
)

PAGE_BYTES_MAX = 3 * 1024 * 1024
"""Of the messages in a page, which ends before the one that is too much: within MESSAGE_BYTES_MAX,
with up to 1 KiB for each of what is counted nowhere, as names and times."""

GROWTH_MAX = 2
"""How many times a record's bytes its message may have, beside that: 30 bytes of a window that is
excluded are 19 in the record."""

ATTEMPT_BYTES = 256
"""An attempt's message without its text, or what an execution's has beside its attempts."""


class Queries:
    """Reads of what is applied. After a read barrier they are linearizable."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend

    def view(self) -> StoreView:
        """The state as the core reads it."""
        return StoreView(self._backend, Meta())

    def job(self, customer: str, job_id: str) -> Job | None:
        """The job, if there is one."""
        return self.view().job(customer, job_id)

    def spec(self, job: Job | None, job_uid: bytes, revision: int) -> JobSpec | None:
        """What a revision of a job runs, be the job deleted meanwhile or not."""
        if job is not None and job.uid == job_uid and job.revision == revision:
            return job.spec
        return self.view().spec(job_uid, revision)

    def schedule(self, job_uid: bytes, schedule_id: str) -> Schedule | None:
        """The schedule, if there is one."""
        return self.view().schedule(job_uid, schedule_id)

    def execution(self, job_uid: bytes, execution: bytes) -> Execution | None:
        """The execution, if it is kept."""
        return self.view().execution(job_uid, execution)

    def owner(self, customer: str, execution: bytes) -> bytes | None:
        """The uid of the job that a customer's execution belongs to, if it is kept."""
        return self._backend.get(keys.customer_execution(customer, execution))

    def jobs(self, customer: str, after: bytes, count: int) -> tuple[list[Job], bytes]:
        """A page of a customer's jobs by id, and where the next begins (empty at the end)."""
        prefix = keys.job(customer, "")
        pairs, following = self._page(prefix, after, count)
        return [decode_job(value) for _, value in pairs], following

    def customer(self, customer: str) -> Customer | None:
        """What is stored of a customer, if anything is."""
        return self.view().customer(customer)

    def customers(self, after: bytes, count: int) -> tuple[list[Customer], bytes]:
        """A page of the customers of whom something is stored, and where the next begins."""
        pairs, following = self._page(keys.customer(""), after, count)
        return [decode_customer(value) for _, value in pairs], following

    def api_key(self, customer: str, key_id: bytes) -> ApiKey | None:
        """The key, if there is one."""
        return self.view().api_key(customer, key_id)

    def registry_credential(self, customer: str, host: str) -> RegistryCredential | None:
        """The customer's login there, if it has one."""
        return self.view().registry_credential(customer, host)

    def registry_credentials(self, customer: str) -> list[RegistryCredential]:
        """A customer's logins by host; there are few."""
        prefix = keys.registry_credential(customer, "")
        pairs, _ = self._page(prefix, b"", CREDENTIALS_MAX)
        return [decode_registry_credential(value) for _, value in pairs]

    def api_keys(self, customer: str, after: bytes, count: int) -> tuple[list[ApiKey], bytes]:
        """A page of a customer's keys by id, and where the next begins."""
        pairs, following = self._page(keys.api_key(customer, b""), after, count)
        return [decode_api_key(value) for _, value in pairs], following

    def schedules(self, job_uid: bytes, after: bytes, count: int) -> tuple[list[Schedule], bytes]:
        """A page of a job's schedules by id, and where the next begins."""
        pairs, following = self._page(keys.schedule(job_uid, ""), after, count)
        return [decode_schedule(value) for _, value in pairs], following

    def zones(self) -> list[Zone]:
        """Every time zone that the shard knows, by name: at most as many as there are."""
        stored = self._backend.scan(keys.ZONES, keys.after_prefix_of(keys.ZONES))
        return [decode_zone(value) for _, value in stored]

    def calendar(self, customer: str, calendar_id: str) -> Calendar | None:
        """The calendar, if there is one."""
        return self.view().calendar(customer, calendar_id)

    def calendars(self, customer: str, after: bytes, count: int) -> tuple[list[Calendar], bytes]:
        """A page of a customer's calendars by id, and where the next begins."""
        pairs, following = self._page(keys.calendar(customer, ""), after, count)
        return [decode_calendar(value) for _, value in pairs], following

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
        size = 0
        stored = self._executions(customer, job_uid, after)
        for looked_at, (key, execution) in enumerate(stored):
            if len(found) == count or looked_at == looked_at_max:
                return found, key
            if execution is not None and keep(execution):
                size += message_size(execution)
                if found and size > PAGE_BYTES_MAX:
                    return found, key
                found.append(execution)
        return found, b""

    def _executions(
        self, customer: str, job_uid: bytes | None, after: bytes
    ) -> Iterator[tuple[bytes, Execution | None]]:
        for when in reversed(self._backend.periods()):
            if after and when > keys.period_of_key(after):
                continue
            start = after if after and when == keys.period_of_key(after) else b""
            if job_uid is not None:
                prefix = keys.executions_of_job(when, job_uid)
                stop = keys.after_prefix_of(prefix)
                for key, value in self._backend.scan(max(start, prefix), stop):
                    yield key, decode_execution(value)
                continue
            prefix = keys.executions_of_customer(when, customer)
            stop = keys.after_prefix_of(prefix)
            for key, uid in self._backend.scan(max(start, prefix), stop):
                identity = keys.newest_first(key[-EXECUTION_ID_BYTES:])
                yield key, self.execution(uid, identity)

    def oldest_executions(
        self, customer: str, before: bytes, count: int
    ) -> tuple[list[Execution], bytes]:
        """A customer's executions, oldest first, and before which key the next are (empty at the
        end)."""
        found: list[Execution] = []
        for when in self._backend.periods():
            if before and when < keys.period_of_key(before):
                continue
            prefix = keys.executions_of_customer(when, customer)
            stop = keys.after_prefix_of(prefix)
            if before and when == keys.period_of_key(before):
                stop = before
            for key, uid in self._backend.scan(prefix, stop, reverse=True):
                execution = self.execution(uid, keys.newest_first(key[-EXECUTION_ID_BYTES:]))
                if execution is not None:
                    found.append(execution)
                if len(found) == count:
                    return found, key
        return found, b""

    def execution_ids(self, job_uid: bytes, after: bytes, count: int) -> tuple[list[bytes], bytes]:
        """Ids of a job's executions, newest first, and at which key the next are."""
        found: list[bytes] = []
        for when in reversed(self._backend.periods()):
            prefix = keys.executions_of_job(when, job_uid)
            start = prefix
            if after and when > keys.period_of_key(after):
                continue
            if after and when == keys.period_of_key(after):
                start = after
            for key, _ in self._backend.scan(start, keys.after_prefix_of(prefix)):
                if len(found) == count:
                    return found, key
                found.append(keys.newest_first(key[-EXECUTION_ID_BYTES:]))
        return found, b""

    def active_of(self, job_uid: bytes) -> set[bytes]:
        """Ids of a job's executions that have not ended."""
        prefix = keys.ACTIVE + job_uid
        pairs = self._backend.scan(prefix, keys.after_prefix_of(prefix))
        return {keys.split_active(key)[1] for key, _ in pairs}

    def _page(
        self, prefix: bytes, after: bytes, count: int
    ) -> tuple[list[tuple[bytes, bytes]], bytes]:
        pairs: list[tuple[bytes, bytes]] = []
        size = 0
        # `after` comes from a page token, which a client can forge: it must not lead elsewhere.
        start = max(after, prefix)
        for key, value in self._backend.scan(start, keys.after_prefix_of(prefix)):
            size += len(value) * GROWTH_MAX
            if len(pairs) == count or (pairs and size > PAGE_BYTES_MAX):
                return pairs, key
            pairs.append((key, value))
        return pairs, b""

    def schedule_ids(self, job_uid: bytes, count: int) -> list[str]:
        """Some of a job's schedules, by id."""
        prefix = keys.schedule(job_uid, "")
        pairs, _ = self._page(prefix, b"", count)
        return [key[len(prefix) :].decode() for key, _ in pairs]

    def deleted_schedule(
        self, customer: str, job_id: str, schedule_id: str, uid: bytes | None
    ) -> Schedule | None:
        """The schedule of a name that was deleted last, or the one with a uid, as far as kept."""
        for when in reversed(self._backend.periods()):
            prefix = keys.deleted_schedule(when, customer, job_id, schedule_id, b"")
            stored = self._backend.scan(prefix, keys.after_prefix_of(prefix))
            found = [decode_schedule(value) for _, value in stored]
            found = [each for each in found if uid in (None, each.uid)]
            if found:
                return max(found, key=lambda each: each.update_ms)
        return None

    def rows(self, schedule_uid: bytes, first: int, count: int) -> list[tuple[int, Row]]:
        """(number, row) of a schedule's ledger, from a number on, as far as they are kept."""
        found: list[tuple[int, Row]] = []
        for when in self._backend.periods():
            start = keys.row(when, schedule_uid, first)
            for key, value in self._backend.scan(start, keys.after_prefix_of(start[:-8])):
                if len(found) == count:
                    return found
                found.append((int.from_bytes(key[-8:], "big"), decode_row(value)))
        return found

    def numbered_rows(self, schedule_uid: bytes, first: int, count: int) -> list[tuple[int, Row]]:
        """Those with first <= number < first + count."""
        found = self.rows(schedule_uid, first, count)
        return [(number, row) for number, row in found if number < first + count]

    def request(self, customer: str, request: bytes) -> list[tuple[bytes, bytes]] | None:
        """(job uid, id) of the executions that a request made; None if it is not known any more."""
        for when in reversed(self._backend.periods()):
            raw = self._backend.get(keys.request(when, customer, request))
            if raw is not None:
                return decode_request(raw)
        return None

    def changes(self, after: int, count: int) -> list[tuple[int, bytes, bytes]]:
        """(index, job uid, execution id) of what entries after an index changed, oldest first.

        Stops at the end of an entry, once there are `count` or more.
        """
        found: list[tuple[int, bytes, bytes]] = []
        for when in self._backend.periods():
            start = keys.changes_from(when, after + 1)
            for key, value in self._backend.scan(start, keys.after_prefix_of(start[:-8])):
                index = keys.index_of_change(key)
                if len(found) >= count and index != found[-1][0]:
                    return found
                found.append((index, value[:UID_BYTES], value[UID_BYTES:]))
        return found

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


def message_size(execution: Execution) -> int:
    """Bytes of an execution's message, about."""
    texts = [execution.message, *(attempt.message for attempt in execution.attempts)]
    return sum(len(text.encode()) + ATTEMPT_BYTES for text in texts)
