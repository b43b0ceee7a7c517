"""vLLM's real schedulers over a toy model whose tokens depend on every value of its KV memory.

The value at a position is a hash of the value before it and of the token there; the token that follows the last
position is read off its value. So a block that was freed too early, copied wrongly or not at all shows in the tokens.
Blocks that were copied out are overwritten at once where nobody may share them.
"""

from __future__ import annotations

from collections import deque
from pathlib import Path
from typing import Any

import torch
from attrs import define, field
from vllm.config import (
    CacheConfig,
    KVTransferConfig,
    LoRAConfig,
    ModelConfig,
    ParallelConfig,
    SchedulerConfig,
    VllmConfig,
)
from vllm.sampling_params import SamplingParams
from vllm.utils.hashing import sha256
from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash
from vllm.v1.core.single_type_kv_cache_manager import register_all_kvcache_specs
from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec
from vllm.v1.outputs import ModelRunnerOutput
from vllm.v1.request import Request
from vllm.v1.structured_output import StructuredOutputManager

BLOCK = 16
VOCAB = 500
GIB = 2**30
JUNK = -1


def make_scheduler(
    cls: Any,
    model: Path,
    *,
    blocks: int = 2000,
    host_blocks: float = 0,
    settings: dict[str, Any] | None = None,
    caching: bool = False,
    overlapped: bool = False,
    priority: bool = False,
    seats: int = 64,
    tokens: int = 512,
    v2_runner: bool = True,
    lora: bool = False,
) -> Any:
    """A scheduler of a class, over a configuration of a tiny model; no engine and no worker behind it."""
    transfer = None
    spec = FullAttentionSpec(block_size=BLOCK, num_kv_heads=1, head_size=1, dtype=torch.float32)
    if host_blocks:
        transfer = KVTransferConfig(
            kv_connector="HostConnector",
            kv_connector_module_path="alignedsched.adapters.vllm.connector",
            kv_role="kv_both",
            kv_connector_extra_config={"host_gib": host_blocks * spec.page_size_bytes / GIB},
        )
    cache = CacheConfig(block_size=BLOCK, enable_prefix_caching=caching)
    cache.num_gpu_blocks = blocks
    config = VllmConfig(
        model_config=ModelConfig(model=str(model), dtype="float32", seed=0, max_model_len=4096),
        scheduler_config=SchedulerConfig(
            max_num_seqs=seats,
            max_num_batched_tokens=tokens,
            max_model_len=4096,
            enable_chunked_prefill=True,
            async_scheduling=overlapped,
            is_encoder_decoder=False,
            policy="priority" if priority else "fcfs",
        ),
        cache_config=cache,
        parallel_config=ParallelConfig(),
        kv_transfer_config=transfer,
        lora_config=LoRAConfig() if lora else None,
        additional_config={} if settings is None else {"alignedsched": settings},
    )
    register_all_kvcache_specs(config)
    made = cls(
        vllm_config=config,
        kv_cache_config=KVCacheConfig(
            num_blocks=blocks, kv_cache_tensors=[], kv_cache_groups=[KVCacheGroupSpec(["layer"], spec)]
        ),
        block_size=BLOCK,
        log_stats=True,
        structured_output_manager=StructuredOutputManager(config),
    )
    made.use_v2_model_runner = v2_runner
    return made


def make_request(name: str, prompt: list[int], tokens: int, *, priority: int = 0, arrival: float = 0.0) -> Request:
    """A greedy request for exactly ``tokens`` tokens."""
    init_none_hash(sha256)
    sampling = SamplingParams(temperature=0.0, max_tokens=tokens, ignore_eos=True)
    return Request(
        request_id=name,
        prompt_token_ids=prompt,
        sampling_params=sampling,
        pooling_params=None,
        priority=priority,
        arrival_time=arrival,
        block_hasher=get_request_block_hasher(BLOCK, sha256),
    )


def answer(prompt: list[int], tokens: int) -> list[int]:
    """What the toy model answers, computed without any memory."""
    value = 0
    for token in prompt:
        value = hash((value, token))
    made: list[int] = []
    while len(made) < tokens:
        made.append(value % VOCAB)
        value = hash((value, made[-1]))
    return made


@define(eq=False)
class ToyRunner:
    """Carries steps out, in order, over one table of device blocks and one of host blocks."""

    vandal: bool  # overwrite what was copied out
    device: dict[int, list[int]] = field(factory=dict)
    host: dict[int, list[int]] = field(factory=dict)
    blocks: dict[str, list[int]] = field(factory=dict)
    tokens: dict[str, list[int]] = field(factory=dict)
    computed: int = 0

    def run(self, step: Any) -> ModelRunnerOutput:
        """One step: copies out, copies back, then each request's tokens."""
        copies = step.kv_connector_metadata
        if copies is not None:
            for device, host in copies.out:
                self.host[host] = list(self._block(device))
                if self.vandal:
                    self.device[device] = [JUNK] * BLOCK
            for device, host in copies.back:
                self.device[device] = list(self.host[host])
        starts = self._told(step)
        names = list(step.num_scheduled_tokens)
        sampled = [self._compute(name, starts[name], step.num_scheduled_tokens[name]) for name in names]
        return ModelRunnerOutput(names, {name: at for at, name in enumerate(names)}, sampled)

    def _block(self, block: int) -> list[int]:
        return self.device.setdefault(block, [JUNK] * BLOCK)

    def _told(self, step: Any) -> dict[str, int]:
        """Take in what the step says of its requests; the first position of each to compute."""
        starts: dict[str, int] = {}
        for new in step.scheduled_new_reqs:
            self.blocks[new.req_id] = list(new.block_ids[0])
            self.tokens.setdefault(new.req_id, list(new.prompt_token_ids))
            starts[new.req_id] = new.num_computed_tokens
        cached = step.scheduled_cached_reqs
        for at, name in enumerate(cached.req_ids):
            more = cached.new_block_ids[at]
            if name in cached.resumed_req_ids:
                self.blocks[name] = []
            self.blocks[name] += more[0] if more is not None else []
            starts[name] = cached.num_computed_tokens[at]
        return starts

    def _compute(self, name: str, start: int, count: int) -> list[int]:
        tokens, blocks = self.tokens[name], self.blocks[name]
        value = self._block(blocks[(start - 1) // BLOCK])[(start - 1) % BLOCK] if start else 0
        for at in range(start, start + count):
            value = hash((value, tokens[at]))
            self._block(blocks[at // BLOCK])[at % BLOCK] = value
        self.computed += count
        if start + count < len(tokens):
            return []
        tokens.append(value % VOCAB)
        return [tokens[-1]]


@define
class Outcome:
    """Tokens by request, steps scheduled, how many of them were empty, and tokens computed."""

    tokens: dict[str, list[int]]
    steps: int
    empty: int
    computed: int


def serve(scheduler: Any, requests: list[Request], *, ahead: int = 0, vandal: bool = False, later: int = 0) -> Outcome:
    """Serve all requests to their ends, ``ahead`` steps being under way when the next is scheduled.

    ``later`` requests more come each step after the first half of them.
    """
    runner, flying = ToyRunner(vandal), deque[tuple[Any, ModelRunnerOutput]]()
    made: dict[str, list[int]] = {request.request_id: [] for request in requests}
    waiting = deque(requests)
    for _ in range(len(requests) // 2 if later else len(requests)):
        scheduler.add_request(waiting.popleft())
    steps = empty = 0
    while waiting or scheduler.has_unfinished_requests() or flying:
        for _ in range(min(later, len(waiting))):
            scheduler.add_request(waiting.popleft())
        step = scheduler.schedule()
        steps += 1
        empty += not step.total_num_scheduled_tokens
        flying.append((step, runner.run(step)))
        while len(flying) > ahead or (flying and not step.total_num_scheduled_tokens):
            for outputs in scheduler.update_from_output(*flying.popleft()).values():
                for output in outputs.outputs:
                    made[output.request_id] += output.new_token_ids
        assert steps < 100_000, "no end in sight"
    return Outcome(made, steps, empty, runner.computed)
