"""Generation by vLLM inside this process (external launcher): it sleeps while the trainer works, without Ray.

Every rank, or every rollout.engine_tp consecutive ranks together, run an engine on their own GPUs. The order of a
rollout: wake up, push the weights if the policy is newer than the engine's, check their sums, generate, sleep. The
engine is stepped here, so that a watcher hears of every sample as it ends.
"""

import hashlib
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Any

import torch

from r1train.config.schema import RunConfig
from r1train.data.prompts import Prompt
from r1train.data.tokenizer import Tokenizer
from r1train.dist.comm import raised_by_all
from r1train.dist.init import export_ranks
from r1train.errors import R1TrainError
from r1train.model.gpt import R1Model
from r1train.model.spec import PARAMS_DTYPE
from r1train.rollout.checksum import TensorSums, joined_sums, tensor_sums
from r1train.rollout.engine import SamplingParams, Watcher
from r1train.rollout.engine_ranks import Answer, EngineJob, EngineRanks, check_agreed
from r1train.rollout.live import Job
from r1train.rollout.push import CountedWeights, Named, buckets, check_sums, check_version, fp8_weights, full_weights
from r1train.rollout.types import Group, Sample
from r1train.rollout.vllm_answers import RoutesMissing, answer_of, sample_of
from r1train.rollout.vllm_options import choose_attention, import_vllm, llm_arguments, request_fields, request_seed

# The ranks of an engine and pipeline stages tell each other what ended after so many steps: a second's work, a few
# milliseconds to tell.
STEPS_PER_EXCHANGE = 64


class VllmEngine:
    """An Engine with its own copy of the weights, as new as the policy it is asked to sample.

    seconds: what the last generate() took: push (0 where nothing was newer), and generate, until the last sample.
    """

    def __init__(self, cfg: RunConfig, module: R1Model, tokenizer: Tokenizer, *, record_routes: bool = False):
        """module: the training weights. A tokenizer whose eos_id is negative ends no response. Collective.

        Raises EnvironmentProblem where vLLM is not installed.
        """
        self._cfg, self._module, self._tokenizer = cfg, module, tokenizer
        self._record_routes = record_routes and module.config.num_moe_experts is not None
        choose_attention(cfg)
        self._vllm = import_vllm(fp8=cfg.rollout.fp8)
        self._ranks = EngineRanks(cfg.rollout.engine_tp)
        self._llm: Any = None
        self._policy_version: int | None = None
        self.seconds = {"push": 0.0, "generate": 0.0}

    def generate(
        self, prompts: list[Prompt], params: SamplingParams, *, policy_version: int, watcher: Watcher | None = None
    ) -> list[Group]:
        """Samples of each prompt, in order. Collective, because weights come from all ranks.

        Raises PushFailed, RoutesMissing and EnginesParted on every rank, and sleeps then, too.
        """
        self._wake()
        n = params.samples_per_prompt
        jobs = [Job(place, index, prompt) for place, prompt in enumerate(prompts) for index in range(n)]
        try:
            started = time.perf_counter()
            if self._policy_version != policy_version:
                self.push(policy_version)
            with raised_by_all():
                check_version(self._llm.apply_model(_version), policy_version)
            pushed = time.perf_counter()
            samples = self._draw(jobs, params, policy_version, watcher)
            self.seconds = {"push": pushed - started, "generate": time.perf_counter() - pushed}
        except R1TrainError:
            # Whoever saves the state now needs the memory.
            self._llm.sleep(level=1)
            raise
        self._llm.sleep(level=1)
        return [Group(prompt=prompt, samples=tuple(samples[k * n : k * n + n])) for k, prompt in enumerate(prompts)]

    def push(self, policy_version: int) -> None:
        """Replace the engine's weights. Raises PushFailed, on every rank, unless it then holds exactly these."""
        model, rollout = self._cfg.model, self._cfg.rollout
        plain = full_weights(self._module, model, dtype=PARAMS_DTYPE[self._cfg.optim.precision])
        weights = CountedWeights(fp8_weights(plain, model) if rollout.fp8 else plain)
        if rollout.fp8:
            # vLLM makes other tensors of FP8 weights when it has loaded them; this does that again, too.
            self._llm.collective_rpc("reload_weights", kwargs={"weights_iterator": iter(weights)})
        else:
            for bucket in buckets(weights, max_bytes=rollout.push_mib * 2**20):
                self._llm.apply_model(lambda model, bucket=bucket: _load(model, bucket))
        (held,) = self._llm.apply_model(lambda model: _stamp(model, policy_version))
        together = joined_sums(self._ranks.of_engine(held))
        with raised_by_all():
            check_sums(together, weights.sums, policy_version=policy_version)
        # What was cached was computed with the old weights.
        self._llm.reset_prefix_cache()
        self._policy_version = policy_version

    def _wake(self) -> None:
        """The engine awake; the first call starts it. Collective."""
        torch.cuda.empty_cache()
        if self._llm is not None:
            self._llm.wake_up()
            return
        export_ranks()
        arguments = llm_arguments(self._cfg, self._tokenizer, record_routes=self._record_routes)
        # Its start seeds this process.
        with self._random_numbers(self._cfg.seed):
            self._llm = self._vllm.LLM(**arguments)

    def _draw(
        self, jobs: list[Job], params: SamplingParams, policy_version: int, watcher: Watcher | None
    ) -> list[Sample]:
        """The samples, in order; the watcher hears of each when it ends. Collective over the job.

        All ranks of an engine step it over the same requests with the same random numbers, other engines with others.
        """
        samples: dict[int, Sample] = {}
        missing: RoutesMissing | None = None
        routed = self._module if self._record_routes else None
        asked, drawn = self._ranks.asked(jobs), hashlib.sha256()
        with self._random_numbers(request_seed(params, "", self._ranks.number)):
            for answers in self._answers(self._steps(asked, params, drawn), drawn):
                for answer in answers:
                    job = jobs[answer.number]
                    try:
                        sample = sample_of(
                            answer, job, tokenizer=self._tokenizer, policy_version=policy_version, routed=routed
                        )
                    except RoutesMissing as error:
                        # Other ranks wait for this one's part of the steps: it ends with all of them.
                        missing = error
                        continue
                    samples[answer.number] = sample
                    if watcher is not None:
                        watcher.finished(job.place, job.prompt, sample)
                if watcher is not None:
                    watcher.poll()
        parts = self._ranks.of_engine(drawn.hexdigest())
        with raised_by_all():
            check_agreed(parts)
            if missing is not None:
                raise missing
        return [samples[number] for number in range(len(jobs))]

    def _answers(self, steps: Iterator[list[Answer]], drawn: "hashlib._Hash") -> Iterator[list[Answer]]:
        """This rank's answers as they end, whichever stage's engine drew them. Collective over engine and stages.

        drawn: what _steps writes to. Once the ranks of an engine differ in it, nothing more is given: a watcher stores
        what it hears of, and whoever goes on from there would take it for samples. check_agreed() raises at the end.
        """
        ranks = self._ranks
        if ranks.engine_size == ranks.pp_size == 1:
            yield from steps
            return
        unfinished = True
        while unfinished:
            some = list(islice(steps, STEPS_PER_EXCHANGE))
            mine = [answer for ended in some for answer in ended if answer.owner == ranks.place]
            told = ranks.of_engine((drawn.hexdigest(), len(some) == STEPS_PER_EXCHANGE))
            agreed, more = len({digest for digest, _ in told}) == 1, any(goes_on for _, goes_on in told)
            parts = ranks.of_replica((mine, agreed, more))
            unfinished = any(more for _, _, more in parts)
            yield [answer for part, _, _ in parts for answer in part] if all(agreed for _, agreed, _ in parts) else []

    def _steps(self, asked: list[EngineJob], params: SamplingParams, drawn: "hashlib._Hash") -> Iterator[list[Answer]]:
        """Steps the engine until nothing is left, and gives what ended in each step; drawn: gets every token.

        A seed of its own per request where that costs nothing. vLLM's older runner (of DeepSeek-V3) draws such requests
        one by one in every step; there one seed is for all that an engine is asked together.
        """
        if not asked:
            return
        engine, eos_id = self._llm.llm_engine, self._tokenizer.eos_id
        each = bool(engine.vllm_config.use_v2_model_runner)
        inputs, requests = [], []
        for one in asked:
            seed = request_seed(params, one.job.prompt.id, one.job.index) if each else None
            inputs.append({"prompt_token_ids": list(one.job.prompt.token_ids)})
            requests.append(self._vllm.SamplingParams(**request_fields(params, eos_id=eos_id, seed=seed)))
        # vLLM's number of a request, without the characters that it puts behind a dash; outputs have the number.
        numbers = [name.partition("-")[0] for name in self._llm.enqueue(inputs, requests, use_tqdm=False)]
        asked_as = dict(zip(numbers, asked, strict=True))
        while engine.has_unfinished_requests():
            ended = [answer_of(output, asked_as[output.request_id]) for output in engine.step() if output.finished]
            for answer in ended:
                drawn.update(answer.tokens.tobytes())
            yield ended

    @contextmanager
    def _random_numbers(self, seed: int) -> Iterator[None]:
        """PyTorch's random numbers from this seed, and afterwards those of the trainer again."""
        device = next(self._module.parameters()).device
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(seed)
            yield


def _load(model: torch.nn.Module, bucket: list[Named]) -> None:
    """Runs inside the engine: its loader joins, cuts and copies. For BF16 and FP32 that is all."""
    model.load_weights(iter(bucket))


def _stamp(model: torch.nn.Module, policy_version: int) -> TensorSums:
    """Runs inside the engine: note whose weights these are, and sum what this rank has of it."""
    model.r1train_policy_version = policy_version
    return tensor_sums(model.named_parameters())


def _version(model: torch.nn.Module) -> int | None:
    """Runs inside the engine: the policy that was pushed last; None before the first push."""
    return vars(model).get("r1train_policy_version")
