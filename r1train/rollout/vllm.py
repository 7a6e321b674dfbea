"""Generation by vLLM inside this process (external launcher): it sleeps while the trainer works, without Ray.

Each rank runs an engine of its own on its own GPU. The order of a rollout: wake up, push the weights if the policy is
newer than the engine's, check their sums, generate, sleep. Its engine is stepped here, so that a watcher hears of every
sample as it ends. vLLM is imported when the engine is chosen: it takes long,
needs CUDA and is an extra of its own.
"""

import hashlib
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from megatron.core.transformer.moe.moe_layer import MoELayer

from r1train.config.schema import RunConfig
from r1train.config.schema_model import ModelConfig
from r1train.convert.hf_export_config import model_to_hf
from r1train.data.prompts import Prompt
from r1train.data.tokenizer import Tokenizer
from r1train.dist.init import export_ranks
from r1train.errors import EnvironmentProblem, R1TrainError
from r1train.log.atomic import write_atomically
from r1train.model.gpt import R1Model
from r1train.model.spec import PARAMS_DTYPE
from r1train.rollout.checksum import Sums, value_sums
from r1train.rollout.engine import SamplingParams, Watcher
from r1train.rollout.live import Job
from r1train.rollout.push import CountedWeights, Named, buckets, check_sums, check_version, fp8_weights, full_weights
from r1train.rollout.types import Group, Sample

# vLLM reads these when it is imported: the engine in this process, and functions sent to the model.
ENVIRONMENT = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_ALLOW_INSECURE_SERIALIZATION": "1"}
# DeepGEMM would round the scales of FP8 blocks to powers of two: the engine would not hold what was sent.
FP8_ENVIRONMENT = {"VLLM_USE_DEEP_GEMM": "0"}
# Latent and rotary key of DeepSeek: vLLM's MLA kernels take no others, and it can compute ordinary attention instead.
MLA_WIDTHS = (512, 64)
_DTYPE_NAMES = {torch.bfloat16: "bfloat16", torch.float32: "float32"}


class RoutesMissing(R1TrainError):
    """The engine does not know which experts computed a sample."""

    exit_code = 1


class VllmEngine:
    """An Engine with its own copy of the weights, as new as the policy it is asked to sample.

    seconds: what the last generate() took: push (0 where nothing was newer), and generate, until the last sample.
    """

    def __init__(self, cfg: RunConfig, module: R1Model, tokenizer: Tokenizer, *, record_routes: bool = False):
        """module: the training weights. A tokenizer whose eos_id is negative ends no response.

        Raises EnvironmentProblem where vLLM is not installed.
        """
        self._cfg, self._module, self._tokenizer = cfg, module, tokenizer
        self._record_routes = record_routes and module.config.num_moe_experts is not None
        self._dtype = PARAMS_DTYPE[cfg.optim.precision]
        if isinstance(cfg.model, ModelConfig) and (cfg.model.kv_lora_rank, cfg.model.qk_rope_head_dim) != MLA_WIDTHS:
            os.environ.setdefault("VLLM_MLA_DISABLE", "1")
        self._vllm = import_vllm(fp8=cfg.rollout.fp8)
        self._llm: Any = None
        self._policy_version: int | None = None
        self.seconds = {"push": 0.0, "generate": 0.0}

    def generate(
        self, prompts: list[Prompt], params: SamplingParams, *, policy_version: int, watcher: Watcher | None = None
    ) -> list[Group]:
        """Samples of each prompt, in order. Collective, because weights come from all ranks."""
        self._wake()
        started = time.perf_counter()
        if self._policy_version != policy_version:
            self.push(policy_version)
        check_version(self._llm.apply_model(_version), policy_version)
        pushed = time.perf_counter()
        n = params.samples_per_prompt
        jobs = [Job(place, index, prompt) for place, prompt in enumerate(prompts) for index in range(n)]
        samples = self._draw(jobs, params, policy_version, watcher)
        self.seconds = {"push": pushed - started, "generate": time.perf_counter() - pushed}
        self._llm.sleep(level=1)
        return [Group(prompt=prompt, samples=tuple(samples[k * n : k * n + n])) for k, prompt in enumerate(prompts)]

    def push(self, policy_version: int) -> None:
        """Replace the engine's weights. Raises PushFailed unless it then holds exactly these."""
        model, rollout = self._cfg.model, self._cfg.rollout
        plain = full_weights(self._module, model, dtype=self._dtype)
        weights = CountedWeights(fp8_weights(plain, model) if rollout.fp8 else plain)
        if rollout.fp8:
            # vLLM makes other tensors of FP8 weights when it has loaded them; this does that again, too.
            self._llm.collective_rpc("reload_weights", kwargs={"weights_iterator": iter(weights)})
        else:
            for bucket in buckets(weights, max_bytes=rollout.push_mib * 2**20):
                self._llm.apply_model(lambda model, bucket=bucket: _load(model, bucket))
        (held,) = self._llm.apply_model(lambda model: _stamp(model, policy_version))
        check_sums(held, weights.sums, policy_version=policy_version)
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
        # Its start seeds this process.
        with self._random_numbers(self._cfg.seed):
            self._llm = self._vllm.LLM(**self._arguments())

    def _draw(
        self, jobs: list[Job], params: SamplingParams, policy_version: int, watcher: Watcher | None
    ) -> list[Sample]:
        """The samples, in order; the watcher hears of each when it ends.

        A seed of its own per request where that costs nothing. vLLM's older runner (of DeepSeek-V3) draws such requests
        one by one in every step; there one seed is for all that are asked together.
        """
        if not jobs:
            return []
        engine = self._llm.llm_engine
        each = bool(engine.vllm_config.use_v2_model_runner)
        inputs = [{"prompt_token_ids": list(job.prompt.token_ids)} for job in jobs]
        asked = [
            self._request(params, request_seed(params, job.prompt.id, job.index) if each else None) for job in jobs
        ]
        samples: dict[str, Sample] = {}
        with self._random_numbers(request_seed(params, "", 0)):
            # vLLM's number of a request, without the characters that it puts behind a dash; outputs have the number.
            numbers = [name.partition("-")[0] for name in self._llm.enqueue(inputs, asked, use_tqdm=False)]
            job_of = dict(zip(numbers, jobs, strict=True))
            while engine.has_unfinished_requests():
                for output in engine.step():
                    if output.finished:
                        job = job_of[output.request_id]
                        samples[output.request_id] = sample = self._sample(output, job, policy_version)
                        if watcher is not None:
                            watcher.finished(job.place, job.prompt, sample)
                if watcher is not None:
                    watcher.poll()
        return [samples[number] for number in numbers]

    @contextmanager
    def _random_numbers(self, seed: int) -> Iterator[None]:
        """PyTorch's random numbers from this seed, and afterwards those of the trainer again."""
        device = next(self._module.parameters()).device
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(seed)
            yield

    def _arguments(self) -> dict[str, Any]:
        """Of vLLM's LLM. Weights are pushed, so it starts with any."""
        rollout = self._cfg.rollout
        options: dict[str, Any] = {"enable_return_routed_experts": True} if self._record_routes else {}
        if not rollout.fp8:
            # Its kernels take experts as they are loaded. FlashInfer's (Blackwell's default) want gate and up swapped,
            # which vLLM does after its own loading, not after a push; no sum would see that.
            options["moe_backend"] = "triton"
        return {
            "model": str(self._write_config()),
            "load_format": "dummy",
            "skip_tokenizer_init": True,
            "dtype": _DTYPE_NAMES[self._dtype],
            "distributed_executor_backend": "external_launcher",
            "tensor_parallel_size": 1,
            "enable_sleep_mode": True,
            "enable_prefix_caching": True,
            "gpu_memory_utilization": rollout.gpu_memory_share,
            "max_model_len": longest_sequence(self._cfg),
            "max_num_seqs": rollout.batch_size,
            "enforce_eager": not rollout.cuda_graphs,
            # The tempered distribution, as the trainer computes it.
            "logprobs_mode": "processed_logprobs",
            "seed": self._cfg.seed,
            **options,
        }

    def _write_config(self) -> Path:
        """A folder with the config.json that vLLM asks for, one per rank."""
        folder = self._cfg.run_dir / "engine" / f"rank_{torch.distributed.get_rank():05d}"
        folder.mkdir(parents=True, exist_ok=True)
        fields = model_to_hf(self._cfg.model, dtype=_DTYPE_NAMES[self._dtype], fp8=self._cfg.rollout.fp8)
        fields |= {"bos_token_id": self._tokenizer.bos_id, "eos_token_id": self._tokenizer.eos_id}
        write_atomically(folder / "config.json", json.dumps(fields, indent=1) + "\n")
        return folder

    def _request(self, params: SamplingParams, seed: int | None) -> Any:
        """vLLM's own random numbers, from the request's seed where it has one."""
        eos_id = self._tokenizer.eos_id
        return self._vllm.SamplingParams(
            n=1,
            temperature=params.temperature,
            top_p=params.top_p,
            max_tokens=params.max_response_tokens,
            seed=seed,
            logprobs=0,
            stop_token_ids=[eos_id] if eos_id >= 0 else [],
            ignore_eos=eos_id < 0,
            detokenize=False,
        )

    def _sample(self, output: Any, job: Job, version: int) -> Sample:
        answer = output.outputs[0]
        tokens = np.array(answer.token_ids, dtype=np.int64)
        ended = bool(tokens[-1] == self._tokenizer.eos_id)
        logprobs = [choices[token].logprob for choices, token in zip(answer.logprobs, answer.token_ids, strict=True)]
        routes = self._stage_routes(answer.routed_experts, len(job.prompt.token_ids) + len(tokens) - 1)
        return Sample(
            prompt_id=job.prompt.id,
            index=job.index,
            tokens=tokens,
            logprobs=np.array(logprobs, dtype=np.float32),
            finish="eos" if ended else "length",
            policy_version=version,
            text=self._tokenizer.decode(tokens[: len(tokens) - int(ended)].tolist()),
            routes=routes,
        )

    def _stage_routes(self, routes: np.ndarray | None, computed: int) -> np.ndarray | None:
        """vLLM's [tokens, all layers, experts per token] -> those of this pipeline stage's expert layers."""
        if not self._record_routes:
            return None
        assert routes is not None and routes.shape[1] == self._cfg.model.num_layers, "one row per decoder layer"
        layers = [block.layer_number - 1 for block in self._module.decoder.layers if isinstance(block.mlp, MoELayer)]
        found = routes[:computed, layers].astype(np.int16)
        check_routes(found, computed)
        return found


def import_vllm(*, fp8: bool = False) -> Any:
    """The vllm package, with what it reads from the environment set. Raises EnvironmentProblem where it is missing."""
    wanted = ENVIRONMENT | (FP8_ENVIRONMENT if fp8 else {})
    os.environ.update({key: os.environ.get(key, value) for key, value in wanted.items()})
    if "PYTORCH_ALLOC_CONF" in os.environ:
        # vLLM's sleep needs expandable segments off around its own memory, and looks for them under the older name.
        os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", os.environ["PYTORCH_ALLOC_CONF"])
    try:
        import vllm  # noqa: PLC0415 - heavy and optional: imported when this engine is chosen
    except ImportError as error:
        fix = "Fix: pip install 'r1train[vllm]' on a machine with CUDA, or rollout.engine=native"
        raise EnvironmentProblem(f"rollout.engine=vllm, but vllm cannot be imported ({error}). {fix}") from error
    return vllm


def request_seed(params: SamplingParams, prompt_id: str, index: int) -> int:
    """63 bits that depend on (seed, name, prompt, index) only, as the native engine's noise does."""
    text = json.dumps([params.seed, params.name, prompt_id, index])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def longest_sequence(cfg: RunConfig) -> int:
    """Tokens of the longest prompt and response that a stage asks for, of rollouts or of evaluations."""
    rollout, evaluation = cfg.rollout, cfg.eval
    longest = rollout.max_prompt_tokens + max(rollout.max_response_tokens, evaluation.max_response_tokens)
    for suite in evaluation.suites:
        response = suite.max_response_tokens or evaluation.max_response_tokens
        longest = max(longest, (suite.max_prompt_tokens or rollout.max_prompt_tokens) + response)
    if evaluation.passkey is not None:
        longest = max(longest, max(evaluation.passkey.lengths) + evaluation.passkey.max_response_tokens)
    return min(longest, cfg.model.distinct_positions)


def check_routes(routes: np.ndarray, computed: int) -> None:
    """Raise RoutesMissing unless every computed token went to different experts: kernels that do not record give 0."""
    ordered = np.sort(routes, axis=-1)
    if len(routes) != computed or (ordered[..., 1:] == ordered[..., :-1]).any():
        what = f"vLLM gave the experts of {len(routes)} of {computed} tokens, or the same expert twice for one"
        raise RoutesMissing(f"{what}: its kernels here do not record them. Fix: rl.record_routing=false")


def _load(model: torch.nn.Module, bucket: list[Named]) -> None:
    """Runs inside the engine: its loader joins, cuts and copies. For BF16 and FP32 that is all."""
    model.load_weights(iter(bucket))


def _stamp(model: torch.nn.Module, policy_version: int) -> Sums:
    """Runs inside the engine: note whose weights these are, and sum what is there."""
    model.r1train_policy_version = policy_version
    return value_sums(model.named_parameters())


def _version(model: torch.nn.Module) -> int | None:
    """Runs inside the engine: the policy that was pushed last; None before the first push."""
    return vars(model).get("r1train_policy_version")
