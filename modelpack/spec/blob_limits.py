"""What the large registries take, as they document it; asked before an upload starts.

Sources (2026): GitHub docs "Working with the Container registry" (10 GB per layer), AWS "Amazon ECR
service quotas" (52,000 MiB per layer; public 10,000 MiB), Red Hat Quay 3.14 (S3: 5 MB parts times
10,000).
"""

import re
from typing import Final

from modelpack.spec.limits import MIB

_LIMITS: Final = (
    (re.compile(r"ghcr\.io"), "GitHub's container registry", 10 * 10**9),
    (re.compile(r"public\.ecr\.aws"), "Amazon ECR Public", 10_000 * MIB),
    (re.compile(r"\d{12}\.dkr\.ecr(-fips)?\.[a-z0-9-]+\.amazonaws\.com(\.cn)?"), "Amazon ECR",
     52_000 * MIB),
    (re.compile(r"quay\.io"), "Quay", 50 * 10**9),
)  # fmt: skip


def blob_limit(registry: str) -> tuple[str, int] | None:
    """Return (whose, bytes) of the largest blob that `registry` takes, if that is known."""
    for pattern, name, limit in _LIMITS:
        if pattern.fullmatch(registry):
            return name, limit
    return None
