import stat
from contextlib import suppress
from pathlib import Path

import grpc
import httpx
import psutil
import pytest
from fixtures.ray_cluster import READ_BY_RAY, RayCluster

from smallfirst.base.errors import ConfigError
from smallfirst.base.ray_session import TOKEN_FILE, prepare_environment, ray_session

METHODS = {
    "gcs_server": ("NodeInfoGcsService/CheckAlive", "InternalKVGcsService/InternalKVGet"),
    "raylet": ("NodeManagerService/GetNodeStats", "ObjectManagerService/Pull"),
    "worker": ("CoreWorkerService/NumPendingTasks",),
}
"""Of each kind of process what its gRPC ports answer. Workers take pickles: functions and their arguments."""


@pytest.fixture
def home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A state folder, and nothing set that Ray reads."""
    for name in (*READ_BY_RAY, "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.setenv(name, "")
    monkeypatch.setenv("SMALLFIRST_HOME", str(tmp_path))
    return tmp_path


def listening() -> list[tuple[str, int]]:
    """Address and port of every listening socket of this process and those it started."""
    found = []
    for process in [psutil.Process(), *psutil.Process().children(recursive=True)]:
        with suppress(psutil.NoSuchProcess):  # it has just ended
            found += [each.laddr[:2] for each in process.net_connections("tcp") if each.status == psutil.CONN_LISTEN]
    return found


def answers(port: int, token: str | None) -> dict[str, str]:
    """The status of each method at a port; of an HTTP port, none."""
    metadata = [("authorization", f"Bearer {token}")] if token else []
    found = {}
    for method in (method for methods in METHODS.values() for method in methods):
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            try:
                channel.unary_unary(f"/ray.rpc.{method}")(b"", timeout=20, metadata=metadata)
                found[method] = "OK"
            except grpc.RpcError as error:
                found[method] = error.code().name
    return {method: status for method, status in found.items() if status not in ("UNIMPLEMENTED", "UNAVAILABLE")}


def test_a_running_cluster_without_a_token_is_refused(home: Path) -> None:
    with pytest.raises(ConfigError, match="needs a token"):
        prepare_environment("head:6379")


def test_a_local_cluster_gets_a_token_that_only_its_user_can_read(home: Path) -> None:
    prepare_environment(None)
    path = home / TOKEN_FILE
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    first = path.read_text()
    assert len(first) == 64
    prepare_environment(None)
    assert path.read_text() == first


def test_a_connection_is_used_and_stays_open(ray_cluster: RayCluster) -> None:
    with ray_session() as ray:
        assert ray.get_runtime_context().gcs_address == ray_cluster.address
        assert ray.get(ray.put(3)) == 3
    assert ray.is_initialized()


def test_a_started_cluster_listens_on_loopback_alone(ray_cluster: RayCluster) -> None:
    assert ray_cluster.address.startswith("127.0.0.1:")
    assert {address for address, _ in listening()} <= {"127.0.0.1", "::ffff:127.0.0.1"}


def test_nothing_of_a_cluster_answers_without_its_token(ray_cluster: RayCluster, ray_token: Path) -> None:
    ray_cluster.ray.get(ray_cluster.ray.remote(lambda: 3).remote())  # a worker has started
    ports = {port for _, port in listening()}
    every = {method for methods in METHODS.values() for method in methods}
    for token in (None, "8" * 64):
        refusals = [answers(port, token) for port in ports]
        assert {method for each in refusals for method in each} == every
        assert {status for each in refusals for status in each.values()} == {"UNAUTHENTICATED"}
    admitted = [answers(port, ray_token.read_text()) for port in ports]
    assert "UNAUTHENTICATED" not in {status for each in admitted for status in each.values()}


def test_the_agent_of_a_cluster_refuses_jobs_without_its_token(ray_cluster: RayCluster) -> None:
    found = set()
    for _, port in listening():
        with suppress(httpx.HTTPError):
            found.add(httpx.post(f"http://127.0.0.1:{port}/api/job_agent/jobs/", json={"entrypoint": "id"}).status_code)
    assert found == {401, 405}  # 405: metrics, which are read only
