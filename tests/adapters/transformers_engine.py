"""A tiny transformers engine on a CPU: random weights, continuous batching step by step in this thread, or whole."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from attrs import define, field
from transformers import ContinuousBatchingConfig, GenerationConfig, LlamaConfig, LlamaForCausalLM
from transformers.generation.continuous_batching.requests import RequestState

VOCAB, PAGE = 512, 16


def tiny(*, layers: int = 2, hidden: int = 64, attention: str = "sdpa", dtype: torch.dtype = torch.float64) -> Any:
    """A random Llama. Doubles: which token is the likeliest must not hang on who shares a batch."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCAB, hidden_size=hidden, intermediate_size=2 * hidden, num_hidden_layers=layers,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=4096, eos_token_id=None,
    )  # fmt: skip
    config._attn_implementation = attention
    model: Any = LlamaForCausalLM(config)
    return model.to(dtype).eval()


def prompts(count: int, *, long: tuple[int, int] = (256, 1024), share: float = 0.25, seed: int = 0) -> list[list[int]]:
    """Prompts of 16 to 64 tokens, a ``share`` of them ``long``."""
    rng = random.Random(seed)
    lengths = [rng.randint(*long) if rng.random() < share else rng.randint(16, 64) for _ in range(count)]
    return [[rng.randrange(VOCAB) for _ in range(length)] for length in lengths]


def batching(name: str, *, blocks: int = 512, tokens: int = 512, **more: Any) -> ContinuousBatchingConfig:
    """What continuous batching is told; ``name`` is the scheduler's."""
    given = {"max_requests_per_batch": 256, **more}
    return ContinuousBatchingConfig(
        page_size=PAGE, num_blocks=blocks, max_batch_tokens=tokens, use_cuda_graph=False, scheduler_type=name, **given
    )


def decoding(new: int) -> Any:
    """Greedy, ``new`` tokens for everybody."""
    made: Any = GenerationConfig
    return made(max_new_tokens=new, do_sample=False, eos_token_id=-1, pad_token_id=0)


def generated(model: Any, prompt: Sequence[int], new: int) -> list[int]:
    """What ``generate()`` makes of one prompt alone."""
    ids = torch.tensor([list(prompt)])
    greedy = decoding(new)
    greedy.eos_token_id = None
    made = model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=greedy)
    return list(made[0, len(prompt) :].tolist())


@contextmanager
def host_memory() -> Iterator[None]:
    """transformers' host pool without an accelerator: pinned memory is asked of one, so it is not asked for."""
    real: Callable[..., torch.Tensor] = torch.empty

    def empty(*size: Any, pin_memory: bool = False, **more: Any) -> torch.Tensor:
        return real(*size, **more)

    with mock.patch.object(torch, "empty", empty):
        yield


@define
class Stepped:
    """An engine run step by step in this thread, with counts of what it did."""

    model: Any
    name: str
    config: dict[str, Any] = field(factory=dict)
    new: int = 8
    manager: Any = field(init=False)
    processor: Any = field(init=False)
    answers: dict[str, Any] = field(init=False, factory=dict)
    steps: list[tuple[int, int]] = field(init=False, factory=list)  # query rows and keys read
    evicted: list[str] = field(init=False, factory=list)
    copied_out: list[str] = field(init=False, factory=list)
    copied_in: list[str] = field(init=False, factory=list)

    def __attrs_post_init__(self) -> None:
        self.manager = self.model.init_continuous_batching(
            generation_config=decoding(self.new), continuous_batching_config=batching(self.name, **self.config)
        )
        self.processor = self.manager._create_batch_processor()
        self.manager.batch_processor = self.processor
        self._watch(self.processor.offloading_manager, self.processor.scheduler)

    def _watch(self, offloading: Any, scheduler: Any) -> None:
        offload, copy_out, restore = (
            offloading.offload_requests, offloading._offload_to_cpu, offloading.restore_scheduled_requests,
        )  # fmt: skip
        schedule = scheduler.schedule_batch

        def offload_requests() -> bool:
            before = list(scheduler.active_requests)
            done: bool = offload()
            self.evicted += [request for request in before if request not in scheduler.active_requests]
            return done

        def offload_to_cpu(victims: list[Any], tables: Any) -> set[str]:
            out: set[str] = copy_out(victims, tables)
            self.copied_out += sorted(out)
            return out

        def restore_scheduled_requests(batch: list[Any]) -> None:
            self.copied_in += [one.state.request_id for one in batch if one.state.is_cpu_offloaded]
            restore(batch)

        def schedule_batch(tokens: int, keys: int) -> Any:
            batch = schedule(tokens, keys)
            if batch[0]:
                self.steps.append((batch[2], batch[3] + batch[2]))
            return batch

        offloading.offload_requests = offload_requests
        offloading._offload_to_cpu = offload_to_cpu
        offloading.restore_scheduled_requests = restore_scheduled_requests
        scheduler.schedule_batch = schedule_batch

    @property
    def scheduler(self) -> Any:
        return self.processor.scheduler

    def ask(self, prompt: Sequence[int], request: str, answers: int = 1) -> None:
        """A client sends a request."""
        state = RequestState(request, list(prompt), max_new_tokens=self.new, num_children=answers - 1)
        self.manager.input_queue.put(state)

    def cancel(self, request: str) -> None:
        """A client has gone."""
        self.manager.cancel_queue.put(request)

    @torch.no_grad()
    def step(self) -> bool:
        """One step of the engine, as its loop does it. False: it had nothing to do."""
        if not self.processor.prepare_next_batch():
            return False
        self.manager._generation_step()
        self.processor.update_batch()
        router = self.manager.output_router.output_queue
        while not router.empty():
            answer = router.get()
            self.answers[answer.request_id] = answer
        return True

    def run(self, at_most: int = 5000) -> None:
        """Until nothing is left; every step before that must do something."""
        for _ in range(at_most):
            worked = self.step()
            assert worked or not self.processor.has_pending_requests(), "an empty batch while work exists"
            if not worked:
                return
        raise AssertionError(f"work is left after {at_most} steps")

    def tokens(self) -> dict[str, list[int]]:
        """What everybody got."""
        return {request: list(answer.generated_tokens) for request, answer in self.answers.items()}
