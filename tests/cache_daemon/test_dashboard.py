"""Dashboard and alerts before a real Prometheus that scrapes a real daemon."""

import json
import math
import re
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from grafana.panels import dashboard
from modelpack.spec.reference import Reference
from modelpack.verbs.node import Node
from modelpack.verbs.push import PushOptions, push
from tests.cache_daemon.test_mirror import Client
from tests.support.processes import free_port, give_back, wait_until
from tests.support.prometheus import prometheus

OPERATIONS = Path(__file__).parents[2] / "docs" / "operations"
ALERTS = OPERATIONS / "alerts.yml"
TOKEN = "0123456789abcdef"


def test_the_dashboard_is_the_one_that_is_described():
    """docs/operations/dashboard.json is what grafana/panels.py makes."""
    assert json.loads((OPERATIONS / "dashboard.json").read_text()) == dashboard()


def test_metrics_in_queries_exist():
    """Dashboard and alerts name documented metrics, and every metric is in one of them."""
    page = (OPERATIONS / "metrics.md").read_text()
    documented = set(re.findall(r"^\| `(modelpack_cache_\w+)", page, re.MULTILINE))
    text = (OPERATIONS / "dashboard.json").read_text() + ALERTS.read_text()
    used = {
        re.sub(r"(?<=seconds)_(bucket|sum|count)$", "", one)
        for one in re.findall(r"modelpack_cache_\w+", text)
    }
    assert used - documented == set()
    assert documented - used == {"modelpack_cache_leases", "modelpack_cache_pins"}


def test_every_alert_has_a_page():
    """The runbook has a section for each, and alerts that should fire do."""
    names = re.findall(r"- alert: (\w+)", ALERTS.read_text())
    links = re.findall(r"runbook_url: runbook\.md#(\w+)", ALERTS.read_text())
    assert links == [name.lower() for name in names]
    headings = re.findall(r"^## (\w+)$", (OPERATIONS / "runbook.md").read_text(), re.MULTILINE)
    assert set(names) <= set(headings)


def test_alerts_fire(tmp_path):
    """promtool plays time series; some fire, some do not (alerts_test.yml)."""
    shutil.copy(ALERTS, tmp_path)
    shutil.copy(Path(__file__).with_name("alerts_test.yml"), tmp_path)
    for command in (["check", "rules", "alerts.yml"], ["test", "rules", "alerts_test.yml"]):
        done = subprocess.run(
            ["promtool", *command], cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.timeout(200)
def test_every_panel_shows_data(daemon, registry, model, name, session, tmp_path):
    """Each query of the dashboard finds numbers, each alert parses and is quiet."""
    push(str(model), Reference.parse(f"{registry.host}/{name}:v1"), session(), PushOptions())
    token = tmp_path / "token"
    token.write_text(TOKEN)
    mirror, listen = free_port(), free_port()
    one = daemon(
        f'--registries=["{registry.host}"]', f"--mirror=127.0.0.1:{mirror}",
        f'--mirror-for=["{registry.host}"]', f"--listen=127.0.0.1:{listen}",
        f"--token-file={token}",
    ).start()  # fmt: skip
    targets = {f"127.0.0.1:{listen}": "node-a"}
    started = time.time()
    with prometheus(tmp_path / "prometheus", targets, token, ALERTS) as there:
        wait_until(lambda: there.query("modelpack_cache_ready == 1"))
        Node(one.socket).send(
            "PUT", "/v1/leases/a", {"ref": f"{registry.host}/{name}:v1", "seconds": 60}
        )
        client = Client(mirror, registry.host, name)
        layer = json.loads(client.ask("manifests", "v1")[2])["layers"][0]["digest"]
        assert client.ask("blobs", layer)[0] == 200
        for panel in dashboard()["panels"]:
            for target in panel["targets"]:
                query = target["expr"].replace("$__rate_interval", "10s").replace("$node", ".+")
                wait_until(lambda query=query: numbers(there.range(query, started, time.time())))
        for rule in there.rules():
            there.query(rule["query"])
            assert rule["health"] in ("ok", "unknown")
            assert rule["state"] == "inactive", rule["name"]
    give_back(mirror, listen)


def numbers(series):
    """The values of a range that are numbers."""
    return [value for one in series for _, value in one["values"] if not math.isnan(float(value))]
