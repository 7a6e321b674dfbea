"""Greedy answers of vLLM with FP8 weights, and the log-probabilities of their tokens, as JSON.

fp8_engine.py pushed RUN OUT.json [key=value ...]    pushed from the newest checkpoint of a run, after other weights
fp8_engine.py exported FOLDER PUSHED.json OUT.json   of a folder of tools/export_hf.py --dtype fp8
Each file: {"prompts": [[ids]], "tokens": [[ids]], "logprobs": [[...]]}; logprobs are of the tokens of PUSHED.json where
vLLM is given them as part of the prompt.
"""

import json
import os
import sys
from pathlib import Path

COUNT, BUDGET = 32, 32
SHARE = 0.2


def pushed(run: Path, out: Path, overrides: list[str]) -> None:
    """Other weights are pushed first: what vLLM makes of weights must not stay from then."""
    from r1train.config.load import load_config
    from r1train.dist.init import close_processes, init_processes, select_device

    fp8 = ["rollout.engine=vllm", "rollout.fp8=true", "rollout.cuda_graphs=false", f"rollout.gpu_memory_share={SHARE}"]
    stage = ["stage=evaluate", "step=fp8", f"stage.init_from={run}"]
    cfg = load_config([*overrides, *stage, *fp8], check_files=False)
    device = select_device(cfg.cluster)
    init_processes(device, cfg.parallel, cfg.cluster)
    import torch

    from r1train.data.prompts import PromptSet
    from r1train.data.tokenizer import Tokenizer
    from r1train.dist.seed import seed_all
    from r1train.model.build import build_model
    from r1train.rollout.engine import SamplingParams
    from r1train.rollout.vllm import VllmEngine
    from r1train.train.checkpoint import latest_checkpoint, load_module

    seed_all(1)
    module = build_model(cfg, device)
    tokenizer = Tokenizer.load(Path(cfg.data.dir) / "tokenizer")
    prompts = list(PromptSet(Path(cfg.data.dir) / "prompts" / "heldout.jsonl", tokenizer, seed=1).prompts[:COUNT])
    greedy = SamplingParams(
        samples_per_prompt=1, temperature=0.0, top_p=1.0, max_response_tokens=BUDGET, seed=1, name="greedy"
    )
    engine = VllmEngine(cfg, module, tokenizer)
    first = engine.generate(prompts, greedy, policy_version=0)
    load_module(module, latest_checkpoint(run))
    groups = engine.generate(prompts, greedy, policy_version=1)
    samples = [group.samples[0] for group in groups]
    assert any(a.samples[0].tokens.tolist() != b.tokens.tolist() for a, b in zip(first, samples, strict=True))
    tokens, logprobs = [one.tokens.tolist() for one in samples], [one.logprobs.tolist() for one in samples]
    ids = [list(one.token_ids) for one in prompts]
    out.write_text(json.dumps({"prompts": ids, "tokens": tokens, "logprobs": logprobs}))
    torch.cuda.synchronize()
    close_processes()


def exported(folder: Path, found: Path, out: Path) -> None:
    """The same prompts, and then the log-probabilities of the tokens that were found."""
    from r1train.rollout.vllm_options import ENVIRONMENT, FP8_ENVIRONMENT

    # In this process, as our engine: with its core in another one vLLM aborts when Python ends.
    os.environ.update(ENVIRONMENT | FP8_ENVIRONMENT)
    from vllm import LLM, SamplingParams

    theirs = json.loads(found.read_text())
    llm = LLM(str(folder), dtype="bfloat16", gpu_memory_utilization=SHARE, max_model_len=512, enforce_eager=True)
    greedy = SamplingParams(max_tokens=BUDGET, temperature=0.0, detokenize=False)
    answers = llm.generate([{"prompt_token_ids": ids} for ids in theirs["prompts"]], greedy, use_tqdm=False)
    forced = [[*prompt, *tokens] for prompt, tokens in zip(theirs["prompts"], theirs["tokens"], strict=True)]
    read = SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=0, detokenize=False)
    outputs = llm.generate([{"prompt_token_ids": ids} for ids in forced], read, use_tqdm=False)
    logprobs = [
        [at[token].logprob for at, token in zip(output.prompt_logprobs[-len(tokens) :], tokens, strict=True)]
        for output, tokens in zip(outputs, theirs["tokens"], strict=True)
    ]
    tokens = [list(one.outputs[0].token_ids) for one in answers]
    out.write_text(json.dumps({"prompts": theirs["prompts"], "tokens": tokens, "logprobs": logprobs}))


if __name__ == "__main__":
    if sys.argv[1] == "pushed":
        pushed(Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[4:])
    else:
        exported(Path(sys.argv[2]), Path(sys.argv[3]), Path(sys.argv[4]))
