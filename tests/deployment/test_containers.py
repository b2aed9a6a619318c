"""The Compose files: what they promise, and what is generated from them."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
import yaml

from fedleak import __version__, load_scenario
from fedleak.deployment.certificates import make_certificates
from fedleak.deployment.containers import Project, clients_of, engine
from fedleak.errors import ResourceError

DOCKER = Path(__file__).parents[2] / "docker"
FILES = ["compose.yml", "compose.tls.yml", "compose.gpu.yml"]
BASE = yaml.safe_load((DOCKER / "compose.yml").read_text())


def test_every_service_is_locked_down():
    tls = yaml.safe_load((DOCKER / "compose.tls.yml").read_text())
    services = {**BASE["services"], "register": tls["services"]["register"]}
    assert len(services) == 7
    for name, service in services.items():
        assert service["read_only"], name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert {"mem_limit", "cpus"} <= set(service), name
        assert service["image"].endswith(f":{__version__}"), name


def test_one_port_is_published_and_on_loopback_only():
    published = {name: s["ports"] for name, s in BASE["services"].items() if "ports" in s}
    assert list(published) == ["superlink"]
    (port,) = published["superlink"]
    assert port.startswith("127.0.0.1:")
    assert BASE["networks"]["federation"]["internal"]
    for name, service in BASE["services"].items():
        if name not in published:
            assert service.get("networks", []) == ["federation"] or (
                service["network_mode"] == "none"
            )


def test_a_client_sees_neither_captures_nor_another_ones_key():
    tls = yaml.safe_load((DOCKER / "compose.tls.yml").read_text())["services"]
    for number in range(3):
        name = f"client-{number:03d}"
        assert "volumes" not in BASE["services"][name]
        (mounted,) = tls[name]["volumes"]
        assert mounted.endswith(f"/{name}:/certs/{name}:ro")


def test_as_many_clients_are_generated_as_asked_for(tmp_path):
    names = [f"client-{number:03d}" for number in range(5)]
    made = clients_of(BASE, names, tmp_path, opted_in=lambda partition: partition != 4)["services"]
    assert list(made) == names
    for partition, (name, service) in enumerate(made.items()):
        assert service["command"][:3] == [str(partition), "--clients", "5"]
        assert service["environment"]["FEDLEAK_AUDIT_DATA"] == ("0" if partition == 4 else "1")
        assert service["volumes"] == [f"{tmp_path / name}:/certs/{name}:ro"]
        assert service["depends_on"]["register"] == {"condition": "service_completed_successfully"}
        assert service["read_only"]
    plain = clients_of(BASE, names, None, opted_in=lambda partition: True)["services"]
    assert "FEDLEAK_CERTS" not in plain["client-004"]["environment"]
    assert "volumes" not in plain["client-004"]


def test_certificates_are_looked_at_before_anything_starts(tmp_path):
    """Compose would make a folder that is missing, and end with a server that does not start."""
    scenario = load_scenario({"data": {"kind": "digits"}, "model": {"kind": "mlp"}})
    certificates = tmp_path / "certs"

    def project():
        return Project(
            scenario, "run", tmp_path / "project", compose=DOCKER, port=0, certificates=certificates
        )

    with pytest.raises(ResourceError, match=r"server/ca.pem is missing; `fedleak deploy certs"):
        project()
    make_certificates(certificates, scenario.federation.clients)
    (certificates / "client-003" / "auth.key").unlink()
    with pytest.raises(ResourceError, match=r"client-003/auth.key is missing"):
        project()
    assert not (tmp_path / "project").exists()


@pytest.mark.parametrize("further", [None, *FILES[1:]])
def test_compose_takes_the_files(further):
    try:
        command = engine()
    except ResourceError:
        pytest.skip("no Docker Compose here")
    files = [DOCKER / "compose.yml", *([DOCKER / further] if further else [])]
    arguments = [part for file in files for part in ("--file", str(file))]
    checked = subprocess.run(
        [*command, *arguments, "config", "--quiet"], capture_output=True, text=True
    )
    assert checked.returncode == 0, checked.stderr


def test_images_are_built_from_arguments_and_run_as_nobody():
    text = (DOCKER / "Dockerfile").read_text()
    assert set(re.findall(r"^FROM (\S+)", text, re.M)) == {
        "${BASE_IMAGE}",
        "requirements",
        "runtime",
    }
    targets = re.findall(r"^FROM \S+ AS (\S+)", text, re.M)
    assert targets[-3:] == ["server", "client", "auditor"]
    assert "USER 10001:10001" in text
    assert "STOPSIGNAL SIGTERM" in text
    assert text.count("HEALTHCHECK") == 3
    assert f'version="{__version__}"' in text
