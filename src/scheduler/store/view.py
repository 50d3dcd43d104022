"""core.View over a backend: reads through, collects writes, and remembers what changed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from ..core import recurrence
from ..core.history import period
from ..core.ids import UID_BYTES
from ..core.ledger import Row
from ..core.model import (
    ACTIVE_STATES,
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

_encode = msgspec.msgpack.Encoder().encode
_JOB = msgspec.msgpack.Decoder(Job)
_SPEC = msgspec.msgpack.Decoder(JobSpec)
_SCHEDULE = msgspec.msgpack.Decoder(Schedule)
_EXECUTION = msgspec.msgpack.Decoder(Execution)
_CUSTOMER = msgspec.msgpack.Decoder(Customer)
_API_KEY = msgspec.msgpack.Decoder(ApiKey)
_REGISTRY_CREDENTIAL = msgspec.msgpack.Decoder(RegistryCredential)
_ZONE = msgspec.msgpack.Decoder(Zone)
_CALENDAR = msgspec.msgpack.Decoder(Calendar)
_CONTENT = msgspec.msgpack.Decoder(recurrence.Calendar)
_BYTES = msgspec.msgpack.Decoder(bytes)
_COUNT = msgspec.msgpack.Decoder(int)
_REQUEST = msgspec.msgpack.Decoder(list[tuple[bytes, bytes]])

decode_job = _JOB.decode
decode_schedule = _SCHEDULE.decode
decode_zone = _ZONE.decode
decode_calendar = _CALENDAR.decode
decode_execution = _EXECUTION.decode
decode_api_key = _API_KEY.decode
decode_registry_credential = _REGISTRY_CREDENTIAL.decode
decode_customer = _CUSTOMER.decode
decode_request = _REQUEST.decode
decode_row = msgspec.msgpack.Decoder(Row).decode


class Meta(msgspec.Struct, array_like=True):
    """What a replica knows of its state as a whole: stored with every entry."""

    index: int = 0
    """The last entry applied, and its term."""
    term: int = 0
    time_ms: int = 0
    """Of the last entry: time never runs backwards in the log."""
    floor_ms: int = 0
    schedule_count: int = 0
    active_count: int = 0
    history_from: int = 0
    """Periods before this one have been dropped."""
    changes_from: int = 0
    """Changes of executions are known from the entry at this index on."""
    entry_version: int = 1
    """The highest that was applied: who could not apply it is no replica any more."""


class StoreView:
    """The state as of one entry: see core.View."""

    def __init__(self, backend: Backend, meta: Meta) -> None:
        self._backend = backend
        self._meta = meta
        self._known: dict[bytes, Any] = {}
        """Records by key, read or written; None: there is none."""
        self._raw: dict[bytes, bytes] = {}
        """Fetched, and not decoded yet."""
        self._written: dict[bytes, Any] = {}
        self.executions: list[Execution] = []
        """Executions made or changed, in order."""
        self.timers: list[Timer] = []
        """Timers made, in order."""

    def prefetch(self, wanted: Sequence[bytes]) -> None:
        """Read many keys at once: much cheaper than one by one."""
        for key, raw in zip(wanted, self._backend.get_many(wanted), strict=True):
            if raw is None:
                self._known[key] = None
            else:
                self._raw[key] = raw

    def changes(self) -> dict[bytes, bytes | None]:
        """Everything written, encoded."""
        return {
            key: record if record is None or type(record) is bytes else _encode(record)
            for key, record in self._written.items()
        }

    def _read(self, key: bytes, decoder: msgspec.msgpack.Decoder[Any]) -> Any:
        if key in self._known:
            return self._known[key]
        raw = self._raw.get(key) or self._backend.get(key)
        record = None if raw is None else decoder.decode(raw)
        self._known[key] = record
        return record

    def _write(self, key: bytes, record: Any) -> None:
        self._known[key] = record
        self._written[key] = record

    def job(self, customer: str, job_id: str) -> Job | None:
        """See core.View."""
        job: Job | None = self._read(keys.job(customer, job_id), _JOB)
        return job

    def put_job(self, job: Job) -> None:
        """See core.View."""
        self._write(keys.job(job.customer, job.job_id), job)

    def delete_job(self, job: Job) -> None:
        """See core.View."""
        self._write(keys.job(job.customer, job.job_id), None)
        self._write(keys.schedule_count(job.uid), None)

    def spec(self, job_uid: bytes, revision: int) -> JobSpec | None:
        """See core.View."""
        spec: JobSpec | None = self._read(keys.spec(job_uid, revision), _SPEC)
        return spec

    def put_spec(self, job_uid: bytes, revision: int, spec: JobSpec) -> None:
        """See core.View."""
        self._write(keys.spec(job_uid, revision), spec)

    def schedule(self, job_uid: bytes, schedule_id: str) -> Schedule | None:
        """See core.View."""
        schedule: Schedule | None = self._read(keys.schedule(job_uid, schedule_id), _SCHEDULE)
        return schedule

    def put_schedule(self, schedule: Schedule) -> None:
        """See core.View."""
        self._write(keys.schedule(schedule.job_uid, schedule.schedule_id), schedule)

    def put_deleted(self, schedule: Schedule) -> None:
        """See core.View."""
        when = period(self._meta.time_ms)
        names = (schedule.customer, schedule.job_id, schedule.schedule_id)
        self._write(keys.deleted_schedule(when, *names, schedule.uid), schedule)

    @property
    def version(self) -> int:
        """See core.View."""
        return self._meta.entry_version

    def delete_schedule(self, schedule: Schedule) -> None:
        """See core.View."""
        self._write(keys.schedule(schedule.job_uid, schedule.schedule_id), None)

    def schedule_count(self, job_uid: bytes) -> int:
        """See core.View."""
        return self._read(keys.schedule_count(job_uid), _COUNT) or 0

    def set_schedule_count(self, job_uid: bytes, count: int) -> None:
        """See core.View."""
        self._meta.schedule_count += count - self.schedule_count(job_uid)
        self._write(keys.schedule_count(job_uid), count)

    def calendar(self, customer: str, calendar_id: str) -> Calendar | None:
        """See core.View."""
        found: Calendar | None = self._read(keys.calendar(customer, calendar_id), _CALENDAR)
        return found

    def put_calendar(self, calendar: Calendar) -> None:
        """See core.View."""
        self._write(keys.calendar(calendar.customer, calendar.calendar_id), calendar)

    def delete_calendar(self, calendar: Calendar) -> None:
        """See core.View."""
        self._write(keys.calendar(calendar.customer, calendar.calendar_id), None)

    def calendar_count(self, customer: str) -> int:
        """See core.View."""
        return self._read(keys.calendar_count(customer), _COUNT) or 0

    def set_calendar_count(self, customer: str, count: int) -> None:
        """See core.View."""
        self._write(keys.calendar_count(customer), count)

    def content(self, digest: bytes) -> recurrence.Calendar | None:
        """See core.View."""
        for when in (period(self._meta.time_ms), *reversed(self._backend.periods())):
            found: recurrence.Calendar | None
            found = self._read(keys.calendar_content(when, digest), _CONTENT)
            if found is not None:
                return found
        return None

    def put_content(self, digest: bytes, content: recurrence.Calendar) -> None:
        """See core.View."""
        self._write(keys.calendar_content(period(self._meta.time_ms), digest), content)

    def calendar_users(
        self, customer: str, calendar_id: str, after: bytes, count: int
    ) -> list[tuple[bytes, str]]:
        """See core.View."""
        prefix = keys.calendar_user(customer, calendar_id, b"")
        start = prefix + after + b"\0" if after else prefix
        written = {key: value for key, value in self._written.items() if key.startswith(prefix)}
        found = [key for key, value in written.items() if value is not None and key >= start]
        stored = 0
        for key, _ in self._backend.scan(start, keys.after_prefix_of(prefix)):
            if stored == count:
                break
            if key not in written:
                found.append(key)
                stored += 1
        users = [key[len(prefix) :] for key in sorted(found)[:count]]
        return [(user[:UID_BYTES], user[UID_BYTES:].decode()) for user in users]

    def set_calendar_user(self, calendar_id: str, schedule: Schedule, uses: bool) -> None:
        """See core.View."""
        user = schedule.job_uid + schedule.schedule_id.encode()
        key = keys.calendar_user(schedule.customer, calendar_id, user)
        self._written[key] = b"" if uses else None

    def calendar_pending(self, customer: str, calendar_id: str) -> bytes | None:
        """See core.View."""
        found: bytes | None = self._read(keys.calendar_pending(customer, calendar_id), _BYTES)
        return found

    def set_calendar_pending(self, customer: str, calendar_id: str, after: bytes | None) -> None:
        """See core.View."""
        key = keys.calendar_pending(customer, calendar_id)
        # Encoded: a bytes value of its own would be taken for one that is encoded already.
        self._known[key] = after
        self._written[key] = None if after is None else _encode(after)

    def calendars_pending(self, count: int) -> list[tuple[str, str]]:
        """See core.View."""
        written = {
            key: value for key, value in self._written.items() if key.startswith(keys.PENDING)
        }
        found = [key for key, value in written.items() if value is not None]
        for key, _ in self._backend.scan(keys.PENDING, keys.after_prefix_of(keys.PENDING)):
            if len(found) >= count:
                break
            if key not in written:
                found.append(key)
        return [keys.split_calendar_pending(key) for key in sorted(found)[:count]]

    def zone(self, name: str) -> Zone | None:
        """See core.View."""
        found: Zone | None = self._read(keys.zone(name), _ZONE)
        return found

    def put_zone(self, zone: Zone, content: bytes) -> None:
        """See core.View."""
        self._write(keys.zone(zone.name), zone)
        self._written[keys.zone_file(zone.digest)] = content

    def schedules_after(self, after: bytes, count: int) -> list[Schedule]:
        """See core.View."""
        found: list[Schedule] = []
        start = keys.SCHEDULES + after + b"\0" if after else keys.SCHEDULES
        for key, _ in self._backend.scan(start, keys.after_prefix_of(keys.SCHEDULES)):
            uid, schedule_id = key[1 : 1 + UID_BYTES], key[1 + UID_BYTES :].decode()
            schedule = self.schedule(uid, schedule_id)
            if schedule is not None:
                found.append(schedule)
                if len(found) == count:
                    break
        return found

    def zones_pending(self) -> bytes | None:
        """See core.View."""
        found: bytes | None = self._read(keys.ZONES_PENDING, _BYTES)
        return found

    def set_zones_pending(self, after: bytes | None) -> None:
        """See core.View."""
        self._known[keys.ZONES_PENDING] = after
        self._written[keys.ZONES_PENDING] = None if after is None else _encode(after)

    def execution(self, job_uid: bytes, execution: bytes) -> Execution | None:
        """See core.View."""
        found: Execution | None = self._read(keys.execution(job_uid, execution), _EXECUTION)
        return found

    def put_execution(self, execution: Execution, *, fresh: bool = False) -> None:
        """See core.View."""
        key = keys.execution(execution.job_uid, execution.id)
        active = keys.active(execution.job_uid, execution.id)
        earlier = None if fresh else self.execution(execution.job_uid, execution.id)
        was = earlier is not None and earlier.state in ACTIVE_STATES
        now = execution.state in ACTIVE_STATES
        if earlier is None:
            listing = keys.customer_execution(execution.customer, execution.id)
            self._write(listing, execution.job_uid)
        if was != now:
            self._write(active, b"" if now else None)
            self._meta.active_count += 1 if now else -1
        self._write(key, execution)
        self.executions.append(execution)

    def delete_execution(self, execution: Execution) -> None:
        """See core.View."""
        self._write(keys.execution(execution.job_uid, execution.id), None)
        self._write(keys.customer_execution(execution.customer, execution.id), None)

    def active_before(self, due_ms: int) -> bool:
        """See core.View."""
        for key, _ in self._backend.scan(keys.ACTIVE, keys.after_prefix_of(keys.ACTIVE)):
            if int.from_bytes(keys.split_active(key)[1][:6], "big") < due_ms:
                return True
        return False

    def request(self, customer: str, request: bytes) -> list[tuple[bytes, bytes]] | None:
        """See core.View."""
        now = period(self._meta.time_ms)
        for when in (now, now - 1):
            made: list[tuple[bytes, bytes]] | None
            made = self._read(keys.request(when, customer, request), _REQUEST)
            if made is not None:
                return made
        return None

    def put_request(
        self, customer: str, request: bytes, executions: list[tuple[bytes, bytes]]
    ) -> None:
        """See core.View."""
        self._write(keys.request(period(self._meta.time_ms), customer, request), executions)

    def active_by_key(self, job_uid: bytes, key: bytes) -> bytes | None:
        """See core.View."""
        found: bytes | None = self._read(keys.active_by_key(job_uid, key), _BYTES)
        return found

    def put_active_by_key(self, job_uid: bytes, key: bytes, execution: bytes) -> None:
        """See core.View."""
        # Encoded: a bytes value of its own would be taken for one that is encoded already.
        self._known[keys.active_by_key(job_uid, key)] = execution
        self._written[keys.active_by_key(job_uid, key)] = _encode(execution)

    def delete_active_by_key(self, job_uid: bytes, key: bytes) -> None:
        """See core.View."""
        self._write(keys.active_by_key(job_uid, key), None)

    def put_row(self, schedule_uid: bytes, number: int, row: Row) -> None:
        """See core.View."""
        self._written[keys.row(period(self._meta.time_ms), schedule_uid, number)] = row

    def customer(self, customer: str) -> Customer | None:
        """See core.View."""
        found: Customer | None = self._read(keys.customer(customer), _CUSTOMER)
        return found

    def put_customer(self, customer: Customer) -> None:
        """See core.View."""
        self._write(keys.customer(customer.customer), customer)

    def api_key(self, customer: str, key_id: bytes) -> ApiKey | None:
        """See core.View."""
        found: ApiKey | None = self._read(keys.api_key(customer, key_id), _API_KEY)
        return found

    def put_api_key(self, key: ApiKey) -> None:
        """See core.View."""
        self._write(keys.api_key(key.customer, key.id), key)

    def delete_api_key(self, key: ApiKey) -> None:
        """See core.View."""
        self._write(keys.api_key(key.customer, key.id), None)

    def registry_credential(self, customer: str, host: str) -> RegistryCredential | None:
        """See core.View."""
        found: RegistryCredential | None = self._read(
            keys.registry_credential(customer, host), _REGISTRY_CREDENTIAL
        )
        return found

    def put_registry_credential(self, credential: RegistryCredential) -> None:
        """See core.View."""
        self._write(keys.registry_credential(credential.customer, credential.host), credential)

    def delete_registry_credential(self, credential: RegistryCredential) -> None:
        """See core.View."""
        self._write(keys.registry_credential(credential.customer, credential.host), None)

    def put_timer(self, timer: Timer) -> None:
        """See core.View."""
        self._written[keys.timer(timer)] = b""
        self.timers.append(timer)
        if timer.due_ms < self._meta.floor_ms:
            self._meta.floor_ms = timer.due_ms

    def delete_timer(self, timer: Timer) -> None:
        """See core.View."""
        self._written[keys.timer(timer)] = None

    def floor_ms(self) -> int:
        """See core.View."""
        return self._meta.floor_ms

    def set_floor_ms(self, floor_ms: int) -> None:
        """See core.View."""
        self._meta.floor_ms = floor_ms

    @property
    def history_from(self) -> int:
        """See core.View."""
        return self._meta.history_from

    def drop_history(self, before: int) -> None:
        """See core.View. The store drops the periods once the entry's own changes are written."""
        self._meta.history_from = before
        self._meta.changes_from = self._meta.index + 1
        for when in self._backend.periods():
            if when >= before:
                start = keys.changes_from(when, 0)
                first = next(
                    iter(self._backend.scan(start, keys.after_prefix_of(start[:-8]))), None
                )
                if first is not None:
                    self._meta.changes_from = keys.index_of_change(first[0])
                    break

    def note_changes(self, index: int) -> None:
        """Remember which executions the entry at an index changed, for those who watch."""
        when = period(self._meta.time_ms)
        changed = dict.fromkeys((each.job_uid + each.id) for each in self.executions)
        for number, value in enumerate(changed):
            self._written[keys.change(when, index, number)] = value
