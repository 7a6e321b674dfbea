"""Greedy answers of one set of weights to held-out prompts, as JSON lists of tokens.

greedy.py native RUN OUT.json [key=value ...]     the newest checkpoint of a run, with our engine, in fp32
greedy.py transformers FOLDER PROMPTS.json OUT.json   an exported folder, on a GPU where there is one, in fp32
greedy.py vllm FOLDER PROMPTS.json OUT.json           an exported folder, in bf16
PROMPTS.json is what native writes: {"prompts": [[ids]], "tokens": [[ids]]}.
"""

import json
import os
import sys
from pathlib import Path

COUNT, BUDGET = 32, 32


def native(run: Path, out: Path, overrides: list[str]) -> None:
    """Load the checkpoint into an fp32 model and decode."""
    from r1train.config.load import load_config
    from r1train.dist.init import close_processes, init_processes, select_device

    cfg = load_config([*overrides, "optim=adamw_fp32"], check_files=False)
    device = select_device(cfg.cluster)
    init_processes(device, cfg.parallel, cfg.cluster)
    from r1train.data.prompts import PromptSet
    from r1train.data.tokenizer import Tokenizer
    from r1train.dist.seed import seed_all
    from r1train.rollout.engine import SamplingParams
    from r1train.rollout.native import NativeEngine
    from r1train.train.checkpoint import latest_checkpoint, load_weights
    from r1train.train.setup import build_trainer

    seed_all(1)
    trainer = build_trainer(cfg, device, total_steps=1)
    load_weights(trainer, latest_checkpoint(run))
    tokenizer = Tokenizer.load(Path(cfg.data.dir) / "tokenizer")
    prompts = PromptSet(Path(cfg.data.dir) / "prompts" / "heldout.jsonl", tokenizer, seed=1).prompts[:COUNT]
    greedy = SamplingParams(
        samples_per_prompt=1, temperature=0.0, top_p=1.0, max_response_tokens=BUDGET, seed=1, name="greedy"
    )
    groups = NativeEngine(trainer.module, tokenizer, batch_size=COUNT).generate(list(prompts), greedy, policy_version=0)
    tokens = [group.samples[0].tokens.tolist() for group in groups]
    out.write_text(json.dumps({"prompts": [list(one.token_ids) for one in prompts], "tokens": tokens}))
    close_processes()


def exported(folder: Path, prompts: Path, out: Path) -> None:
    """What transformers makes of the folder, one prompt at a time."""
    import torch
    from transformers import AutoModelForCausalLM

    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).to(device).eval()
    answers = []
    for ids in json.loads(prompts.read_text())["prompts"]:
        tokens = model.generate(torch.tensor([ids], device=device), max_new_tokens=BUDGET, do_sample=False)
        answers.append(tokens[0, len(ids) :].tolist())
    out.write_text(json.dumps(answers))


def served(folder: Path, prompts: Path, out: Path) -> None:
    """What vLLM makes of the folder as it is."""
    # vLLM's MLA kernels take DeepSeek's 512 + 64 values a token only; without them it runs ordinary attention.
    os.environ["VLLM_MLA_DISABLE"] = "1"
    from vllm import LLM, SamplingParams

    llm = LLM(str(folder), dtype="bfloat16", gpu_memory_utilization=0.2, max_model_len=1024, enforce_eager=True)
    requests = [{"prompt_token_ids": ids} for ids in json.loads(prompts.read_text())["prompts"]]
    outputs = llm.generate(requests, SamplingParams(max_tokens=BUDGET, temperature=0.0), use_tqdm=False)
    out.write_text(json.dumps([list(output.outputs[0].token_ids) for output in outputs]))


if __name__ == "__main__":
    if sys.argv[1] == "native":
        native(Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[4:])
    elif sys.argv[1] == "vllm":
        served(Path(sys.argv[2]), Path(sys.argv[3]), Path(sys.argv[4]))
    else:
        exported(Path(sys.argv[2]), Path(sys.argv[3]), Path(sys.argv[4]))
