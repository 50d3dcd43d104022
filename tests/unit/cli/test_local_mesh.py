"""What `tickmesh dev` does with a mesh's directory, logs and ports, without any process."""

import json
import socket
from pathlib import Path

import pytest

from tickmesh.mesh import local
from tickmesh.mesh.config import Config
from tickmesh.mesh.local import Child, LocalMesh, LocalOptions, MeshFailed


def test_ports_are_free_different_and_below_the_kernels_own() -> None:
    ports = local.free_ports(20)
    lowest = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    assert len(set(ports)) == 20 and all(local.PORT_FIRST <= port < lowest for port in ports)
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        taken.bind((local.HOST, ports[0]))
        taken.listen()
        assert not local.is_free(ports[0])  # though its holder would share it
        assert local.is_free(ports[1])


def test_a_log_that_grew_too_long_keeps_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "LOG_BYTES_MAX", 1_000)
    monkeypatch.setattr(local, "LOG_KEEP_BYTES", 100)
    child = Child("gateway-0", "gateway", tmp_path, Config())
    child.log.write_text("short\n")
    child.trim_log()
    assert child.log.read_text() == "short\n"
    with child.log.open("a") as writer:  # as the process holds it
        for number in range(200):
            writer.write(f"line {number}\n")
        writer.flush()
        child.trim_log()
        lines = child.log.read_text().splitlines()
        assert "dropped" in lines[0] and lines[1].startswith("line ") and lines[-1] == "line 199"
        assert child.log.stat().st_size < 200
        writer.write("goes on\n")
    assert child.log.read_text().endswith("line 199\ngoes on\n")


def test_last_words_are_the_end_of_a_log(tmp_path: Path) -> None:
    child = Child("gateway-0", "gateway", tmp_path, Config())
    assert child.last_words() == ""
    child.log.write_text("".join(f"line {number}\n" for number in range(10_000)))
    assert child.last_words().splitlines()[-1] == "  line 9999"
    assert len(child.last_words().splitlines()) == local.LOG_LINES_SHOWN


@pytest.mark.parametrize(("made", "asked"), [(1, 3), (3, 1)])
async def test_another_number_of_replicas_is_refused(tmp_path: Path, made: int, asked: int) -> None:
    (tmp_path / "shape.json").write_text(json.dumps({"replicas": made}))
    mesh = LocalMesh(tmp_path, LocalOptions(replicas=asked))
    with pytest.raises(MeshFailed, match=f"a shard with {made} replicas?, not {asked}") as caught:
        await mesh.start()
    assert caught.value.exit_code == 2 and mesh.children == []


async def test_a_directory_has_one_user(tmp_path: Path) -> None:
    first, second = LocalMesh(tmp_path), LocalMesh(tmp_path)
    first._take_lock()
    with pytest.raises(MeshFailed, match="in use"):
        await second.start()
    await first.stop()
    second._take_lock()
    await second.stop()


def test_replicas_may_vote_without_data_only_until_the_shard_had_a_leader(tmp_path: Path) -> None:
    def votes(mesh: LocalMesh) -> set[bool]:
        configs = [child.settings.scheduler for child in mesh.replicas]
        return {config.bootstrap for config in configs if config is not None}

    mesh = LocalMesh(tmp_path, LocalOptions(replicas=3))
    mesh._configure()
    assert votes(mesh) == {True}
    for child in mesh.replicas:  # a first start that crashed after it had made its directories
        (tmp_path / child.name).mkdir()
    mesh._configure()
    assert votes(mesh) == {True}
    mesh._settle()
    assert votes(mesh) == {False}
    assert "bootstrap = false" in (tmp_path / "config/shard-0-1.toml").read_text()
    mesh._configure()
    assert votes(mesh) == {False}
