"""Plans: what a configuration may say, which one holds for whom, and what is decided by it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from tickmesh.mesh import telemetry
from tickmesh.mesh.config import ConfigError, load
from tickmesh.mesh.errors import FailedPrecondition, InvalidRequest
from tickmesh.mesh.plans import CAPABILITIES, Plan
from tickmesh.proto.tickmesh.internal.v1 import shard_pb2
from tickmesh.proto.tickmesh.v1 import customer_pb2, job_pb2, schedule_pb2
from tickmesh.scheduler import convert
from tickmesh.scheduler.calls import Calls
from tickmesh.scheduler.core import commands
from tickmesh.scheduler.core.commands import PLAN_SINCE, Placement
from tickmesh.scheduler.core.model import Attempt, Customer, ExecutionState, Reason
from tickmesh.scheduler.dispatch import Link
from tickmesh.scheduler.plans import Plans
from tickmesh.scheduler.shard import Shard

from .test_versions import AppliesAtOnce
from .worlds import SPEC, START_MS, World

RUNSC = "io.containerd.runsc.v1"
MIB = 1 << 20
TIMEOUT_S = 20.0
GOLD = Plan(
    weight=3,
    runtime=RUNSC,
    capabilities=("CAP_KILL", "CAP_CHOWN"),
    memory_bytes_max=4 << 30,
    cpu_millis_max=8_000,
    timeout_s_max=600,
    interval_s_min=60,
)


# -- what a configuration may say ------------------------------------------------------------------


def configured(directory: Path, text: str) -> dict[str, Plan]:
    path = directory / "mesh.toml"
    path.write_text(text)
    return load(path).plans


def test_a_plan_says_what_it_changes_and_is_the_standard_one_otherwise(tmp_path: Path) -> None:
    text = '[plans.gold]\nweight = 3\ncapabilities = ["CAP_KILL"]\n[plans.standard]\n'
    plans = configured(tmp_path, text)
    assert plans == {"gold": Plan(weight=3, capabilities=("CAP_KILL",)), "standard": Plan()}
    assert configured(tmp_path, "") == {}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[plans.gold]\nweight = 0", r"plans\.gold: weight is 0, not 1 to 100"),
        ("[plans.gold]\ntimeout_s_max = 86401", r"timeout_s_max is 86401, not 1 to 86400"),
        ("[plans.gold]\nmemory_bytes_max = 1", r"memory_bytes_max is 1, not 8388608 to"),
        ("[plans.gold]\ncpu_millis_max = 9", r"cpu_millis_max is 9, not 10 to"),
        ("[plans.gold]\ninterval_s_min = 3601", r"interval_s_min is 3601, not 1 to 3600"),
        ('[plans.gold]\nruntime = "/usr/bin/runsc"', r"runtime is '/usr/bin/runsc', no name of"),
        ('[plans.gold]\ncapabilities = ["CAP_SYS_ADMIN"]', r"'CAP_SYS_ADMIN', which is none of"),
        ('[plans.gold]\ncapabilities = ["CAP_KILL", "CAP_KILL"]', r"names one twice"),
        ("[plans.Gold]\nweight = 2", r"plans\.Gold: is no name: a letter, then up to"),
        ("[plans.gold]\nwieght = 2", r"unknown field `wieght`"),
        ("\n".join(f"[plans.p{n}]" for n in range(101)), r"plans: are 101; at most 100"),
        ("[scheduler]\ncustomer_weights = { acme = 2 }", r"scheduler"),
    ],
)
def test_what_is_wrong_with_a_plan_is_said_at_the_start(
    tmp_path: Path, text: str, words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        configured(tmp_path, text)


def test_no_capability_that_reaches_beyond_a_sandbox_can_be_granted() -> None:
    assert not CAPABILITIES & {
        *("CAP_SYS_ADMIN", "CAP_NET_ADMIN", "CAP_NET_RAW", "CAP_SYS_PTRACE", "CAP_MKNOD"),
        *("CAP_SYS_MODULE", "CAP_SYS_RAWIO", "CAP_SYS_BOOT", "CAP_BPF", "CAP_PERFMON"),
        *("CAP_DAC_READ_SEARCH", "CAP_SYS_CHROOT", "CAP_SETFCAP", "CAP_SYS_RESOURCE"),
    }


# -- which one holds -------------------------------------------------------------------------------


def test_who_has_no_plan_has_the_standard_one_and_a_lost_plan_becomes_it() -> None:
    world = World()
    world.do(commands.UpdateCustomer("acme", 0, 0, 0, "gold"))
    world.do(commands.UpdateCustomer("zeta", 0, 0, 0, "gold"))
    cheap = Plan(memory_bytes_max=64 * MIB)
    plans = Plans(world.queries, {"gold": GOLD, "standard": cheap})
    assert (plans.of("acme"), plans.name_of("acme")) == (GOLD, "gold")
    assert (plans.of("other"), plans.name_of("other")) == (cheap, "standard")
    lost = Plans(world.queries, {"standard": cheap})
    logs: list[telemetry.Event] = []
    with telemetry.diverted(logs.append):
        for customer in ("acme", "zeta", "acme"):
            assert (lost.of(customer), lost.name_of(customer)) == (cheap, "standard")
    assert [(each["plan"], each["level"]) for each in logs] == [("gold", "warning")]


def test_what_is_remembered_of_a_plan_follows_the_record() -> None:
    world = World()
    plans = Plans(world.queries, {"gold": GOLD})
    assert plans.of("acme") == Plan()
    (changed,) = world.do(commands.UpdateCustomer("acme", 0, 0, 0, "gold"))
    assert isinstance(changed, Customer)
    assert plans.changed(changed) and plans.of("acme") is GOLD
    (kept,) = world.do(commands.UpdateCustomer("acme", 0, 10_000, 0, "gold"))
    assert isinstance(kept, Customer)
    assert not plans.changed(kept), "another retention is no other plan"


def test_an_entry_from_before_plans_leaves_a_record_without_one() -> None:
    """The command as an older leader encoded it: no plan at its end."""
    import msgspec

    world = World()
    old = ["UpdateCustomer", "acme", 0, 10_000, 5]
    entry = msgspec.msgpack.encode([PLAN_SINCE - 1, START_MS, [old]])
    world.state.apply(1, 1, entry)
    stored = world.queries.customer("acme")
    assert stored is not None
    assert (stored.max_age_ms, stored.executions_per_job_max, stored.plan) == (10_000, 5, "")


# -- what is refused by it -------------------------------------------------------------------------


def job(**resources: Any) -> job_pb2.Job:
    made = job_pb2.Job(container=job_pb2.Container(image="report:1"))
    for name, value in resources.items():
        if name == "timeout":
            made.timeout.FromSeconds(value)
        else:
            setattr(made.resources, name, value)
    return made


@pytest.mark.parametrize(
    ("fields", "plan", "refused"),
    [
        ({"memory_bytes": 1 << 30, "cpu_millis": 4_000, "timeout": 86_400}, Plan(), ""),
        ({"memory_bytes": (1 << 30) + 1}, Plan(), "job.resources.memory_bytes"),
        ({"cpu_millis": 4_001}, Plan(), "job.resources.cpu_millis"),
        ({"memory_bytes": 4 << 30, "cpu_millis": 8_000, "timeout": 600}, GOLD, ""),
        ({"timeout": 601}, GOLD, "job.timeout"),
    ],
)
def test_a_job_may_ask_for_what_its_plan_allows(
    fields: dict[str, int], plan: Plan, refused: str
) -> None:
    if not refused:
        convert.job_spec(job(**fields), "acme", "job", plan)
        return
    with pytest.raises(InvalidRequest, match=r"plan of customers/acme allows: at most") as caught:
        convert.job_spec(job(**fields), "acme", "job", plan)
    assert [field for field, _ in caught.value.fields] == [refused]
    spec = convert.job_spec(job(**fields), "acme", "job", Plan(8, "", (), 8 << 30, 10_000))
    assert convert.job_spec(job(**fields), "acme", "job", plan, spec) == spec, "it had it before"


def test_defaults_are_never_more_than_a_plan_allows() -> None:
    small = Plan(memory_bytes_max=32 * MIB, cpu_millis_max=100, timeout_s_max=60)
    spec = convert.job_spec(job(), "acme", "job", small)
    assert (spec.memory_bytes, spec.cpu_millis, spec.timeout_ms) == (32 * MIB, 100, 60_000)


@pytest.mark.parametrize(
    ("recurrence", "interval_s", "words"),
    [
        ({"crons": ["* * * * * *"]}, 1, ""),
        ({"crons": ["* * * * * *"]}, 2, r"60|31 times within 60 s.* at most 30 times"),
        ({"crons": ["*/2 * * * * *"]}, 2, ""),
        ({"crons": ["* * * * *"]}, 60, ""),
        ({"crons": ["0,30 * * * * *"]}, 60, r"2 times within 60 s.* at most 1 time, as one fire"),
        ({"crons": ["0 * * * *"]}, 3_600, ""),
        ({"crons": ["0,30 3 * * *"]}, 3_600, r"2 times within 3600 s"),
        ({"crons": ["30 3 * * *", "10 4 * * *"]}, 3_600, r"2 times within 3600 s"),
        ({"crons": ["30 3 * * *"], "every_s": [3_600]}, 3_600, r"2 times within 3600 s"),
        ({"every_s": [45]}, 45, ""),
        ({"every_s": [44]}, 60, r"2 times within 60 s"),
        ({"every_s": [4_000, 3_900]}, 3_600, r"2 times within 3600 s"),
    ],
)
def test_a_schedule_fires_no_more_often_than_its_plan_allows(
    recurrence: dict[str, Any], interval_s: int, words: str
) -> None:
    message = schedule_pb2.Recurrence(time_zone="UTC", crons=recurrence.get("crons", ()))
    for seconds in recurrence.get("every_s", ()):
        message.intervals.add().every.FromSeconds(seconds)
    spec = convert.spec_of(message, START_MS, "schedule.recurrence")
    if not words:
        convert.check_rate(spec, START_MS, "schedule.recurrence", interval_s)
        return
    with pytest.raises(InvalidRequest, match=words):
        convert.check_rate(spec, START_MS, "schedule.recurrence", interval_s)


# -- a leader --------------------------------------------------------------------------------------


class Clock:
    def now_ns(self) -> int:
        return START_MS * 1_000_000

    def monotonic_ns(self) -> int:
        return START_MS * 1_000_000


class Replica(AppliesAtOnce):
    """One that leads from the beginning, alone."""

    term = 1
    is_leader = True

    def subscribe(self, follow: Any) -> None:
        self.follow = follow

    async def read_barrier(self) -> None:
        pass


class Leader:
    """A shard's leader without a disk, and executors that only listen."""

    def __init__(self, plans: dict[str, Plan]) -> None:
        self.world = World()
        self.shard = Shard(
            self.world.state,
            Clock(),
            arm_ahead_ms=2_000,
            executor_lease_ms=1_000_000,
            retention_ms=86_400_000,
            plans=plans,
        )
        self.world.state.observe(self.shard.observe)
        self.replica: Any = Replica(self.world.state, PLAN_SINCE)
        self.shard.bind(self.replica)
        self.calls = Calls(self.shard)
        self.running = asyncio.create_task(self.shard.run())

    async def lead(self) -> None:
        led = asyncio.Event()
        self.shard.on_leadership(led.set)
        self.replica.follow(1)
        await asyncio.wait_for(led.wait(), TIMEOUT_S)

    def attach(self, name: str, runtimes: tuple[str, ...] = (), capabilities: bool = False) -> Link:
        link = Link(
            shard_pb2.Hello(
                executor_id=name,
                incarnation=f"{name}.1",
                slot_count=32,
                runtimes=runtimes,
                capabilities=capabilities,
            )
        )
        assert self.shard.leading is not None
        self.shard.leading.attach(link)
        return link

    async def update(self, paths: list[str], etag: str = "", **fields: Any) -> Any:
        customer = customer_pb2.Customer(name="customers/acme", etag=etag, **fields)
        request = customer_pb2.UpdateCustomerRequest(customer=customer)
        request.update_mask.paths.extend(paths)
        return await self.calls.customers.update_customer(request)

    def get(self) -> Any:
        request = customer_pb2.GetCustomerRequest(name="customers/acme")
        return self.calls.customers.get_customer(request)

    def create(self, request: schedule_pb2.CreateScheduleRequest) -> Any:
        _, create = self.calls.methods.writes["tickmesh.v1.ScheduleService/CreateSchedule"]
        return create(request)

    def execute(self) -> None:
        new = commands.NewExecution("hello", self.world.next_uid(), b"", None)
        self.world.do(commands.ExecuteJobs("acme", [new], b""))

    async def work(self, link: Link) -> shard_pb2.Work:
        """The first that an executor is given."""
        async with asyncio.timeout(TIMEOUT_S):
            while True:
                while link.outbox:
                    message = link.outbox.popleft()
                    if message.HasField("work"):
                        return message.work.work[0]
                link.ready.clear()
                await link.ready.wait()


@pytest.fixture
async def leader() -> AsyncIterator[Leader]:
    made = Leader({"gold": GOLD, "free": Plan(interval_s_min=3_600)})
    await made.lead()
    yield made
    made.running.cancel()
    await asyncio.gather(made.running, return_exceptions=True)


async def test_a_plan_is_given_by_its_name_and_shown_with_what_is_in_it(leader: Leader) -> None:
    before = leader.get()
    assert (before.plan, before.effective_plan.name, before.etag) == ("standard", "standard", "v1")
    changed = await leader.update(["plan"], plan="gold", etag=before.etag)
    assert changed == leader.get()
    assert (changed.plan, changed.etag) == ("gold", "v2")
    shown = changed.effective_plan
    assert (shown.name, shown.weight, shown.runtime) == ("gold", 3, RUNSC)
    assert list(shown.capabilities) == ["CAP_CHOWN", "CAP_KILL"]
    assert (shown.memory_bytes_max, shown.cpu_millis_max) == (4 << 30, 8_000)
    assert (shown.timeout_max.seconds, shown.interval_min.seconds) == (600, 60)
    # Whoever changes something else leaves it as it is.
    kept = await leader.update(["*"], retention=customer_pb2.Retention(executions_per_job_max=5))
    assert (kept.plan, kept.retention.executions_per_job_max) == ("gold", 5)
    assert (await leader.update(["plan"], plan="standard")).plan == "standard"
    stored = leader.world.queries.customer("acme")
    assert stored is not None and stored.plan == ""


async def test_a_plan_that_is_not_there_is_refused_with_those_that_are(leader: Leader) -> None:
    with pytest.raises(InvalidRequest, match=r"no plan 'golden'; there are: free, gold, standard"):
        await leader.update(["plan"], plan="golden")
    with pytest.raises(InvalidRequest, match="cannot be changed"):
        await leader.update(["effective_plan"])
    assert leader.world.state.applied == (0, 0), "nothing was proposed"


async def test_a_plan_waits_until_every_replica_knows_of_plans(leader: Leader) -> None:
    leader.replica.entry_version = PLAN_SINCE - 1
    with pytest.raises(FailedPrecondition, match=r"customer\.plan needs a newer version"):
        await leader.update(["plan"], plan="gold")
    retention = customer_pb2.Retention(executions_per_job_max=5)
    assert (await leader.update(["retention"], retention=retention)).etag == "v2"


async def test_what_a_plan_names_is_where_it_runs_and_what_it_gets(leader: Leader) -> None:
    leader.world.job()
    plain = leader.attach("plain", ("io.containerd.runc.v2",), True)
    await leader.update(["plan"], plan="gold")
    leader.execute()
    assert leader.shard.leading is not None
    (execution,) = leader.shard.leading.active.values()
    reason = leader.shard.pending_reason(execution)
    assert reason == f"no executor has the runtime {RUNSC}, which the customer's plan asks for"
    old = leader.attach("old", (RUNSC,))
    leader.shard.leading._reasons.clear()  # which are given again for 0.1 s
    reason = leader.shard.pending_reason(execution)
    assert reason == "no executor grants capabilities, which the customer's plan has"
    fit = leader.attach("fit", ("io.containerd.runc.v2", RUNSC), True)
    work = await leader.work(fit)
    assert (work.runtime, list(work.capabilities)) == (RUNSC, ["CAP_CHOWN", "CAP_KILL"])
    assert not plain.outbox and not old.outbox


async def test_what_waits_follows_its_customer_to_another_plan(leader: Leader) -> None:
    leader.world.job()
    plain = leader.attach("plain", ("io.containerd.runc.v2",))
    await leader.update(["plan"], plan="gold")
    for _ in range(3):
        leader.execute()
    assert not plain.outbox
    await leader.update(["plan"], plan="standard")
    work = await leader.work(plain)
    assert (work.runtime, list(work.capabilities)) == ("", [])


async def test_what_waits_is_given_a_place_that_was_reserved_in_vain(leader: Leader) -> None:
    """Where nothing else happened it waited for ever: what the place was for was refused, or it had
    become another revision meanwhile and waited itself."""
    job = leader.world.job()
    link = leader.attach("one")
    assert leader.shard.leading is not None
    reserved = []
    while (place := leader.shard.place(job)) is not None:
        reserved.append(place)
    leader.execute()
    for _ in range(10):  # turns of the loop: it has looked for room long since
        await asyncio.sleep(0)
    assert leader.shard.leading._waiting.stuck and not link.outbox
    leader.shard.release(reserved[:1])
    assert (await leader.work(link)).execution


@pytest.mark.parametrize(("before_ms", "after_ms"), [(0, 60_000), (60_000, 0), (60_000, 90_000)])
async def test_what_comes_up_anew_has_its_jobs_new_total_timeout(
    leader: Leader, before_ms: int, after_ms: int
) -> None:
    world = leader.world
    world.job(spec=replace(SPEC, total_timeout_ms=before_ms))
    leader.attach("one")
    schedule = world.schedule()
    world.now_ms = schedule.due_ms - 2_000
    (armed,) = world.fire(schedule, Placement("one", "one.1"))
    assert leader.shard.leading is not None
    over = leader.shard.leading._total_timeouts
    assert over.get(armed.id) == (armed.due_ms + before_ms if before_ms else None)
    spec = replace(SPEC, total_timeout_ms=after_ms)
    world.do(commands.UpdateJob("acme", "hello", 0, "", (), spec))
    recur = schedule.spec
    world.do(
        commands.UpdateSchedule("acme", "hello", "often", 0, (), recur, schedule.policy, b"new")
    )
    world.fire(world.stored(schedule), None)
    taken_back = Attempt(1, "one", "one.1", 0, reason=Reason.REVOKED)
    world.do(commands.EndAttempts([(armed.job_uid, armed.id, taken_back)]))
    assert world.execution(armed).state is ExecutionState.PENDING
    assert over.get(armed.id) == (armed.due_ms + after_ms if after_ms else None)


async def test_a_change_of_plan_is_held_against_what_comes_after_it(leader: Leader) -> None:
    leader.world.job()
    request = schedule_pb2.CreateScheduleRequest(
        parent="customers/acme/jobs/hello", schedule_id="often"
    )
    request.schedule.recurrence.crons.append("*/10 * * * *")
    await leader.update(["plan"], plan="free")
    with pytest.raises(
        InvalidRequest, match=r"fires 6 times within 3600 s; by its customer's plan"
    ):
        leader.create(request)
    await leader.update(["plan"], plan="standard")
    write = leader.create(request)
    made = write.respond(await write.outcome)
    assert made.name.endswith("/schedules/often")
    await leader.update(["plan"], plan="free")
    stored = leader.world.queries.job("acme", "hello")
    assert stored is not None
    assert leader.world.queries.schedule(stored.uid, "often"), "what was there goes on"


async def test_a_leader_whose_configuration_lost_a_plan_goes_on_by_the_standard_one() -> None:
    made = Leader({})
    made.world.do(commands.UpdateCustomer("acme", 0, 0, 0, "gold"))
    await made.lead()
    try:
        made.world.job()
        plain = made.attach("plain")
        made.execute()
        assert (await made.work(plain)).runtime == ""
        shown = made.get()
        assert (shown.plan, shown.effective_plan.name) == ("gold", "standard")
        # And it may still change something else.
        retention = customer_pb2.Retention(executions_per_job_max=5)
        assert (await made.update(["retention"], retention=retention)).plan == "gold"
    finally:
        made.running.cancel()
        await asyncio.gather(made.running, return_exceptions=True)
