"""The connector of the adapter, and beside it a vandal: blocks that were copied out are overwritten at once."""

from __future__ import annotations

from typing import Any

from alignedsched.adapters.vllm.connector import HostConnector


class PoisonedConnector(HostConnector):
    """Whatever is read of a freed block before it is written again shows in the tokens. Not for prefix caching."""

    def handle_preemptions(self, kv_connector_metadata: Any) -> None:
        super().handle_preemptions(kv_connector_metadata)
        for cache, _ in self._layers:
            cache[[device for device, _ in kv_connector_metadata.out]] = 1e3
