"""A real Prometheus that scrapes daemons once a second."""

import contextlib
import json
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from tests.support.processes import free_port, give_back, process


class Prometheus:
    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"

    def ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/-/ready") as answer:
                return answer.status == 200
        except OSError:
            return False

    def query(self, query: str) -> list[dict]:
        """Return what a query finds now; raises AssertionError for one that is none."""
        return self._ask("query", query=query)

    def range(self, query: str, start: float, end: float, step: float = 1) -> list[dict]:
        """Return what it found in a time, as graphs show it."""
        return self._ask("query_range", query=query, start=start, end=end, step=step)

    def rules(self) -> list[dict]:
        """Return the loaded alerts."""
        with urllib.request.urlopen(f"{self.url}/api/v1/rules") as answer:
            groups = json.load(answer)["data"]["groups"]
        return [rule for group in groups for rule in group["rules"]]

    def _ask(self, what: str, **parameters) -> list[dict]:
        asked = urllib.parse.urlencode(parameters)
        try:
            with urllib.request.urlopen(f"{self.url}/api/v1/{what}?{asked}") as answer:
                return json.load(answer)["data"]["result"]
        except urllib.error.HTTPError as error:
            with error:
                raise AssertionError(f"{parameters}: {error.read().decode()}") from None


@contextlib.contextmanager
def prometheus(
    directory: Path, targets: dict[str, str], token: Path, rules: Path
) -> Iterator[Prometheus]:
    """Run one for these targets (address -> what the instance is called)."""
    directory.mkdir()
    static = [
        {"targets": [address], "labels": {"instance": name}} for address, name in targets.items()
    ]
    config = {
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "rule_files": [str(rules)],
        "scrape_configs": [
            {
                "job_name": "modelpack-cache",
                "authorization": {"credentials_file": str(token)},
                "static_configs": static,
            }
        ],
    }
    (directory / "prometheus.yml").write_text(json.dumps(config))
    port = free_port()
    running = Prometheus(port)
    command = [
        "prometheus", f"--config.file={directory / 'prometheus.yml'}",
        f"--storage.tsdb.path={directory / 'data'}", f"--web.listen-address=127.0.0.1:{port}",
    ]  # fmt: skip
    with process(command, directory / "log", running.ready):
        yield running
    give_back(port)
