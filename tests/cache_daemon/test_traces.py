"""Where the time of a request went, as a collector sees it."""

import subprocess
import sys

import pytest

from modelpack.spec.reference import Reference
from modelpack.verbs.push import PushOptions, push
from tests.cache_daemon.collector import collector
from tests.cache_daemon.test_logs import ask
from tests.support.processes import wait_until

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


@pytest.fixture
def reference(registry, model, name, session):
    push(str(model), Reference.parse(f"{registry.host}/{name}:v1"), session(), PushOptions())
    return f"{registry.host}/{name}:v1"


def test_a_lease_is_one_trace(daemon, registry, reference):
    """From the sender's span over the lease to the phases of the fetch, which ran elsewhere."""
    with collector() as there:
        one = daemon(f'--registries=["{registry.host}"]', f"--otlp-endpoint={there.url}").start()
        wanted = {"ref": reference, "seconds": 60}
        traceparent = f"00-{TRACE}-{PARENT}-01"
        headers = {"traceparent": traceparent, "X-Request-Id": "pod-1"}
        assert ask(one, "PUT", "/v1/leases/a", wanted, **headers)[0] == 200
        code, said = one.stop()
        assert (code, "Traceback" in said) == (0, False)
        assert there.services == {"modelpack-cache-daemon"}
    by_id = {span.id: span for span in there.spans}
    [lease], [fetch] = there.named("lease"), there.named("fetch")
    assert (lease.trace, lease.parent) == (TRACE, PARENT)
    assert (lease.what["reference"], lease.what["outcome"]) == (reference, "held")
    assert by_id[fetch.parent] == lease
    assert fetch.what["digest"] in fetch.what["reference"]
    assert fetch.what["bytes_fetched"] > 10_000_000
    assert by_id[there.named("resolve")[0].parent] == lease
    for phase in ("reserve", "reuse", "fetching", "writing to disk", "publish"):
        [span] = there.named(phase)
        assert by_id[span.parent] == fetch, phase
        assert fetch.begin <= span.begin <= span.end <= fetch.end + 1_000_000, phase
    assert {span.trace for span in there.spans} == {TRACE}
    assert {span.what["request"] for span in there.spans} == {"pod-1"}


def test_what_failed_is_said(daemon, registry):
    """The error's words are the status of the span; a broken traceparent is no parent."""
    with collector() as there:
        one = daemon(f'--registries=["{registry.host}"]', f"--otlp-endpoint={there.url}").start()
        body = {"ref": f"{registry.host}/no/such:v1"}
        assert ask(one, "POST", "/v1/models", body, traceparent="00-nonsense")[0] == 404
        one.stop()
    [ensure], [resolve] = there.named("ensure"), there.named("resolve")
    assert ensure.parent == ""
    assert resolve.parent == ensure.id
    assert "no/such" in resolve.error


def test_a_collector_that_is_away_stops_nobody(daemon, registry, reference):
    """Spans are lost, models are not."""
    options = (f'--registries=["{registry.host}"]', "--otlp-endpoint=http://127.0.0.1:1")
    one = daemon(*options).start()
    assert "ready" in one.node("prefetch", reference, "--wait", "--json")
    wait_until(lambda: one.lines("fetch ended"))
    assert one.stop()[0] == 0


def test_without_the_extra_one_line_says_so(tmp_path):
    """What is not installed, and how to install it."""
    without = (
        "import sys; sys.modules['opentelemetry.sdk'] = None; sys.argv = ['x', *sys.argv[1:]]\n"
        "from cache_daemon.main import main; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", without, f"--root={tmp_path / 'r'}", f"--socket={tmp_path / 's'}",
         "--otlp-endpoint=http://127.0.0.1:1"],
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode == 1
    assert "opentelemetry" in done.stderr.splitlines()[0]
    assert "modelpack-oci[daemon,traces]" in done.stderr
    assert len(done.stderr.splitlines()) == 2


def test_without_the_setting_nothing_is_imported():
    """What is off costs nothing."""
    done = subprocess.run(
        [sys.executable, "-c", "import sys, cache_daemon.main; print(*sys.modules)"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "opentelemetry.sdk" not in done.stdout.split()


@pytest.mark.parametrize("endpoint", ["collector:4318", "ftp://x", "http://u:p@collector"])
def test_endpoints_that_make_no_sense(endpoint, tmp_path):
    """Refused at the start, without repeating a password."""
    done = subprocess.run(
        [sys.executable, "-m", "cache_daemon.main", f"--otlp-endpoint={endpoint}"],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 2
    assert "otlp_endpoint" in done.stderr
    assert "u:p" not in done.stderr
