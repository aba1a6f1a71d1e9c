"""The dashboard: which numbers are side by side, in which units.

.venv/bin/python -m grafana.panels > docs/operations/dashboard.json
"""

import json
from dataclasses import dataclass

_SOURCE = {"type": "prometheus", "uid": "${source}"}
_CREDENTIAL, _WRONG = ', for="credential"', ', result="wrong"'
_SCHEMA = 41  # Grafana 12


@dataclass(frozen=True)
class Panel:
    """Queries (legend -> PromQL), a unit of Grafana's, and what a reader should know.

    `bad` is the value from which a number is shown in red; a panel without is a graph.
    """

    title: str
    unit: str
    queries: dict[str, str]
    words: str
    stat: bool = False
    bad: float | None = None


def _name(metric: str, labels: str = "") -> str:
    return f'modelpack_cache_{metric}{{instance=~"$node"{labels}}}'


def _rate(metric: str, by: str, labels: str = "") -> str:
    return f"sum by ({by}) (rate({_name(metric, labels)}[$__rate_interval]))"


def _more(metric: str, by: str, labels: str = "") -> str:
    return f"sum by ({by}) (increase({_name(metric, labels)}[$__rate_interval]))"


def _quantile(metric: str, share: float, outcome: str) -> str:
    labels = f', outcome="{outcome}"'
    return f"histogram_quantile({share}, {_rate(f'{metric}_bucket', 'le', labels)})"


PANELS = [
    Panel("Nodes ready", "none", {"ready": f"sum({_name('ready')})"},
          "Nodes that take new models.", stat=True),
    Panel("Models", "none", {"models": f"sum({_name('models')})"},
          "Models that are here, on all chosen nodes.", stat=True),
    Panel("Held of capacity", "percentunit",
          {"held": f"max({_name('held_bytes')} / {_name('capacity_bytes')})"},
          "The fullest node: what leases and pins keep of what models may take.",
          stat=True, bad=0.9),
    Panel("Waiting for a credential", "none",
          {"waiting": f"sum({_name('waiting_prefetches', _CREDENTIAL)})"},
          "Prefetches that go on when somebody asks with a credential.", stat=True, bad=1),
    Panel("Damaged files", "none", {"damaged": f"sum({_name('damaged_files_total')})"},
          "Files whose bytes changed on the disk, since the daemons started.", stat=True, bad=1),
    Panel("Wrong layers", "none",
          {"wrong": f"sum({_name('layers_total', _WRONG)})"},
          "Artifacts that show different bytes to different readers.", stat=True, bad=1),
    Panel("Space of the cache", "bytes",
          {"used {{instance}}": _name("used_bytes"), "held {{instance}}": _name("held_bytes"),
           "may take {{instance}}": _name("capacity_bytes")},
          "Used may be near what it may take: that is what a cache is for. Held must not."),
    Panel("Disk free", "percentunit",
          {"{{instance}}": f"{_name('disk_free_bytes')} / {_name('disk_size_bytes')}"},
          "kubelet evicts pods at 15 or 10 %; the cache keeps 18 % free by default."),
    Panel("Fetches under way", "none",
          {"{{state}}": f"sum by (state) ({_name('fetches')})",
           "waiting: {{for}}": f"sum by (for) ({_name('waiting_prefetches')})"},
          "Queued for long: the slots are taken, or fetches are paused."),
    Panel("Bytes that came", "Bps", {"from the {{from}}": _rate("received_bytes_total", "from")},
          "From the registry while they come; from the disk when a model is complete."),
    Panel("Time to fetch", "s",
          {"half": _quantile("fetch_duration_seconds", 0.5, "ready"),
           "95 %": _quantile("fetch_duration_seconds", 0.95, "ready")},
          "Of models that arrived; interpolated between 0.5, 1, 2, 5, 10, 20, 60, 180 s."),
    Panel("Fetches ended", "none",
          {"{{outcome}}": _more("fetch_duration_seconds_count", "outcome")},
          "In the interval of a point. Failed: the log has the reason, by key."),
    Panel("Time to answer a lease", "s",
          {"half, held": _quantile("lease_duration_seconds", 0.5, "held"),
           "95 %, held": _quantile("lease_duration_seconds", 0.95, "held")},
          "How long a pod's mount waited for its model."),
    Panel("Evicted and refused", "none",
          {"evicted: {{reason}}": _more("evictions_total", "reason"),
           "refused: {{reason}}": _more("refusals_total", "reason")},
          "In the interval of a point."),
    Panel("Mirror", "Bps", {"from {{source}}": _rate("mirror_bytes_total", "source")},
          "What container runtimes took. From registry is relayed, and not kept."),
    Panel("Mirror answers", "reqps", {"from {{source}}": _rate("mirror_answers_total", "source")},
          "Blobs per second."),
    Panel("Scrub", "Bps", {"{{instance}}": _rate("scrubbed_bytes_total", "instance")},
          "How fast the disk is read again; 0 between the rounds."),
    Panel("Errors of the disk", "none", {"{{instance}}": _more("store_errors_total", "instance")},
          "In the interval of a point. Any: look at the kernel's log."),
]  # fmt: skip


def _drawn(panel: Panel, number: int, place: dict[str, int]) -> dict[str, object]:
    steps: list[dict[str, object]] = [{"color": "green", "value": None}]
    if panel.bad is not None:
        steps.append({"color": "red", "value": panel.bad})
    custom = {} if panel.stat else {"custom": {"fillOpacity": 10, "showPoints": "never"}}
    least = {} if panel.stat else {"min": 0} | ({"max": 1} if panel.unit == "percentunit" else {})
    options: dict[str, object] = (
        {"colorMode": "value", "reduceOptions": {"calcs": ["lastNotNull"]}}
        if panel.stat
        else {"legend": {"displayMode": "list", "placement": "bottom"},
              "tooltip": {"mode": "multi"}}
    )  # fmt: skip
    return {
        "id": number,
        "type": "stat" if panel.stat else "timeseries",
        "title": panel.title,
        "description": panel.words,
        "datasource": _SOURCE,
        "gridPos": place,
        "fieldConfig": {
            "defaults": {
                "unit": panel.unit,
                **least,
                **custom,
                "thresholds": {"mode": "absolute", "steps": steps},
            },
            "overrides": [],
        },
        "options": options,
        "targets": [
            {"refId": chr(65 + n), "datasource": _SOURCE, "expr": query, "legendFormat": legend,
             "instant": panel.stat, "range": not panel.stat}
            for n, (legend, query) in enumerate(panel.queries.items())
        ],
    }  # fmt: skip


def _places() -> list[dict[str, int]]:
    """Numbers in one row of six, graphs two in a row."""
    places, graphs = [], 0
    for number, panel in enumerate(PANELS):
        if panel.stat:
            places.append({"x": 4 * (number % 6), "y": 4 * (number // 6), "w": 4, "h": 4})
        else:
            places.append({"x": 12 * (graphs % 2), "y": 4 + 8 * (graphs // 2), "w": 12, "h": 8})
            graphs += 1
    return places


def dashboard() -> dict[str, object]:
    """Return the dashboard as Grafana imports it."""
    return {
        "uid": "modelpack-cache",
        "title": "modelpack node cache",
        "tags": ["modelpack"],
        "schemaVersion": _SCHEMA,
        "timezone": "",
        "refresh": "30s",
        "time": {"from": "now-6h", "to": "now"},
        "editable": True,
        "templating": {
            "list": [
                {"name": "source", "label": "Data source", "type": "datasource",
                 "query": "prometheus", "current": {}, "refresh": 1},
                {"name": "node", "label": "Node", "type": "query", "datasource": _SOURCE,
                 "definition": "label_values(modelpack_cache_ready, instance)",
                 "query": {"query": "label_values(modelpack_cache_ready, instance)",
                           "refId": "nodes"},
                 "refresh": 2, "sort": 1, "multi": True, "includeAll": True, "allValue": ".+",
                 "current": {"text": "All", "value": "$__all"}},
            ]
        },
        "panels": [
            _drawn(panel, number + 1, place)
            for number, (panel, place) in enumerate(zip(PANELS, _places(), strict=True))
        ],
    }  # fmt: skip


if __name__ == "__main__":
    print(json.dumps(dashboard(), indent=2))
