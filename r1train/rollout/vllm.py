"""Generation by vLLM inside this process (external launcher): it sleeps while the trainer works, without Ray.

Each rank runs an engine of its own on its own GPU. The order of a rollout: wake up, push the weights if the policy is
newer than the engine's, check their sums, generate, sleep. vLLM is imported when the engine is chosen: it takes long,
needs CUDA and is an extra of its own.
"""

import hashlib
import json
import os
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
from r1train.errors import EnvironmentProblem
from r1train.log.atomic import write_atomically
from r1train.model.gpt import R1Model
from r1train.model.spec import PARAMS_DTYPE
from r1train.rollout.checksum import Sums, difference, value_sums
from r1train.rollout.engine import SamplingParams, Watcher
from r1train.rollout.push import CountedWeights, Named, PushFailed, buckets, full_weights
from r1train.rollout.types import Group, Sample

# vLLM reads these when it is imported: the engine in this process, and functions sent to the model.
ENVIRONMENT = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_ALLOW_INSECURE_SERIALIZATION": "1"}
# Latent and rotary key of DeepSeek: vLLM's MLA kernels take no others, and it can compute ordinary attention instead.
MLA_WIDTHS = (512, 64)
_DTYPE_NAMES = {torch.bfloat16: "bfloat16", torch.float32: "float32"}


class VllmEngine:
    """An Engine with its own copy of the weights, as new as the policy it is asked to sample."""

    def __init__(self, cfg: RunConfig, module: R1Model, tokenizer: Tokenizer, *, record_routes: bool = False):
        """module: the training weights. Raises EnvironmentProblem where vLLM is not installed."""
        self._cfg, self._module, self._tokenizer = cfg, module, tokenizer
        self._record_routes = record_routes and module.config.num_moe_experts is not None
        self._dtype = PARAMS_DTYPE[cfg.optim.precision]
        if isinstance(cfg.model, ModelConfig) and (cfg.model.kv_lora_rank, cfg.model.qk_rope_head_dim) != MLA_WIDTHS:
            os.environ.setdefault("VLLM_MLA_DISABLE", "1")
        self._vllm = import_vllm()
        self._llm: Any = None
        self._policy_version: int | None = None

    def generate(
        self, prompts: list[Prompt], params: SamplingParams, *, policy_version: int, watcher: Watcher | None = None
    ) -> list[Group]:
        """Samples of each prompt, in order. Collective, because weights come from all ranks."""
        torch.cuda.empty_cache()
        if self._llm is None:
            export_ranks()
            self._llm = self._vllm.LLM(**self._arguments())
        else:
            self._llm.wake_up()
        if self._policy_version != policy_version:
            self.push(policy_version)
        check_version(self._llm.apply_model(_version), policy_version)
        requests = [(prompt, index) for prompt in prompts for index in range(params.samples_per_prompt)]
        outputs = self._llm.generate(
            [{"prompt_token_ids": list(prompt.token_ids)} for prompt, _ in requests],
            [self._request(params, prompt.id, index) for prompt, index in requests],
            use_tqdm=False,
        )
        samples = [
            self._sample(output, prompt, index, policy_version)
            for (prompt, index), output in zip(requests, outputs, strict=True)
        ]
        self._llm.sleep(level=1)
        n = params.samples_per_prompt
        groups = [Group(prompt=prompt, samples=tuple(samples[k * n : k * n + n])) for k, prompt in enumerate(prompts)]
        if watcher is not None:
            for place, group in enumerate(groups):
                for sample in group.samples:
                    watcher.finished(place, group.prompt, sample)
        return groups

    def push(self, policy_version: int) -> None:
        """Replace the engine's weights. Raises PushFailed unless it then holds exactly these."""
        weights = CountedWeights(full_weights(self._module, self._cfg.model, dtype=self._dtype))
        for bucket in buckets(weights, max_bytes=self._cfg.rollout.push_mib * 2**20):
            self._llm.apply_model(lambda model, bucket=bucket: _load(model, bucket))
        (held,) = self._llm.apply_model(lambda model: _stamp(model, policy_version))
        check_sums(held, weights.sums, policy_version=policy_version)
        # What was cached was computed with the old weights.
        self._llm.reset_prefix_cache()
        self._policy_version = policy_version

    def _arguments(self) -> dict[str, Any]:
        """Of vLLM's LLM. Weights are pushed, so it starts with any."""
        rollout = self._cfg.rollout
        options = {"enable_return_routed_experts": True} if self._record_routes else {}
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
            "max_model_len": rollout.max_prompt_tokens + rollout.max_response_tokens,
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
        fields = model_to_hf(self._cfg.model, dtype=_DTYPE_NAMES[self._dtype])
        fields |= {"bos_token_id": self._tokenizer.bos_id, "eos_token_id": self._tokenizer.eos_id}
        write_atomically(folder / "config.json", json.dumps(fields, indent=1) + "\n")
        return folder

    def _request(self, params: SamplingParams, prompt_id: str, index: int) -> Any:
        """vLLM's own random numbers, from a seed that belongs to the sample."""
        return self._vllm.SamplingParams(
            n=1,
            temperature=params.temperature,
            top_p=params.top_p,
            max_tokens=params.max_response_tokens,
            seed=request_seed(params, prompt_id, index),
            logprobs=0,
            stop_token_ids=[self._tokenizer.eos_id],
            detokenize=False,
        )

    def _sample(self, output: Any, prompt: Prompt, index: int, version: int) -> Sample:
        answer = output.outputs[0]
        tokens = np.array(answer.token_ids, dtype=np.int64)
        ended = bool(tokens[-1] == self._tokenizer.eos_id)
        logprobs = [choices[token].logprob for choices, token in zip(answer.logprobs, answer.token_ids, strict=True)]
        routes = self._stage_routes(answer.routed_experts, len(prompt.token_ids) + len(tokens) - 1)
        return Sample(
            prompt_id=prompt.id,
            index=index,
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
        return routes[:computed, layers].astype(np.int16)


def import_vllm() -> Any:
    """The vllm package. Raises EnvironmentProblem where it cannot be imported."""
    os.environ.update({key: os.environ.get(key, value) for key, value in ENVIRONMENT.items()})
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


def check_version(held: list[int | None], policy_version: int) -> None:
    """Raise PushFailed unless every worker of the engine says that it holds this policy."""
    if held != [policy_version] * len(held):
        raise PushFailed(f"policy {policy_version} was asked for, but the engine holds {held}")


def check_sums(held: Sums, sent: Sums, *, policy_version: int) -> None:
    """Raise PushFailed unless the engine's weights are those that were sent."""
    wrong = difference(held, sent)
    if wrong:
        what = f"after the push of policy {policy_version} the engine's weights differ from the trainer's"
        raise PushFailed(
            f"{what} in {', '.join(wrong)} (layer/type). Fix: report this; rollout.engine=native until then"
        )


def _load(model: torch.nn.Module, bucket: list[Named]) -> None:
    """Runs inside the engine: its loader joins, cuts and copies. For BF16 that is all; FP8 would need more."""
    model.load_weights(iter(bucket))


def _stamp(model: torch.nn.Module, policy_version: int) -> Sums:
    """Runs inside the engine: note whose weights these are, and sum what is there."""
    model.r1train_policy_version = policy_version
    return value_sums(model.named_parameters())


def _version(model: torch.nn.Module) -> int | None:
    """Runs inside the engine: the policy that was pushed last; None before the first push."""
    return vars(model).get("r1train_policy_version")
