"""transformers' side of test_conversion.py: python conversion_transformers.py make|exported FOLDER

make: random models in FOLDER/NAME/hf, their logits in FOLDER/NAME/transformers.pt, the gradients of one step, stored
as if they were weights, in FOLDER/NAME/gradients, and what a gate chooses in FOLDER/gate.pt. exported: logits of
FOLDER/NAME/out in FOLDER/NAME/exported.pt. A process of its own: in one with the CPU stand-ins of dist/cpu.py,
from_pretrained leaves the rotary frequencies uninitialised.
"""

import sys
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM

SEQUENCES, LENGTH = 2, 48
_MLA = {
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 96,
    "moe_intermediate_size": 24,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8,
    "v_head_dim": 12,
    "max_position_embeddings": 256,
}
_YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "beta_fast": 32, "beta_slow": 1}
_V3 = {**_MLA, "n_routed_experts": 32, "num_experts_per_tok": 8, "num_nextn_predict_layers": 0}
_GROUPS = {"n_group": 8, "topk_group": 4, "q_lora_rank": 32, "n_shared_experts": 1}
_MOONLIGHT = {"n_group": 1, "topk_group": 1, "q_lora_rank": None, "n_shared_experts": 2, "routed_scaling_factor": 2.446}
_DENSE = {
    "vocab_size": 96,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}
_LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
MODELS = {
    "v3_yarn": (
        "deepseek_v3",
        {**_V3, **_GROUPS, "first_k_dense_replace": 1},
        {**_YARN, "mscale": 1.0, "mscale_all_dim": 1.0},
    ),
    "v3_plain_three_dense": ("deepseek_v3", {**_V3, **_GROUPS, "first_k_dense_replace": 3}, None),
    "moonlight": ("deepseek_v3", {**_V3, **_MOONLIGHT, "first_k_dense_replace": 1}, None),
    "v2_lite": (
        "deepseek_v2",
        {**_MLA, "n_routed_experts": 16, "num_experts_per_tok": 4, "first_k_dense_replace": 1, "n_shared_experts": 2}
        | {"q_lora_rank": None, "n_group": 1, "topk_group": 1},
        {**_YARN, "mscale": 1.0, "mscale_all_dim": 0.5},
    ),
    "v2_low_rank": (
        "deepseek_v2",
        {**_MLA, "n_routed_experts": 16, "num_experts_per_tok": 4, "first_k_dense_replace": 1, "n_shared_experts": 2}
        | {"q_lora_rank": 32, "n_group": 1, "topk_group": 1},
        {**_YARN, "mscale": 0.707, "mscale_all_dim": 0.707},
    ),
    "llama": ("llama", {**_DENSE, "head_dim": 12}, _LLAMA3),
    "llama_tied": ("llama", {**_DENSE, "tie_word_embeddings": True}, None),
    "qwen2": ("qwen2", {**_DENSE, "tie_word_embeddings": True}, None),
    "qwen2_untied": ("qwen2", {**_DENSE, "tie_word_embeddings": False}, None),
}


def transformers_model(name: str) -> torch.nn.Module:
    """Random weights in fp32 large enough that every part shows in the logits."""
    kind, fields, scaling = MODELS[name]
    rope = {"rope_parameters": {"rope_theta": 10000.0, **scaling}} if scaling else {}
    hf = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **fields, **rope)).float().eval()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for key, parameter in hf.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(1.0 + 0.2 * noise if "norm" in key else 0.15 * noise)
        for key, buffer in hf.named_buffers():
            if key.endswith("e_score_correction_bias"):
                buffer.copy_(0.2 * torch.rand(buffer.shape, generator=generator))
    return hf


def save_gradients(hf: torch.nn.Module, windows: torch.Tensor, folder: Path) -> float:
    """Gradients of the mean cross entropy under the names of the files, which are not those in memory; the loss."""
    logits = hf(windows[:, :-1]).logits
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten())
    loss.backward()
    with torch.no_grad():
        for parameter in hf.parameters():
            parameter.copy_(parameter.grad)
    hf.save_pretrained(folder)
    return loss.item()


@torch.no_grad()
def gate_case(gate: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Tokens for which the chosen groups have too few experts with a positive score plus bias, and the gate's choice.

    32 experts in 8 groups, 4 groups and 8 experts per token: one expert of each group has a bias of 0, three of -1.
    """
    generator = torch.Generator().manual_seed(8)
    gate.weight.copy_(0.3 * torch.randn(gate.weight.shape, generator=generator))
    gate.e_score_correction_bias.copy_(-1.0 * (torch.arange(32) % 4 > 0))
    hidden = torch.randn(16, gate.weight.shape[1], generator=generator)
    _, _, chosen = gate(hidden)
    bias = gate.e_score_correction_bias.clone()
    return {"weight": gate.weight.clone(), "bias": bias, "hidden": hidden, "transformers": chosen.sort().values}


def logits(hf: torch.nn.Module, tokens: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return hf(tokens).logits


def main(mode: str, out: Path) -> None:
    windows = torch.randint(0, 96, (SEQUENCES, LENGTH + 1), generator=torch.Generator().manual_seed(9))
    tokens = windows[:, :-1]
    torch.save(windows, out / "windows.pt")
    for name in MODELS:
        if mode == "make":
            hf = transformers_model(name)
            hf.save_pretrained(out / name / "hf")
            torch.save(logits(hf, tokens), out / name / "transformers.pt")
            loss = save_gradients(hf, windows, out / name / "gradients")
            torch.save(loss, out / name / "loss.pt")
            if name == "v3_yarn":
                torch.save(gate_case(hf.model.layers[-1].mlp.gate), out / "gate.pt")
        else:
            hf = AutoModelForCausalLM.from_pretrained(out / name / "out", dtype=torch.float32).eval()
            torch.save(logits(hf, tokens), out / name / "exported.pt")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
