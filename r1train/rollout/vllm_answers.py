"""From what vLLM says of a request to a Sample of this rank's pipeline stage."""

from typing import Any

import numpy as np
from megatron.core.transformer.moe.moe_layer import MoELayer

from r1train.data.tokenizer import Tokenizer
from r1train.errors import R1TrainError
from r1train.model.gpt import R1Model
from r1train.rollout.engine_ranks import Answer, EngineJob
from r1train.rollout.live import Job
from r1train.rollout.types import Sample


class RoutesMissing(R1TrainError):
    """The engine does not know which experts computed a sample."""

    exit_code = 1


def answer_of(output: Any, asked: EngineJob) -> Answer:
    """vLLM's RequestOutput of a request that has ended."""
    answer = output.outputs[0]
    logprobs = [choices[token].logprob for choices, token in zip(answer.logprobs, answer.token_ids, strict=True)]
    return Answer(
        owner=asked.owner,
        number=asked.number,
        tokens=np.array(answer.token_ids, dtype=np.int64),
        logprobs=np.array(logprobs, dtype=np.float32),
        routes=answer.routed_experts,
    )


def sample_of(answer: Answer, job: Job, *, tokenizer: Tokenizer, policy_version: int, routed: R1Model | None) -> Sample:
    """The answer as a sample. routed: the model of this stage whose layers' experts are kept, None to keep none.

    Raises RoutesMissing as stage_routes does.
    """
    tokens = answer.tokens
    ended = bool(tokens[-1] == tokenizer.eos_id)
    computed = len(job.prompt.token_ids) + len(tokens) - 1
    return Sample(
        prompt_id=job.prompt.id,
        index=job.index,
        tokens=tokens,
        logprobs=answer.logprobs,
        finish="eos" if ended else "length",
        policy_version=policy_version,
        text=tokenizer.decode(tokens[: len(tokens) - int(ended)].tolist()),
        routes=None if routed is None else stage_routes(answer.routes, computed, routed),
    )


def stage_routes(routes: np.ndarray | None, computed: int, module: R1Model) -> np.ndarray:
    """vLLM's [tokens, all layers, experts per token] -> those of this pipeline stage's expert layers.

    Raises RoutesMissing as check_routes does, and where there are none.
    """
    if routes is None:
        raise RoutesMissing("vLLM gave no experts with a sample. Fix: rl.record_routing=false with stale=keep")
    assert routes.shape[1] == module.config.num_layers, "one row per decoder layer"
    layers = [block.layer_number - 1 for block in module.decoder.layers if isinstance(block.mlp, MoELayer)]
    # vLLM has a byte per choice, two above 256 experts; torch knows no uint16.
    found = routes[:computed, layers]
    found = found if found.dtype == np.uint8 else found.astype(np.int16)
    check_routes(found, computed)
    return found


def check_routes(routes: np.ndarray, computed: int) -> None:
    """Raise RoutesMissing unless every computed token went to different experts: kernels that do not record give 0."""
    ordered = np.sort(routes, axis=-1)
    if len(routes) != computed or (ordered[..., 1:] == ordered[..., :-1]).any():
        what = f"vLLM gave the experts of {len(routes)} of {computed} tokens, or the same expert twice for one"
        raise RoutesMissing(
            f"{what}: its kernels here do not record them. Fix: rl.record_routing=false with stale=keep"
        )
