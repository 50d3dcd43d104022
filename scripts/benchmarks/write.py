"""bench write: durable creates a second, beside a 3-node etcd that stores the same bytes.

Both have three members on this machine, clients of the same kind (grpc.aio, one process) and the
same number of them, one after the other. The mesh does more: its clients go through the gateway, it
checks names and quotas, computes the first fire and keeps an index of timers. What etcd stores for
a create is a key and a value as long as ours.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import bed
import grpc
import grpc.aio
from bed import CALL_DEADLINE_S, Api, say, spread
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from tickmesh.mesh.local import LocalMesh, LocalOptions, free_ports
from tickmesh.proto.tickmesh.v1 import schedule_pb2

SINGLE_CLIENTS = 64
BATCH_CLIENTS = 16
BATCH = 100
PHASES = 4
"""Single and batched, of each."""

MEMBERS = 3
KEY_BYTES = 32
VALUE_BYTES = 224
"""As long as a schedule's key and record in the state, its timer included."""

ETCD_READY_S = 20.0
END_GRACE_S = 5.0


async def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """See main.py for the arguments; each phase takes a fourth of --seconds."""
    seconds = arguments.seconds / PHASES
    noise = await bed.noise()
    etcd_version = _install()
    options = LocalOptions(replicas=arguments.replicas, executors=0, runtime="inprocess")
    async with bed.mesh(options, arguments.keep) as (local, api):
        mesh = await _mesh(local, api, seconds)
        mesh["disk_bytes_each"] = round(
            max(bed.disk_mib(local).values()) * (1 << 20) / mesh.pop("stored")
        )
    async with _etcd() as channel:
        etcd = await _etcd_writes(channel, seconds)
    return {
        "benchmark": "write",
        "mesh": mesh,
        "etcd": etcd,
        "ratio": {
            kind: round(mesh[kind]["per_s"] / etcd[kind]["per_s"], 2)
            for kind in ("single", "batched")
        },
        "batch": BATCH,
        "clients": {"single": SINGLE_CLIENTS, "batched": BATCH_CLIENTS},
        "bytes": KEY_BYTES + VALUE_BYTES,
        "seconds": seconds,
        "replicas": arguments.replicas,
        "noise_ms": noise,
        "machine": bed.machine(),
        "versions": {**bed.versions("none"), "etcd": etcd_version},
    }


async def _load(
    clients: int, seconds: float, each: int, write: Callable[[], Awaitable[Any]]
) -> dict[str, Any]:
    """How many a second, and how long one call takes."""
    took: list[float] = []
    until = time.perf_counter() + seconds

    async def client() -> None:
        while (began := time.perf_counter()) < until:
            await write()
            took.append((time.perf_counter() - began) * 1_000)

    began = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for _ in range(clients):
            group.create_task(client())
    per_s = len(took) * each / (time.perf_counter() - began)
    return {"per_s": round(per_s), "call_ms": spread(took)}


async def _mesh(local: LocalMesh, api: Api, seconds: float) -> dict[str, Any]:
    job = await api.create_job("written", "nothing:1")
    schedule = schedule_pb2.Schedule(recurrence=schedule_pb2.Recurrence(crons=[bed.NEVER_SOON]))
    one = schedule_pb2.CreateScheduleRequest(parent=job, schedule=schedule)
    many = schedule_pb2.BatchCreateSchedulesRequest(
        parent=job, schedules=[schedule_pb2.NewSchedule(schedule=schedule)] * BATCH
    )
    single = await _load(
        SINGLE_CLIENTS,
        seconds,
        1,
        lambda: api.schedules.CreateSchedule(one, timeout=CALL_DEADLINE_S),
    )
    say(f"mesh, one by one: {single}")
    leader = await api.leader(attached=False)
    before = bed.cpu_s(local)
    batched = await _load(
        BATCH_CLIENTS,
        seconds,
        BATCH,
        lambda: api.schedules.BatchCreateSchedules(many, timeout=CALL_DEADLINE_S),
    )
    share = {name: (used - before[name]) / seconds for name, used in bed.cpu_s(local).items()}
    followers = [child.name for child in local.replicas if child.name != leader]
    batched["cpu_share"] = {  # of one core
        "leader": round(share[leader], 3),
        "followers": round(sum(share[name] for name in followers), 3),
        "gateway": round(share[local.gateways[0].name], 3),
    }
    say(f"mesh, in batches: {batched}")
    stored = (single["per_s"] + batched["per_s"]) * seconds
    return {"single": single, "batched": batched, "stored": stored}


# -- etcd ------------------------------------------------------------------------------------------


def _install() -> str:
    """etcd's version; installs Debian's package where it is missing."""
    if shutil.which("etcd") is None:
        if os.geteuid() != 0 or shutil.which("apt-get") is None:
            raise SystemExit("missing: etcd-server. Install it, or run this as root on Debian.")
        say("installing etcd-server")
        subprocess.run(["apt-get", "update", "-qq"], check=True, stdout=subprocess.DEVNULL)
        subprocess.run(
            ["apt-get", "install", "-y", "-qq", "--no-install-recommends", "etcd-server"],
            check=True,
            stdout=subprocess.DEVNULL,
            env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"},
        )
    told = subprocess.run(["etcd", "--version"], check=True, capture_output=True, text=True).stdout
    return told.splitlines()[0].rpartition(" ")[2]


@contextlib.asynccontextmanager
async def _etcd() -> AsyncIterator[grpc.aio.Channel]:
    """Three members with scratch data; a channel to the leader's neighbours and itself alike."""
    ports = free_ports(2 * MEMBERS)
    clients, peers = ports[:MEMBERS], ports[MEMBERS:]
    cluster = ",".join(f"m{n}=http://127.0.0.1:{port}" for n, port in enumerate(peers))
    processes = []
    with tempfile.TemporaryDirectory(prefix="tickmesh-etcd-") as scratch:
        try:
            for number, (client, peer) in enumerate(zip(clients, peers, strict=True)):
                with (Path(scratch) / f"{number}.log").open("wb") as log:
                    processes.append(
                        await asyncio.create_subprocess_exec(
                            "etcd",
                            *("--name", f"m{number}", "--data-dir", f"{scratch}/m{number}"),
                            *("--listen-client-urls", f"http://127.0.0.1:{client}"),
                            *("--advertise-client-urls", f"http://127.0.0.1:{client}"),
                            *("--listen-peer-urls", f"http://127.0.0.1:{peer}"),
                            *("--initial-advertise-peer-urls", f"http://127.0.0.1:{peer}"),
                            *("--initial-cluster", cluster, "--initial-cluster-token", scratch),
                            *("--max-txn-ops", str(BATCH)),
                            stdout=log,
                            stderr=log,
                        )
                    )
            address = await _leader(clients)
            async with grpc.aio.insecure_channel(address) as channel:
                yield channel
        finally:
            for process in processes:
                with contextlib.suppress(ProcessLookupError):
                    process.terminate()
            for process in processes:
                try:
                    await asyncio.wait_for(process.wait(), END_GRACE_S)
                except TimeoutError:
                    process.kill()
                    await process.wait()


def _messages() -> tuple[type[Any], type[Any], type[Any], type[Any]]:
    """etcd's own messages (etcdserverpb), as far as they are used, by their field numbers."""
    file = descriptor_pb2.FileDescriptorProto(
        name="bench/etcd.proto", package="etcdserverpb", syntax="proto3"
    )
    kinds = descriptor_pb2.FieldDescriptorProto

    def message(name: str, *fields: tuple[str, int, int, str]) -> None:
        made = file.message_type.add(name=name)
        for field, number, kind, type_name in fields:
            repeated = field == "success"
            label = kinds.LABEL_REPEATED if repeated else kinds.LABEL_OPTIONAL
            made.field.add(
                name=field, number=number, type=kind, label=label, type_name=type_name or None
            )

    message("PutRequest", ("key", 1, kinds.TYPE_BYTES, ""), ("value", 2, kinds.TYPE_BYTES, ""))
    message("RequestOp", ("request_put", 2, kinds.TYPE_MESSAGE, ".etcdserverpb.PutRequest"))
    message("TxnRequest", ("success", 2, kinds.TYPE_MESSAGE, ".etcdserverpb.RequestOp"))
    message("TxnResponse", ("succeeded", 2, kinds.TYPE_BOOL, ""))
    message("StatusRequest")
    header = ("member_id", 2, kinds.TYPE_UINT64, "")
    message("ResponseHeader", header)
    message(
        "StatusResponse",
        ("header", 1, kinds.TYPE_MESSAGE, ".etcdserverpb.ResponseHeader"),
        ("leader", 4, kinds.TYPE_UINT64, ""),
    )
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    put, txn, answer, status = (
        message_factory.GetMessageClass(pool.FindMessageTypeByName(f"etcdserverpb.{name}"))
        for name in ("PutRequest", "TxnRequest", "TxnResponse", "StatusResponse")
    )
    return put, txn, answer, status


PUT, TXN, TXN_ANSWER, STATUS = _messages()


async def _leader(ports: list[int]) -> str:
    """The address of the member that leads, as soon as all follow it."""
    async with asyncio.timeout(ETCD_READY_S):
        while True:
            found = [await _status(port) for port in ports]
            leaders = [one.leader for one in found if one is not None]
            if len(leaders) == MEMBERS and len(set(leaders)) == 1 and leaders[0]:
                for port, one in zip(ports, found, strict=True):
                    if one is not None and one.header.member_id == one.leader:
                        return f"127.0.0.1:{port}"
            await asyncio.sleep(0.1)


async def _status(port: int) -> Any:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        ask = channel.unary_unary(
            "/etcdserverpb.Maintenance/Status", response_deserializer=STATUS.FromString
        )
        try:
            return await ask(b"", timeout=1.0)
        except grpc.aio.AioRpcError:
            return None


async def _etcd_writes(channel: grpc.aio.Channel, seconds: float) -> dict[str, Any]:
    put = channel.unary_unary("/etcdserverpb.KV/Put", request_serializer=PUT.SerializeToString)
    txn = channel.unary_unary(
        "/etcdserverpb.KV/Txn",
        request_serializer=TXN.SerializeToString,
        response_deserializer=TXN_ANSWER.FromString,
    )
    number = itertools.count()
    value = os.urandom(VALUE_BYTES)

    def key() -> bytes:
        return f"s/written/{next(number):022d}".encode()

    async def many() -> None:
        request = TXN()
        for _ in range(BATCH):
            inner = request.success.add().request_put
            inner.key, inner.value = key(), value
        answer = await txn(request, timeout=CALL_DEADLINE_S)
        assert answer.succeeded

    single = await _load(
        SINGLE_CLIENTS,
        seconds,
        1,
        lambda: put(PUT(key=key(), value=value), timeout=CALL_DEADLINE_S),
    )
    say(f"etcd, one by one: {single}")
    batched = await _load(BATCH_CLIENTS, seconds, BATCH, many)
    say(f"etcd, in batches: {batched}")
    return {"single": single, "batched": batched}
