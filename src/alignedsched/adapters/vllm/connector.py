"""KV to the host and back: a vLLM KV connector that keeps what parked requests have computed.

Scheduler side: ``save`` is told of every request that leaves the device; the copies go out with the step that follows,
before anything overwrites the blocks, and come back when vLLM admits the request again. Worker side: one buffer of host
memory a layer. All copies run on the stream that computes, so they are ordered by it.

    --kv-transfer-config '{"kv_connector": "HostConnector", "kv_connector_module_path":
        "alignedsched.adapters.vllm.connector", "kv_role": "kv_both", "kv_connector_extra_config": {"host_gib": 8}}'
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from attrs import define, field
from vllm.distributed.kv_transfer.kv_connector.v1.base import (
    KVConnectorBase_V1,
    KVConnectorMetadata,
    KVConnectorRole,
)

from ...errors import ConfigError
from ...outside import is_number, show
from . import WINDOW
from .host_room import HostRoom, Pair, runs
from .settings import settings_of

GIB = 2**30


@define
class HostCopies(KVConnectorMetadata):  # type: ignore[misc]
    """A step's copies: (block of the device, block of the host)."""

    out: list[Pair] = field(factory=list)
    back: list[Pair] = field(factory=list)


class HostConnector(KVConnectorBase_V1):  # type: ignore[misc]
    """See the module. Its one option is ``host_gib``: host memory of each worker, in GiB."""

    requires_kv_delivery = False  # nobody else waits for what it keeps

    def __init__(self, vllm_config: Any, role: Any, kv_cache_config: Any) -> None:
        WINDOW.check(override=settings_of(vllm_config.additional_config).any_version)
        super().__init__(vllm_config, role, kv_cache_config)
        spec = _only_spec(kv_cache_config)
        group = kv_cache_config.kv_cache_groups[0]
        block_bytes = spec.page_size_bytes * len(group.layer_names)
        self.blocks = _host_blocks(self._kv_transfer_config.kv_connector_extra_config, block_bytes)
        self.copied_out = self.copied_back = 0  # blocks, as this side has ordered or made them
        if role is KVConnectorRole.SCHEDULER:
            self.room = HostRoom(self.blocks, spec.block_size)
            self._copies = HostCopies()
        else:
            self._layers: list[tuple[Any, Any]] = []  # the device's cache and the host's, a layer

    # -- scheduler side

    def save(self, request: str, device: Sequence[int], tokens: int) -> bool:
        """A request's ``device`` blocks are about to be freed: keep ``tokens`` of it. False if there is no room."""
        if not self.room.fits(request, tokens):
            return False
        self._copies.out += self.room.save(request, device, tokens)
        return True

    def get_num_new_matched_tokens(self, request: Any, num_computed_tokens: int) -> tuple[int, bool]:
        """Tokens the host has beyond those in the device's prefix cache; the last is always computed."""
        held = min(self.room.saved(request.request_id), request.num_tokens - 1)
        return max(0, held - num_computed_tokens), False

    def update_state_after_alloc(self, request: Any, blocks: Any, num_external_tokens: int) -> None:
        """A request got its blocks: what the host has is copied into them."""
        name = request.request_id
        if num_external_tokens == 0:
            self.room.back(name)
            return
        held = min(self.room.saved(name), request.num_tokens - 1)
        self._copies.back += self.room.load(name, blocks.get_block_ids()[0], held - num_external_tokens, held)

    def build_connector_meta(self, scheduler_output: Any) -> HostCopies:
        """This step's copies."""
        copies, self._copies = self._copies, HostCopies()
        self.copied_out += len(copies.out)
        self.copied_back += len(copies.back)
        return copies

    def request_finished(self, request: Any, block_ids: list[int]) -> tuple[bool, None]:
        """Nothing is kept of a request that has ended."""
        self.room.forget(request.request_id)
        return False, None

    def reset_cache(self) -> bool:
        """All KV is void (new weights)."""
        self.room.clear()
        self._copies = HostCopies()
        return True

    # -- worker side

    def register_kv_caches(self, kv_caches: dict[str, Any]) -> None:
        """Host memory beside each layer's cache, pinned where the device can use that."""
        seen: set[int] = set()
        for name, cache in kv_caches.items():
            if not hasattr(cache, "data_ptr") or cache.shape[0] != self._kv_cache_config.num_blocks:
                raise ConfigError(f"HostConnector: the KV cache of {name} is not one tensor with a row for each block")
            if cache.data_ptr() in seen:  # layers that share one cache
                continue
            seen.add(cache.data_ptr())
            pin = cache.device.type == "cuda"
            host = cache.new_empty((self.blocks, *cache.shape[1:]), device="cpu", pin_memory=pin)
            self._layers.append((cache, host))

    def handle_preemptions(self, kv_connector_metadata: Any) -> None:
        """Copy out, before this step overwrites anything."""
        for device, host in runs(kv_connector_metadata.out):
            for cache, kept in self._layers:
                kept[host : host + len(device)].copy_(cache[device], non_blocking=True)
        self.copied_out += len(kv_connector_metadata.out)

    def start_load_kv(self, forward_context: Any, **kwargs: Any) -> None:
        """Copy back, before this step reads it."""
        copies = self._get_connector_metadata()
        for device, host in runs(copies.back):
            for cache, kept in self._layers:
                cache[device] = kept[host : host + len(device)].to(cache.device, non_blocking=True)
        self.copied_back += len(copies.back)

    def wait_for_layer_load(self, layer_name: str) -> None:
        """Nothing to wait for: copies are ordered by the stream."""

    def save_kv_layer(self, layer_name: str, kv_layer: Any, attn_metadata: Any, **kwargs: Any) -> None:
        """Nothing is saved while a layer runs."""

    def wait_for_save(self) -> None:
        """Nothing to wait for: copies are ordered by the stream."""


def _only_spec(kv_cache_config: Any) -> Any:
    groups = kv_cache_config.kv_cache_groups
    kinds = [type(group.kv_cache_spec).__name__ for group in groups]
    if len(kinds) != 1 or not kinds[0].endswith(("FullAttentionSpec", "MLAAttentionSpec")):
        raise ConfigError(f"HostConnector: keeps full attention in one group of layers only, not {kinds}")
    return groups[0].kv_cache_spec


def _host_blocks(options: dict[str, Any], block_bytes: int) -> int:
    unknown = sorted(set(options) - {"host_gib"})
    if unknown:
        raise ConfigError(
            f"HostConnector: unknown option {show(unknown[0])} in kv_connector_extra_config, not host_gib"
        )
    size = options.get("host_gib")
    if not is_number(size, 0.0):
        raise ConfigError(f"HostConnector: kv_connector_extra_config needs host_gib, memory in GiB, got {show(size)}")
    blocks = int(size * GIB) // block_bytes
    if blocks < 1:
        raise ConfigError(f"HostConnector: host_gib {size} holds no block; one takes {block_bytes / GIB:.6f} GiB")
    return blocks
