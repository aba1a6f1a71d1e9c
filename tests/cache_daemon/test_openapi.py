"""The control API keeps what its OpenAPI document says, whatever is sent to it."""

import subprocess
import sys
from pathlib import Path

from tests.cache_daemon.test_daemon import Daemon
from tests.support.processes import free_port, give_back

TOKEN = "0123456789abcdef"


def test_the_api_is_as_documented(tmp_path):
    """Generated requests: no 500, no answer that the document does not know.

    Left out: that every reference and pattern that fits the schema is taken (their grammar does not
    fit into one), and that there is no 503 and 507 (they are answers here).
    """
    (tmp_path / "token").write_text(TOKEN)
    port = free_port()
    options = (f"--listen=127.0.0.1:{port}", f"--token-file={tmp_path / 'token'}",
               '--registries=["127.0.0.1:1"]')  # fmt: skip
    daemon = Daemon(tmp_path, *options).start()
    try:
        done = subprocess.run(
            [Path(sys.executable).with_name("schemathesis"), "run",
             f"http://127.0.0.1:{port}/v1/openapi.json", "-H", f"Authorization: Bearer {TOKEN}",
             "--max-examples=10", "--seed=1", "--suppress-health-check=all", "--no-color",
             "--exclude-checks=positive_data_acceptance,not_a_server_error"],
            capture_output=True, text=True, check=False, timeout=200, cwd=tmp_path,
        )  # fmt: skip
    finally:
        code, said = daemon.stop()
        give_back(port)
    assert done.returncode == 0, done.stdout[-6000:]
    assert code == 0
    assert "Traceback" not in said
