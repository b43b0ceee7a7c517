"""The `alignedsched-torch` command: `generate` answers prompts with a real model, `tiny` makes one to try it with,
`calibrate` measures the machine.

Exit codes as of `alignedsched`: 0 done, 1 a failure that is not the caller's, 2 wrong use or bad input (one bad prompt
among good ones too: the others are answered), 130 interrupted by Ctrl-C.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from contextlib import closing, nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attrs import evolve

from alignedsched.cli.arguments import Parser, UsageError
from alignedsched.cli.files import JsonFile
from alignedsched.errors import AlignedSchedError, CallerError
from alignedsched.report.terminal import print_report
from alignedsched.report.text import encodable, printable

from .calibrate import command

if TYPE_CHECKING:
    from .clusters import Workers
    from .engine import Engine
    from .prompt_file import Line
    from .prompts import Completion, Prompt
    from .sampling import Sampling

FAILED, WRONG_USE, INTERRUPTED = 1, 2, 130
FAMILIES = ("llama", "mistral", "qwen2", "qwen3")

GENERATE = """\
examples:
  alignedsched-torch tiny --arch llama -o tiny-llama
  echo "Once upon a time" | alignedsched-torch generate --model tiny-llama --prompts - --max-new-tokens 40

prompts:
  One a line: text, or a JSON object with prompt (text) or tokens (ids) and, where they differ from the options,
  max_new_tokens, temperature, top_p, top_k, seed. A bad line is named and does not stop the others.

Answers go to stdout in the order of the prompts, each behind the number of its line; progress and figures to stderr.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command with ``argv`` (None: the program's own) and return its exit code."""
    try:
        given = _parser().parse_args(argv)
        if given.command is None:
            raise UsageError("say what to do; commands: generate, tiny, calibrate (see `alignedsched-torch --help`)")
        if given.command == "calibrate":
            command.run(given)
            return 0
        return _tiny(given) if given.command == "tiny" else _generate(given)
    except SystemExit as end:  # --help has printed and is done
        return end.code if isinstance(end.code, int) else 0
    except ImportError as error:
        return _complain(f"failed: {error}; the extra alignedsched[torch] is needed", FAILED)
    except CallerError as error:
        return _complain(f"error: {error}", WRONG_USE)
    except (AlignedSchedError, MemoryError) as error:
        return _complain(f"failed: {error}", FAILED)
    except BrokenPipeError:
        return FAILED
    except OSError as error:
        where = f"{error.filename!r}: " if error.filename is not None else ""
        return _complain(f"error: {where}{error.strerror or error}", WRONG_USE)
    except KeyboardInterrupt:
        return _complain("interrupted", INTERRUPTED)


def _complain(message: str, code: int) -> int:
    sys.stderr.write(encodable(f"alignedsched-torch: {printable(message)}\n", sys.stderr))
    return code


def _parser() -> argparse.ArgumentParser:
    top = Parser(prog="alignedsched-torch", description=__doc__, allow_abbrev=False)
    commands = top.add_subparsers(dest="command", metavar="COMMAND", parser_class=Parser)
    shape = argparse.RawDescriptionHelpFormatter
    generate = commands.add_parser("generate", help="answer prompts", epilog=GENERATE, formatter_class=shape)
    need = generate.add_argument_group("what")
    need.add_argument("--model", metavar="DIR", required=True, help="a model folder: config.json and safetensors")
    need.add_argument("--prompts", metavar="FILE", required=True, help="one prompt a line; - is stdin")
    need.add_argument("--max-new-tokens", metavar="N", type=int, default=128, help="of each answer (default: 128)")
    draw = generate.add_argument_group("how tokens are chosen (default: the likeliest)")
    draw.add_argument("--temperature", metavar="T", type=float, default=0.0)
    draw.add_argument("--top-p", metavar="P", type=float, default=1.0)
    draw.add_argument("--top-k", metavar="K", type=int, default=0)
    draw.add_argument("--seed", metavar="N", type=int, default=0)
    on = generate.add_argument_group("who decides, and on what")
    on.add_argument(
        "--policy", metavar="P", default="cost_aligned", help="the scheduling policy (default: cost_aligned)"
    )
    on.add_argument("--device", metavar="D", default="cpu", help="cpu, cuda or cuda:N (default: cpu)")
    on.add_argument("--dtype", metavar="T", help="float64, float32, bfloat16 or float16 (default: the model's own)")
    on.add_argument(
        "--attention", metavar="A", default="auto",
        help="torch, triton, triton_invariant, triton_unsplit or flashinfer (default: triton on a GPU, else torch)",
    )  # fmt: skip
    on.add_argument("--topology", metavar="T", help="of this process: colocated (default) or disaggregated")
    on.add_argument("--kv-tokens", metavar="N", type=int, help="KV memory of the device (default: what is there)")
    on.add_argument("--host-tokens", metavar="N", type=int, default=0, help="KV memory of the host (default: 0)")
    on.add_argument("--page-size", metavar="N", type=int, default=16, help="tokens a KV page (default: 16)")
    on.add_argument("--costs", metavar="FILE", help="what `calibrate` measured: policies decide by it")
    many = generate.add_argument_group("in several processes (any of these)")
    many.add_argument("--workers", metavar="N", type=int, help="worker processes that decode (default: 1)")
    many.add_argument("--prefill-workers", metavar="N", type=int, help="others that prefill for them (default: 0)")
    many.add_argument("--tensor-parallel", metavar="N", type=int, help="processes each worker is made of (default: 1)")
    many.add_argument("--listen", metavar="PATH", help="wait at this socket for workers that torchrun starts")
    generate.add_argument("--json", metavar="FILE", type=Path, help="also write answers and figures as JSON")
    tiny = commands.add_parser("tiny", help="make a tiny random model folder, for demos and tests")
    tiny.add_argument("--arch", metavar="A", default="llama", help=f"one of {', '.join(FAMILIES)} (default: llama)")
    tiny.add_argument("-o", "--output", metavar="DIR", required=True, help="the folder; it is made")
    tiny.add_argument("--seed", metavar="N", type=int, default=0, help="of the weights (default: 0)")
    command.add(commands)
    return top


def _tiny(given: argparse.Namespace) -> int:
    from .tiny import write_tiny

    config = write_tiny(given.output, given.arch, seed=given.seed)
    sys.stderr.write(f"{config.family}, {config.layers} layers, random weights: {printable(given.output)}\n")
    return 0


def _lines(name: str, sampling: Sampling) -> list[Line]:
    from .prompt_file import read_prompts

    if name == "-":
        found = read_prompts(sys.stdin.buffer, "stdin", sampling)
    else:
        with Path(name).open("rb") as file:
            found = read_prompts(file, name, sampling)
    if not found:
        raise UsageError(f"--prompts {name!r} has no prompts")
    return found


def _generate(given: argparse.Namespace) -> int:
    from .sampling import Sampling

    if given.max_new_tokens < 1:
        raise UsageError(f"--max-new-tokens must be at least 1, got {given.max_new_tokens}")
    sampling = Sampling(given.temperature, given.top_p, given.top_k, given.seed)
    with JsonFile(given.json) as json_file:
        lines = _lines(given.prompts, sampling)
        from .engine import Engine

        workers = _workers(given)
        launcher = workers.launcher if workers is not None else None
        with nullcontext() if launcher is None else closing(launcher), Engine(
            given.model, policy=given.policy, device=given.device, dtype=given.dtype,
            topology=given.topology or "colocated", kv_tokens=given.kv_tokens, host_tokens=given.host_tokens,
            page_size=given.page_size, attention=given.attention, costs=given.costs, workers=workers,
        ) as engine:  # fmt: skip
            ended = _answer(engine, lines, sampling, given)
            result = _result(given, engine, lines, ended)
        json_file.write(result)
    if result["workload"]["requests"]:
        print_report(result, sys.stderr)
    return _code([completion.error for completion in ended])


def _workers(given: argparse.Namespace) -> Workers | None:
    """The worker processes that were asked for, or None."""
    asked = {"lanes": given.workers, "prefill": given.prefill_workers, "tensor_parallel": given.tensor_parallel}
    said = {name: count for name, count in asked.items() if count is not None}
    if not said and given.listen is None:
        return None
    if given.topology is not None:
        raise UsageError("--topology is of one process; with workers say --prefill-workers")
    from .clusters import Workers
    from .workers.launch import Listen

    workers = Workers(**said)
    return workers if given.listen is None else evolve(workers, launcher=Listen(given.listen))


def _answer(engine: Engine, lines: list[Line], sampling: Sampling, given: argparse.Namespace) -> list[Completion]:
    """Run all prompts, write answers and progress as they come."""
    from .answers import Answers, Progress
    from .prompts import Completion

    answers = Answers([line.number for line in lines], sys.stdout, ids=engine.text.tokenizer is None)
    progress = Progress(len(lines), sys.stderr, shown=not sys.stdout.isatty())
    ended: dict[int, Completion] = {}
    good: list[int] = []
    prompts: list[Prompt] = []
    for place, line in enumerate(lines):
        if isinstance(line.prompt, CallerError):
            ended[place] = Completion(0, (), None, "error", line.prompt)
        else:
            good.append(place)
            prompts.append(line.prompt)
    for place, wrong in ended.items():
        answers.take(place, wrong)
        progress.take(wrong)
    for number, item in engine.generate_each(prompts, max_new_tokens=given.max_new_tokens, sampling=sampling):
        answers.take(good[number], item)
        progress.take(item)
        if isinstance(item, Completion):
            ended[good[number]] = item
    progress.close()
    for place, completion in sorted(ended.items()):
        if completion.error is not None:
            where = "" if place not in good else f"{given.prompts}, line {lines[place].number}: "
            _complain(f"error: {where}{completion.error}", 0)
    return [ended[place] for place in sorted(ended)]


def _result(given: argparse.Namespace, engine: Engine, lines: list[Line], ended: list[Completion]) -> dict[str, Any]:
    """The form of ``compare``'s JSON where it applies, and the answers."""
    name = "stdin" if given.prompts == "-" else Path(given.prompts).name
    figures = engine.figures()
    return {
        "version": 1,
        "workload": {
            "name": name,
            "requests": figures["requests"]["arrived"],
            "prompt_tokens": sum(completion.prompt_tokens for completion in ended),
            "output_tokens": figures["output_tokens"],
        },
        "hardware": given.device,
        "model": Path(given.model).name or given.model,
        "topology": "disaggregated" if given.prefill_workers else given.topology or "colocated",
        "offline": True,
        "seed": given.seed,
        "runs": [figures],
        "answers": [
            {
                "line": line.number,
                "prompt_tokens": completion.prompt_tokens,
                "tokens": list(completion.tokens),
                "text": completion.text,
                "reason": completion.reason,
                "error": None if completion.error is None else str(completion.error),
            }
            for line, completion in zip(lines, ended, strict=True)
        ],
    }


def _code(errors: list[AlignedSchedError | None]) -> int:
    if any(error is not None and not isinstance(error, CallerError) for error in errors):
        return FAILED
    return WRONG_USE if any(errors) else 0


def run() -> None:
    """The entry point."""
    code = main()
    with suppress(OSError, ValueError):
        sys.stdout.flush()
    sys.exit(code)
