"""A vLLM engine in this process, asked question by question."""

from __future__ import annotations

import contextlib
import gc
import itertools
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from ..compat.synthetic import allow_synthetic_acceptance_on_cpu
from ..errors import HeadError
from .answer import Answer
from .methods import engine_arguments
from .prompts import Question
from .records import Record
from .refusals import reason, refusals
from .session import Counters, Done, Sampling, Step, conversations
from .step_clock import StepClock
from .step_watch import StepWatch, TraceStep
from .turns import Turns

#: Per-request acceptance of every step, which vLLM reports since 0.31.
DETAILED = {"per_request_spec_decode_metrics": "detailed"}

#: KV cache of an engine on CPU, where vLLM would take a large part of the machine's memory for each.
CPU_KV_BYTES = 2**29


def prepare_process() -> None:
    """Environment for an engine in this process; before vLLM is imported."""
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    os.environ.setdefault("VLLM_LOGGING_STREAM", "ext://sys.stderr")


@contextlib.contextmanager
def open_engine(
    target: str,
    speculative: dict[str, Any] | None,
    options: dict[str, Any],
    share: int = 1,
    tell: Callable[[str, bool], None] = lambda phase, last: None,
) -> Iterator[Engine]:
    """An engine for `target`; `speculative` is vLLM's speculative config, which may also say how to draft trees
    (see `tree.SECTION`), `options` are engine arguments.

    `share`: how many engines are to fit into this machine's memory together. `tell` hears
    of each phase as it begins, and whether it is the last.

    Raises:
        HeadError: it did not start.
    """
    prepare_process()
    if (speculative or {}).get("rejection_sample_method") == "synthetic":
        allow_synthetic_acceptance_on_cpu()
    tell("importing vLLM", False)
    from vllm import LLM
    from vllm.distributed import cleanup_dist_env_and_memory

    settings: dict[str, Any] = {"disable_log_stats": False, "seed": 0, **_defaults(share), **options}
    drafting = engine_arguments(speculative)
    if "additional_config" in drafting:
        drafting["additional_config"] |= options.get("additional_config", {})
    settings |= drafting | (DETAILED if drafting else {})
    llm = None
    try:
        try:
            tell("loading and warming up", True)
            llm = LLM(target, **settings)
        except HeadError:
            raise
        except Exception as error:
            raise HeadError(f"vLLM did not start with {target}: {reason(error)}") from error
        yield Engine(llm)
    finally:
        if llm is not None:
            llm.llm_engine.engine_core.shutdown()
        del llm
        cleanup_dist_env_and_memory()
        gc.collect()


def _defaults(share: int) -> dict[str, Any]:
    """Engine arguments that leave room for others, and on a CPU no compilation, which takes longer than a benchmark's
    questions; the user's own, and vLLM's environment variable, go first."""
    from vllm.platforms import current_platform

    if current_platform.is_cpu():
        memory = {} if os.environ.get("VLLM_CPU_KVCACHE_SPACE") else {"kv_cache_memory_bytes": CPU_KV_BYTES}
        return {"enforce_eager": True, **memory}
    return {} if share == 1 else {"gpu_memory_utilization": round(0.9 / share, 3)}


class Engine:
    """A session on an engine in this process."""

    def __init__(self, llm: Any) -> None:
        self.llm = llm
        speculative = llm.llm_engine.vllm_config.speculative_config
        self.k: int = speculative.num_speculative_tokens if speculative else 0
        self._clock = StepClock(llm)
        self._ids = itertools.count()
        self._refusals = refusals()
        #: Waited for between steps.
        self.turns = Turns()

    def run(self, questions: Sequence[Question], sampling: Sampling, concurrency: int, done: Done) -> list[str]:
        engine = self.llm.llm_engine
        waiting = deque(
            (question, seed, 0, list(question.messages)) for question, seed in conversations(questions, sampling)
        )
        active: dict[str, Answer] = {}
        refused: list[str] = []
        try:
            while waiting or active:
                while waiting and len(active) < concurrency:
                    try:
                        name, answer = self._add(*waiting.popleft(), sampling)
                        active[name] = answer
                    except self._refusals as error:
                        refused.append(reason(error))
                self.turns.between_steps()
                for output in self._clock.step(engine):
                    answer, new = active[output.request_id], output.outputs[0]
                    answer.add(list(new.token_ids), new.text or "")
                    if output.finished:
                        del active[output.request_id]
                        answer.finish_reason = new.finish_reason
                        done(_record(answer, new.spec_decode_metrics))
                        if not answer.finished:
                            turn = (answer.question, answer.seed, answer.turn + 1, answer.next_messages())
                            waiting.appendleft(turn)
        except HeadError:
            raise
        except Exception as error:
            raise HeadError(f"the engine failed: {reason(error)}") from error
        finally:
            with contextlib.suppress(Exception):  # a dead engine has nothing to abort
                engine.abort_request(list(active))
        return refused

    def _add(
        self, question: Question, seed: int | None, turn: int, messages: list[dict[str, Any]], sampling: Sampling
    ) -> tuple[str, Answer]:
        from vllm import SamplingParams, TokensPrompt
        from vllm.sampling_params import RequestOutputKind

        tokens = self.encode(question, messages)
        params = SamplingParams(
            temperature=sampling.temperature,
            max_tokens=sampling.max_tokens,
            seed=seed,
            ignore_eos=sampling.ignore_eos,
            detokenize=self._tokenizer() is not None,
            output_kind=RequestOutputKind.DELTA,
        )
        name = f"bench-{next(self._ids)}"
        answer = Answer(question, seed, turn, messages, len(tokens), self.turns.now)
        self.llm.llm_engine.add_request(name, TokensPrompt(prompt_token_ids=tokens), params)
        return name, answer

    def encode(self, question: Question, messages: Sequence[dict[str, Any]] | None = None) -> list[int]:
        """Token ids of a question's prompt, or of its conversation so far.

        Raises:
            HeadError: text without a tokenizer, or a conversation without a chat template.
        """
        if question.token_ids is not None:
            return list(question.token_ids)
        tokenizer = self._tokenizer()
        if tokenizer is None:
            raise HeadError("prompts of text for an engine without a tokenizer", "Expected: prompt_token_ids")
        if question.prompt is not None:
            return tokenizer.encode(question.prompt)
        if not getattr(tokenizer, "chat_template", None):
            raise HeadError(
                "conversations for a target whose tokenizer has no chat template",
                'Expected: prompts as {"prompt": "text"}',
                "Give its folder a chat_template.jinja, or pass other prompts",
            )
        said = list(messages if messages is not None else question.messages)
        return tokenizer.apply_chat_template(said, add_generation_prompt=True, tokenize=True, return_dict=False)

    def _tokenizer(self) -> Any:
        if self.llm.llm_engine.model_config.skip_tokenizer_init:
            return None
        return self.llm.get_tokenizer()

    def counters(self) -> Counters | None:
        metrics = {m.name: m for m in self.llm.get_metrics() if m.name.startswith("vllm:spec_decode_num")}
        if not metrics:
            return None
        return Counters(
            metrics["vllm:spec_decode_num_drafts"].value,
            metrics["vllm:spec_decode_num_draft_tokens"].value,
            metrics["vllm:spec_decode_num_accepted_tokens"].value,
            tuple(metrics["vllm:spec_decode_num_accepted_tokens_per_pos"].values),
        )

    def take_steps(self) -> list[Step]:
        return self._clock.take()

    def describe(self) -> dict[str, Any]:
        config = self.llm.llm_engine.vllm_config
        speculative = config.speculative_config
        return {
            "method": speculative.method if speculative else "none",
            "dtype": str(config.model_config.dtype).removeprefix("torch."),
            "max_model_len": config.model_config.max_model_len,
            "enforce_eager": config.model_config.enforce_eager,
            "max_num_seqs": config.scheduler_config.max_num_seqs,
            "async_scheduling": bool(config.scheduler_config.async_scheduling),
            "enable_prefix_caching": bool(config.cache_config.enable_prefix_caching),
            "device": config.device_config.device_type,
        }

    def forget(self) -> None:
        """Drop cached prefixes, so that asking again costs what asking first did."""
        self.llm.reset_prefix_cache()

    def trace(self, question: Question, sampling: Sampling) -> tuple[Record, list[TraceStep]]:
        """One answer, and every step of it as the models saw it.

        Raises:
            HeadError: vLLM refused the question, or its runner is not one that can be watched.
        """
        records: list[Record] = []
        with StepWatch(self.llm) as watch:
            self._clock.watch = watch
            try:
                refused = self.run([question], sampling, 1, records.append)
            finally:
                self._clock.watch = None
        if refused:
            raise HeadError(f"vLLM refused the prompt: {refused[0]}")
        return records[0], watch.steps

    def logprobs(self, tokens: Sequence[int], of: Sequence[int]) -> list[float]:
        """log p [len(of)] of the tokens `of` as continuations of `tokens`."""
        from vllm import SamplingParams, TokensPrompt

        params = SamplingParams(temperature=0.0, max_tokens=1, logprob_token_ids=list(of), detokenize=False)
        (output,) = self.llm.generate([TokensPrompt(prompt_token_ids=list(tokens))], params, use_tqdm=False)
        logprobs = output.outputs[0].logprobs[0]
        return [logprobs[token].logprob for token in of]


def _record(answer: Answer, metrics: Any) -> Record:
    """`metrics`: vLLM's `RequestSpecDecodeMetrics`, None without speculation."""
    accepted = list(metrics.per_step_accepted) if metrics else []
    drafted = list(metrics.per_step_drafted) if metrics else []
    plain = max(0, len(answer.pieces) - 1 - len(accepted))
    counted = sum(accepted) + len(accepted) + plain
    return answer.record(accepted, drafted, plain, max(0, counted - sum(answer.pieces[1:])))
