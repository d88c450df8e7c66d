"""The examples of running the proxy: everything in them can be read by what it is for, and fits together."""

import configparser
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

from haclient.config import Config

EXAMPLES = Path(__file__).resolve().parents[3] / "examples" / "proxy"
COMPOSE = yaml.safe_load((EXAMPLES / "compose.yaml").read_text())
KUBERNETES = list(yaml.safe_load_all((EXAMPLES / "kubernetes.yaml").read_text()))


def of_kind(kind):
    return [each for each in KUBERNETES if each["kind"] == kind]


def config_map():
    (found,) = of_kind("ConfigMap")
    return found["data"]["haclient.toml"]


def pod():
    (deployment,) = of_kind("Deployment")
    return deployment["spec"]["template"]["spec"]


def uncommented(text):
    """The same file with every setting that is shown in a comment switched on."""
    return re.sub(r"^# (\[proxy\.tls\]|\w+ = )", r"\1", text, flags=re.MULTILINE)


def test_configurations_load(monkeypatch):
    config = Config.from_file(EXAMPLES / "haclient.toml")
    assert config.proxy.workers == 2
    assert [e.address for e in Config.from_file(EXAMPLES / "app.toml").clusters[0].endpoints] == [
        "proxy-a:19530",
        "proxy-b:19530",
    ]
    monkeypatch.setenv("PROXY_ADMIN_TOKEN", "token")
    assert Config.load(config=tomllib.loads(config_map())).proxy.admin_token.get_secret_value() == "token"


def test_what_is_shown_in_comments_is_right_too(monkeypatch, tmp_path):
    import trustme

    for name in ("MILVUS_USER", "MILVUS_PASSWORD", "PROXY_ADMIN_TOKEN", "PROXY_TOKEN"):
        monkeypatch.setenv(name, name)
    trustme.CA().issue_cert("proxy").private_key_and_cert_chain_pem.write_to_path(tmp_path / "both.pem")
    text = uncommented((EXAMPLES / "haclient.toml").read_text())
    text = re.sub(r'"/etc/haclient/proxy\.(pem|key)"', f'"{tmp_path / "both.pem"}"', text)
    config = Config.load(config=tomllib.loads(text))
    assert config.proxy.tls.cert_file
    assert config.proxy.tokens[0].get_secret_value() == "PROXY_TOKEN"


@pytest.mark.parametrize("name", ["haclient.toml", "app.toml"])
def test_what_is_said_of_other_files_is_true(name):
    for path in re.findall(r"\.\./\S+\.toml", (EXAMPLES / name).read_text()):
        assert (EXAMPLES / path).exists()


# --- everyone waits longer than the grace period ---------------------------------------------------------------


def test_whoever_stops_it_waits_for_its_calls():
    grace_s = Config.from_file(EXAMPLES / "haclient.toml").proxy.grace_s
    for name in ("proxy-a", "proxy-b"):
        assert int(COMPOSE["services"][name]["stop_grace_period"].removesuffix("s")) > grace_s + 5
    unit = unit_file()
    assert int(unit["Service"]["TimeoutStopSec"]) > grace_s + 5
    (container,) = pod()["containers"]
    pause_s = int(container["lifecycle"]["preStop"]["exec"]["command"][1])
    settings = tomllib.loads(config_map())["proxy"]
    assert pod()["terminationGracePeriodSeconds"] > pause_s + settings["grace_s"] + 5


# --- systemd -------------------------------------------------------------------------------------------------


def unit_file():
    unit = configparser.ConfigParser(strict=False, interpolation=None)
    unit.optionxform = str
    unit.read(EXAMPLES / "haclient-proxy.service")
    return unit


def test_systemd_unit(tmp_path):
    """What systemd itself finds in it, once there is a program where the unit looks for one."""
    verify = shutil.which("systemd-analyze")
    if verify is None:
        pytest.skip("needs systemd-analyze (apt-get install systemd)")
    unit = tmp_path / "haclient-proxy.service"
    text = (EXAMPLES / "haclient-proxy.service").read_text()
    assert text.count("/opt/haclient/bin/haclient") == 1
    unit.write_text(text.replace("/opt/haclient/bin/haclient", sys.executable))
    result = subprocess.run([verify, "verify", str(unit)], capture_output=True, text=True, check=False)
    complaints = [line for line in result.stderr.splitlines() if "haclient-proxy" in line]
    assert (result.returncode, complaints) == (0, []), result.stderr


def test_systemd_stops_the_supervisor_alone():
    """Workers are its own to stop: KillMode=mixed sends SIGTERM to the first process only."""
    service = unit_file()["Service"]
    assert service["Type"] == "notify"
    assert service["KillMode"] == "mixed"
    assert service["ExecReload"] == "/bin/kill -HUP $MAINPID"
    assert service["RestartPreventExitStatus"] == "2"


# --- compose -------------------------------------------------------------------------------------------------


def test_compose():
    services = COMPOSE["services"]
    assert services["app"]["command"][:2] == ["http://proxy-a:19530", "http://proxy-b:19530"]
    assert services["app"]["depends_on"].keys() == services.keys() - {"app"}
    for name in ("proxy-a", "proxy-b"):
        (test,) = [part for part in services[name]["healthcheck"]["test"] if "readyz" in part]
        compile(test, "healthcheck", "exec")
        assert Config.from_file(EXAMPLES / "haclient.toml").proxy.admin in test
        for volume in services[name]["volumes"]:
            assert (EXAMPLES / volume.split(":")[0]).exists()
    assert (EXAMPLES / "Dockerfile").exists()


# --- Kubernetes ----------------------------------------------------------------------------------------------


def test_kubernetes_objects_find_each_other():
    (deployment,) = of_kind("Deployment")
    labels = deployment["spec"]["template"]["metadata"]["labels"].items()
    (budget,) = of_kind("PodDisruptionBudget")
    selectors = [deployment["spec"]["selector"]["matchLabels"], budget["spec"]["selector"]["matchLabels"]]
    selectors += [service["spec"]["selector"] for service in of_kind("Service")]
    assert all(selector.items() <= labels for selector in selectors)
    assert budget["spec"]["minAvailable"] < deployment["spec"]["replicas"]
    (volume,) = pod()["volumes"]
    assert volume["configMap"]["name"] == of_kind("ConfigMap")[0]["metadata"]["name"]


def test_kubernetes_ports_are_those_of_the_configuration(monkeypatch):
    monkeypatch.setenv("PROXY_ADMIN_TOKEN", "token")
    proxy = Config.load(config=tomllib.loads(config_map())).proxy
    (container,) = pod()["containers"]
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert proxy.listen == f"0.0.0.0:{ports['milvus']}"
    assert proxy.admin == f"0.0.0.0:{ports['admin']}"
    assert container["readinessProbe"]["httpGet"] == {"path": "/readyz", "port": "admin"}
    assert container["livenessProbe"]["httpGet"] == {"path": "/healthz", "port": "admin"}
    for service in of_kind("Service"):
        assert all(port["port"] == ports[port["targetPort"]] for port in service["spec"]["ports"])


def test_the_sdk_sees_every_pod_behind_a_headless_service():
    (headless,) = [service for service in of_kind("Service") if service["spec"].get("clusterIP") == "None"]
    text = (EXAMPLES / "kubernetes.yaml").read_text()
    shown = re.search(r"#   \[\[cluster\]\]\n(#   .*\n)+", text)[0].replace("#   ", "")
    (cluster,) = Config.load(config=tomllib.loads(shown)).clusters
    assert cluster.endpoints[0].host == headless["metadata"]["name"]
    assert cluster.discovery == "dns"


def test_a_pod_has_room_for_what_its_workers_may_hold(monkeypatch):
    monkeypatch.setenv("PROXY_ADMIN_TOKEN", "token")
    proxy = Config.load(config=tomllib.loads(config_map())).proxy
    limit = pod()["containers"][0]["resources"]["limits"]["memory"]
    assert proxy.workers * (proxy.limits.memory_bytes + (200 << 20)) < int(limit.removesuffix("Mi")) << 20
