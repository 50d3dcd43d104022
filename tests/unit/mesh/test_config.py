"""What a configuration file is refused for."""

from __future__ import annotations

from pathlib import Path

import pytest

from tickmesh.mesh.config import ConfigError, load

SCHEDULER = """
[scheduler]
replica_id = "a"
data_directory = "/nowhere"
frames_port = {port}
tls = {{authority = "x", certificate = "x", key = "x"}}
shard = {{shard_id = "s", replicas = [{{replica_id = "a", address = "127.0.0.1:7301"}}]}}
"""


def test_a_port_that_is_none_is_refused(tmp_path: Path) -> None:
    """The system's resolver would take 70000 for 4464."""
    file = tmp_path / "a.toml"
    for port in (0, 65_535):
        file.write_text(SCHEDULER.format(port=port))
        settings = load(file).scheduler
        assert settings is not None
        assert settings.frames_port == port
    for port in (-1, 65_536):
        file.write_text(SCHEDULER.format(port=port))
        with pytest.raises(ConfigError, match="frames_port"):
            load(file)
