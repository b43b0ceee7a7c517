"""The reference executor in torch: real models over paged KV, driven by the plans of `alignedsched`.

Needs the extra `alignedsched[torch]`. Importing this package does not import torch; its modules do.
"""

from __future__ import annotations

__all__ = ["__version__"]

__version__ = "0.1.0"
