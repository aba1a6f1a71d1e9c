"""The other sides: curl as the ceiling, skopeo and oras-py as peers."""

import json
import shutil
import subprocess
import sys
import urllib.request
from pathlib import Path

_CURL_PULL = """
set -e
i=0
while read -r url size; do
  step=$(( (size + 3) / 4 ))
  [ $i = 0 ] || echo next
  printf -- 'url = "%s"\\nrange = "%s-%s"\\noutput = "%s/%s.%s"\\n' "$url" $(( PART * step )) \\
    $(( PART * step + step - 1 )) "$OUT" $i "$PART"
  i=$((i + 1))
done < "$LIST" > "$OUT/config.$PART"
curl -sSf -K "$OUT/config.$PART"
"""
_CURL_PUT = """
set -e
location=$(curl -sSf -i -X POST "$1/blobs/uploads/" | tr -d '\\r' | awk 'tolower($1)=="location:" {print $2}')
curl -sSf -o /dev/null -H 'Content-Type: application/octet-stream' -T "$2" "$location&digest=$3"
"""
_ORAS = """
import sys, oras.client
client = oras.client.OrasClient(insecure=True)
client.pull(target=sys.argv[1], outdir=sys.argv[2])
"""


def manifest(host: str, name: str, tag: str) -> dict:
    request = urllib.request.Request(
        f"http://{host}/v2/{name}/manifests/{tag}",
        headers={"Accept": "application/vnd.oci.image.manifest.v1+json"},
    )
    with urllib.request.urlopen(request) as answer:
        return json.load(answer)


def curl_pull(host: str, name: str, tag: str, out: Path) -> list[str]:
    """Four processes, each a quarter of every blob, on one connection each."""
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    layers = manifest(host, name, tag)["layers"]
    lines = [f"http://{host}/v2/{name}/blobs/{layer['digest']} {layer['size']}\n"
             for layer in layers if layer["size"] > 100_000]  # fmt: skip
    (out / "list").write_text("".join(lines))
    script = (
        'pids=\'\'; for PART in 0 1 2 3; do export PART; bash -c "$ONE" & pids="$pids $!"; done; '
        "for p in $pids; do wait $p; done"
    )
    return ["env", f"LIST={out / 'list'}", f"OUT={out}", f"ONE={_CURL_PULL}", "bash", "-ec", script]


def skopeo_pull(host: str, name: str, tag: str, out: Path) -> list[str]:
    shutil.rmtree(out, ignore_errors=True)
    return ["skopeo", "--insecure-policy", "copy", "--src-tls-verify=false",
            f"docker://{host}/{name}:{tag}", f"oci:{out}:{tag}"]  # fmt: skip


def oras_pull(host: str, name: str, tag: str, out: Path) -> list[str]:
    shutil.rmtree(out, ignore_errors=True)
    return [sys.executable, "-c", _ORAS, f"{host}/{name}:{tag}", str(out)]


def curl_push(host: str, name: str, blobs: list[tuple[Path, str]], jobs: int) -> list[str]:
    """PUT every layer, `jobs` at a time; their digests are known already."""
    lines = "\n".join(f"{path} {digest}" for path, digest in blobs)
    script = f'printf \'%s\\n\' "$BLOBS" | xargs -P {jobs} -L 1 bash -ec "$PUT" put http://{host}/v2/{name}'
    return ["env", f"BLOBS={lines}", f"PUT={_CURL_PUT}", "bash", "-ec", script]


def save_layers(host: str, name: str, tag: str, out: Path) -> list[tuple[Path, str]]:
    """Download the layers as files, for curl to upload."""
    out.mkdir(parents=True, exist_ok=True)
    saved = []
    for layer in manifest(host, name, tag)["layers"]:
        path = out / layer["digest"].replace(":", "-")
        if not path.exists():
            url = f"http://{host}/v2/{name}/blobs/{layer['digest']}"
            subprocess.run(["curl", "-sSf", "-o", str(path), url], check=True)
        saved.append((path, layer["digest"]))
    return saved
