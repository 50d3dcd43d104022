"""One configuration schema for every process: a TOML file, checked whole at the start.

A process reads its own table and ignores no unknown key: a misspelt one stops the start, with its
path. `tickmesh dev` writes such files; docs/operations.md shows one.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import msgspec

from .plans import PLANS_MAX, Plan, problem

REMOVED = "removed"
"""A file in the data directory of a replica that its shard has removed: it never starts again."""


class Tls(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Mutual TLS between services: PEM files. See tls.py for the roles in the certificates."""

    authority: str
    """The certificate authority that signs every service's certificate."""
    certificate: str
    """This process's certificate chain."""
    key: str
    """Its private key."""


class Peer(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One replica of a shard."""

    replica_id: str
    """As "shard-0-1"."""
    address: str
    """Where it listens, as "127.0.0.1:7301"."""


class ShardMembers(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A shard and its replicas."""

    shard_id: str
    replicas: tuple[Peer, ...]


class ObjectStore(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where objects are kept: a directory, or a bucket of an S3-compatible service."""

    url: str
    """An absolute path, or "s3://bucket/prefix"."""
    endpoint: str = ""
    """Of an S3-compatible service, as "https://objects.example:9000". Empty: AWS's own."""
    region: str = ""
    """Empty: AWS_REGION, or us-east-1."""
    access_key_id: str = ""
    """With its secret; both empty: from the environment (AWS_ACCESS_KEY_ID,
    AWS_SECRET_ACCESS_KEY, ...) or the machine's role."""
    secret_access_key: str = ""

    def __repr__(self) -> str:
        return f"{type(self).__name__}(url={self.url!r})"


class Archive(ObjectStore, frozen=True, forbid_unknown_fields=True):
    """Where what executions wrote is kept once they have ended: the same for all processes."""

    retention_s: int = 7 * 24 * 3600
    """How long, from an attempt's end; to the day, and up to two days longer."""


class OwnRegistry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The mesh's own image registry (CNCF Distribution), for customers' images."""

    address: str
    """host:port, as executors reach it; for a gateway, as customers do."""
    plain: bool = False
    """Spoken to without TLS: on loopback or on a network of your own."""
    authority: str = ""
    """PEM file of who signed its certificate. Empty: who this system believes."""


class RegistryDoor(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The gateway's HTTP port for the mesh's registry: its tokens, and its events."""

    listen: str
    """host:port. With the door's TLS; without that it must be a loopback address."""
    token_key: str = ""
    """PEM file of the key that signs tokens (EC P-256 or RSA), the same for all gateways. Required
    where callers are authenticated."""
    token_certificate: str = ""
    """PEM file of its certificate, which the registry has in its rootcertbundle."""
    events_secret_file: str = ""
    """A file with what the registry shows with its events (Authorization: Bearer ...). Empty: no
    events are taken."""


class GatewayConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A gateway: the public door."""

    listen: str
    """Public address, as "127.0.0.1:7300". Without door TLS it must be a loopback address."""
    shards: tuple[ShardMembers, ...]
    tls: Tls
    """For its calls to shards and executors (role gateway)."""
    door_certificate: str = ""
    """TLS at the public door: PEM files. Empty: plain text, on loopback only."""
    door_key: str = ""
    authentication: Literal["none", "api_keys"] = "none"
    """Whether callers must show an API key. "none": everybody is whom they say they are."""
    operator_key_hashes: tuple[str, ...] = ()
    """SHA-256, in hexadecimal, of the keys that operators show (mesh/api_keys.py has their form).
    More than one while one takes another's place."""
    archive: Archive | None = None
    """Where output is read that no executor has any more, and what is too old is deleted. None:
    output is only on the executors."""
    registry: OwnRegistry | None = None
    """The mesh's own registry. None: there is none, and images are imported."""
    registry_door: RegistryDoor | None = None
    """None: the registry asks nobody who they are, and tells of no pushes."""
    ready_file: str = ""
    """Written (with the bound address) once the process serves. Empty: none."""


class SecretKey(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A key that customers' secrets are sealed with."""

    key_id: str
    """Stored with what it seals."""
    file: str
    """32 random bytes in base64."""


class SchedulerConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One replica of a shard."""

    replica_id: str
    shard: ShardMembers
    """All members, this one included; it listens on its own address there."""
    data_directory: str
    tls: Tls
    """Role scheduler."""
    bootstrap: bool = False
    """True only for the first start of a new shard: a replica without data then may vote."""
    frames_port: Annotated[int, msgspec.Meta(ge=0, le=65_535)] = 0
    """Where it takes the other replicas' Raft messages, on the host of its address, where they ask
    for this. 0: any that is free."""
    arm_ahead_ms: int = 2_000
    """How long before its due time a fire is committed and prepared."""
    execution_retention_s: int = 7 * 24 * 3600
    """How long an ended execution is kept."""
    election_timeout_ms: tuple[int, int] = (300, 600)
    group_id: str = ""
    """Identity of the shard's Raft group, the same on all of its replicas. Empty: the shard's id. A
    shard that is restored from a backup takes one of its own."""
    backup_directory: str = ""
    """Where BackupShard makes its directories: an absolute path on this host, best on another disk.
    Empty, and no backup_store: backups are refused."""
    backup_store: ObjectStore | None = None
    """In place of backup_directory; what --restore reads an s3:// backup with."""
    clock_skew_max_ms: int = 250
    """A leader whose wall clock is further than this from a majority's hands leadership over."""
    secret_keys: tuple[SecretKey, ...] = ()
    """With what customers' secrets (logins to registries) are sealed: the same on all replicas. The
    first seals; further ones open what was sealed before. Empty: no secrets are taken."""
    executor_lease_ms: int = 10_000
    """An executor that has not heard of the leader for so long starts nothing more; not heard of
    for twice as long it is lost, and what it ran with it. Executors are told."""
    ready_file: str = ""


class Egress(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The internet for the sandboxes whose jobs ask for it: public addresses, and nothing else."""

    resolvers: tuple[str, ...] = ()
    """Asked for names, at most three; a private one is then reachable, at port 53 alone. Empty:
    those of the host that are public, or well-known public ones."""
    denied: tuple[str, ...] = ()
    """Networks not to be reached, beside all that are not public, as "203.0.113.0/24"."""
    bytes_per_second: int = 12_500_000
    """Each way, each sandbox: 100 Mbit/s."""
    connections_max: int = 512
    """Open at one time, each sandbox."""
    connections_per_second: int = 100
    """New ones, each sandbox."""
    pool_size: int = 8
    """Namespaces wired ahead."""
    network: str = "198.18.0.0/15"
    """What sandboxes have addresses from; only this host ever sees them."""
    namespace: str = ""
    """Path of the network namespace that leads outside. Empty: the executor's own."""


class ExecutorConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A worker host."""

    executor_id: str
    listen: str
    """Where its ExecutorService listens."""
    shards: tuple[ShardMembers, ...]
    data_directory: str
    tls: Tls
    """Role executor."""
    runtime: str = "containerd"
    """"containerd", or "inprocess": no-op work, for measuring the mesh without containers."""
    containerd_runtime: str = "tickmesh"
    """What stands between containerd and sandboxes. "tickmesh": our own shim; containerd must see
    the file system of this package. Else containerd's name of a shim, which it must find:
    "io.containerd.runc.v2" is its own for the same sandboxes, "io.containerd.runsc.v1" gVisor,
    "io.containerd.kata.v2" Kata Containers. All but the first two start without a gate: created
    ahead, started when due."""
    runtime_binary: str = "auto"
    """Of the first two: "runc", "crun", "auto" (crun where it works), or the path of
    another OCI runtime, as gVisor's runsc; such a one starts without a gate too."""
    runtimes: dict[str, str] = {}
    """Further ones, for customers whose plans name them: containerd's name, and either "" (its shim
    is where containerd finds it) or the path of an OCI runtime, which io.containerd.runc.v2 then
    runs. As { "io.containerd.runsc.v1" = "/usr/bin/runsc" }. They start without a gate. Each must
    run a sandbox at the start, with user namespaces if the default has them. At most 8."""
    gate: str = "auto"
    """"off": sandboxes are created ahead, and started when due, with every runtime."""
    user_namespaces: str = "auto"
    """"required"; "off"; or "auto": where the host can, and the log says so where it cannot."""
    containerd_socket: str = ""
    """An existing containerd's socket. Empty: a private one is started in data_directory."""
    slot_count: int = 64
    """Attempts held at one time, running or waiting for their due time."""
    memory_bytes: int = 0
    """Memory given to attempts, each with its job's limit. 0: three quarters of the host's."""
    cpu_millis: int = 0
    """Processor time given to attempts, in thousandths of a core, each with its job's limit. That
    is a limit and no reservation: 0 is 32 times what the host has."""
    labels: dict[str, str] = {}
    """For jobs that select executors by their labels, as { region = "eu" }. At most 32."""
    spares_max: int = 8
    """Sandboxes made ahead for jobs that are executed often. 0: none."""
    spares_memory_bytes: int = 2 * 1024**3
    """What those may use together once they run; waiting, one takes a few MiB."""
    archive: Archive | None = None
    """Where an attempt's output goes at its end. None: it stays here."""
    output_retention_s: int = 7 * 24 * 3600
    """How long an ended attempt's output is kept here, if there is no archive."""
    output_archived_s: int = 3600
    """How long it is also kept here once it is archived: reading it here is quicker."""
    output_bytes_max: int = 10 * 1024**3
    """What all outputs here take on disk at most; over it the oldest are dropped, those that are
    archived first."""
    image_cache_bytes: int = 0
    """What pulled images may take on disk, compressed and unpacked; over it those go that were not
    asked for longest and that nothing runs from. 0: no limit."""
    insecure_registries: tuple[str, ...] = ()
    """host:port of registries spoken to without TLS, and whose addresses need not be public."""
    registry: OwnRegistry | None = None
    """The mesh's own registry. None: images without a host are those that were imported."""
    layers_at_once: int = 3
    """Layers of one image fetched at one time: 1 to 16."""
    egress: Egress | None = None
    """None: jobs that ask for egress are not taken."""
    ready_file: str = ""


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The file: one table a process."""

    gateway: GatewayConfig | None = None
    scheduler: SchedulerConfig | None = None
    executor: ExecutorConfig | None = None
    plans: dict[str, Plan] = {}
    """What customers may use, by the plans' names: scheduler replicas read it, and must have the
    same. "standard" is there without being named, and is whose customers have no other."""


class ConfigError(Exception):
    """The configuration is wrong; the message names the file, the key and what is expected."""


def load(path: Path) -> Config:
    """Read and check a configuration file. Raises ConfigError."""
    try:
        config = msgspec.toml.decode(path.read_bytes(), type=Config)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from error
    except msgspec.ValidationError as error:
        raise ConfigError(f"{path}: {error}") from error
    except msgspec.DecodeError as error:
        raise ConfigError(f"{path}: not TOML: {error}") from error
    if len(config.plans) > PLANS_MAX:
        raise ConfigError(f"{path}: plans: are {len(config.plans)}; at most {PLANS_MAX}")
    for name, plan in config.plans.items():
        if wrong := problem(name, plan):
            raise ConfigError(f"{path}: plans.{name}: {wrong}")
    return config
