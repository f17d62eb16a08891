"""dysk-csi as a process: its socket, its end, what it says of itself and logs."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import grpc
import pytest

from blobfuse_dysk import commands
from blobfuse_dysk.kubernetes.csi.proto import csi_pb2 as pb
from tests.kubernetes.ask import create
from tests.kubernetes.client import Client, refusal
from tests.kubernetes.stack import Stack
from tests.polling import eventually


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "blobfuse_dysk.kubernetes.csi.main", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_the_driver_tells_who_it_is_and_is_well(drivers: Stack, controller: Client) -> None:
    told = controller.GetPluginInfo(pb.GetPluginInfoRequest())
    assert (told.name, bool(told.vendor_version)) == ("csi-dysk", True)
    assert controller.Probe(pb.ProbeRequest()).ready.value
    kinds = pb.PluginCapability.Service
    found = controller.GetPluginCapabilities(pb.GetPluginCapabilitiesRequest()).capabilities
    services = {each.service.type for each in found if each.HasField("service")}
    assert services == {kinds.CONTROLLER_SERVICE, kinds.SNAPSHOT_METADATA_SERVICE}
    assert [each.volume_expansion.type for each in found if each.HasField("volume_expansion")] == [
        pb.PluginCapability.VolumeExpansion.ONLINE
    ]


def test_a_driver_whose_credentials_cannot_be_read_is_not_well(drivers: Stack) -> None:
    driver = drivers.start("controller", "--name", "other-dysk")
    client = driver.client()
    assert client.GetPluginInfo(pb.GetPluginInfoRequest()).name == "other-dysk"
    conf = drivers.dirs.config / f"{drivers.server.account}.conf"
    conf.chmod(0o644)
    try:
        code, line = refusal(lambda: client.Probe(pb.ProbeRequest()))
        assert code == "FAILED_PRECONDITION"
        assert "can be read or written by others" in line
    finally:
        conf.chmod(0o600)
    assert client.Probe(pb.ProbeRequest()).ready.value
    client.close()
    assert driver.end() == 0


def test_the_socket_is_its_users_alone_and_goes_with_the_driver(drivers: Stack) -> None:
    driver = drivers.start("controller")
    status = driver.socket.stat()
    assert (stat.S_IMODE(status.st_mode), status.st_uid) == (0o600, os.geteuid())
    assert driver.end() == 0
    assert not driver.socket.exists()


def test_a_second_driver_does_not_take_over_the_path_of_a_live_one(drivers: Stack) -> None:
    driver = drivers.start("controller")
    second = run("--mode", "controller", "--endpoint", driver.endpoint)
    assert second.returncode == 1
    assert second.stderr.count("\n") == 1
    assert f"another dysk-csi serves {driver.socket}" in second.stderr
    client = driver.client()
    assert client.Probe(pb.ProbeRequest()).ready.value
    client.close()
    assert driver.end() == 0


def test_what_a_killed_driver_left_is_replaced(drivers: Stack) -> None:
    driver = drivers.start("controller")
    driver.kill()
    assert driver.socket.exists()
    again = drivers.start_on(driver.socket, "controller")
    assert again.end() == 0


def test_calls_under_way_are_finished_at_the_end(drivers: Stack, name: str) -> None:
    driver = drivers.start("controller")
    client = driver.client()
    fault = drivers.server.fault("delay", operation="put_blob", blob=f"volumes/{name}", times=1)
    call = client.future("CreateVolume", create(drivers, name))
    eventually(lambda: any(each["hits"] for each in drivers.server.faults() if each["id"] == fault))
    driver.process.send_signal(signal.SIGTERM)
    eventually(lambda: "ending" in driver.log.read_text())
    drivers.server.release()
    assert call.result().volume.volume_id.endswith(name)
    assert driver.process.wait(30) == 0
    client.close()


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--endpoint", "tcp://0.0.0.0:1"), "write unix:///csi/csi.sock"),
        (("--endpoint", "unix:///nowhere/at/all/csi.sock"), "cannot be made"),
        (("--endpoint", "unix:///tmp/x.sock", "--name", "x" * 64), "not 1 to 63 characters"),
        (("--endpoint", "unix:///tmp/x.sock", "--name", "my driver"), "letters, digits, - and ."),
        (("--endpoint", "unix:///tmp/x.sock", "--name", "csi-"), "letters, digits, - and ."),
        (("--endpoint", "unix:///tmp/x.sock", "--mode", "both"), "invalid choice: 'both'"),
        ((), "--endpoint: see dysk-csi --help"),
        (("--endpoint", "unix:///tmp/x.sock", "--container", "disks"), "'disks' is not complete: write --container"),
    ],
)
def test_a_command_line_that_cannot_be_is_refused_in_one_line(arguments: tuple[str, ...], told: str) -> None:
    done = run("--mode", "controller", *arguments)
    assert done.returncode in (1, 2)
    assert done.stderr.startswith("dysk-csi: ")
    assert done.stderr.count("\n") == 1
    assert told in done.stderr


def test_without_grpc_one_line_says_what_to_install(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import importlib.util as u\n"
        "real = u.find_spec\n"
        "u.find_spec = lambda name, *more: None if name == 'grpc' else real(name, *more)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; from {commands.__name__} import dysk_csi; sys.exit(dysk_csi())"],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "pip install 'blobfuse-dysk[csi]'" in done.stderr


def test_a_call_is_one_line_of_the_log_without_its_secrets(drivers: Stack, name: str) -> None:
    driver = drivers.start("controller")
    client = driver.client()
    client.CreateVolume(create(drivers, name))
    refusal(lambda: client.CreateVolume(create(drivers, f"{name}-large", 9 << 40)))
    with pytest.raises(grpc.RpcError):
        client.CreateVolume(create(drivers, f"{name}\x1b[2J"))
    client.close()
    assert driver.end() == 0
    lines = [line for line in driver.log.read_text().splitlines() if "CreateVolume" in line]
    assert [" OK " in line for line in lines] == [True, False, False]
    assert f"CreateVolume {name}-large OUT_OF_RANGE" in lines[1]
    assert "\x1b" not in driver.log.read_text()
    assert drivers.server.key not in driver.log.read_text()


def test_a_probe_that_is_well_is_no_line_of_the_log(drivers: Stack) -> None:
    driver = drivers.start("controller")
    client = driver.client()
    assert client.Probe(pb.ProbeRequest()).ready.value
    conf = drivers.dirs.config / f"{drivers.server.account}.conf"
    conf.chmod(0o644)
    try:
        refusal(lambda: client.Probe(pb.ProbeRequest()))
    finally:
        conf.chmod(0o600)
    client.close()
    assert driver.end() == 0
    lines = [line for line in driver.log.read_text().splitlines() if " Probe " in line]
    assert ["FAILED_PRECONDITION" in line for line in lines] == [True]
