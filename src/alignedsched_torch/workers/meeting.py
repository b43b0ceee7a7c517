"""Where the ranks of a group find each other: a store the driver serves, at a port the system chose."""

from __future__ import annotations

from typing import Any

HERE = "127.0.0.1"


class Meeting:
    """``address`` is (host, port). Without ``wanted`` there is no store, and no group needs one."""

    def __init__(self, wanted: bool) -> None:
        self._store: Any = None
        self.address = (HERE, 0)
        if wanted:
            import torch.distributed

            there: Any = torch.distributed  # names it gives without saying so in its types
            self._store = there.TCPStore(HERE, 0, None, True, wait_for_workers=False)
            self.address = (HERE, int(self._store.port))

    def close(self) -> None:
        """Serve no more."""
        self._store = None
