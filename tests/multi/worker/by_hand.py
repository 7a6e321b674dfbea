"""DeepSeek-V3 with its MTP layer in plain torch, on tensors under Hugging Face's names (V3 report eq. 1-25).

One sequence at a time. What the report leaves open is as in the released weights: eh_proj takes the embedding first,
and the MTP layer gets the main model's state after its final norm. Legend: T tokens, h hidden, n heads, V vocabulary.
"""

import torch
from torch.nn.functional import cross_entropy, silu

from r1train.config.schema_model import ModelConfig

Weights = dict[str, torch.Tensor]


def norm(x: torch.Tensor, weight: torch.Tensor, model: ModelConfig) -> torch.Tensor:
    return x / torch.sqrt(x.square().mean(-1, keepdim=True) + model.rms_norm_eps) * weight


def rotate(x: torch.Tensor, base: float) -> torch.Tensor:
    """[T, n, r]: neighbours (2i, 2i + 1) turn by position * base^(-2i / r)."""
    length, width = x.shape[0], x.shape[-1]
    angle = torch.arange(length)[:, None] * base ** (-torch.arange(0, width, 2) / width)
    turned = torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous()) * torch.polar(torch.ones(()), angle)[:, None]
    return torch.view_as_real(turned).flatten(-2)


def attention(w: Weights, at: str, x: torch.Tensor, model: ModelConfig) -> torch.Tensor:
    """Eq. 1-11. x [T, h]."""
    at, heads, nope, rope = f"{at}self_attn.", model.num_attention_heads, model.qk_nope_head_dim, model.qk_rope_head_dim
    query = norm(x @ w[f"{at}q_a_proj.weight"].T, w[f"{at}q_a_layernorm.weight"], model) @ w[f"{at}q_b_proj.weight"].T
    query = query.unflatten(-1, (heads, nope + rope))
    latent, key = (x @ w[f"{at}kv_a_proj_with_mqa.weight"].T).split([model.kv_lora_rank, rope], dim=-1)
    up = norm(latent, w[f"{at}kv_a_layernorm.weight"], model) @ w[f"{at}kv_b_proj.weight"].T
    key_nope, value = up.unflatten(-1, (heads, -1)).split([nope, model.v_head_dim], dim=-1)
    key_rope = rotate(key[:, None], model.rope_base).expand(-1, heads, -1)
    query = torch.cat([query[..., :nope], rotate(query[..., nope:], model.rope_base)], dim=-1)
    scores = torch.einsum("tnd,snd->nts", query, torch.cat([key_nope, key_rope], dim=-1)) / (nope + rope) ** 0.5
    future = torch.ones(len(x), len(x), dtype=torch.bool).triu(1)
    mixed = torch.einsum("nts,sne->tne", scores.masked_fill(future, -torch.inf).softmax(-1), value)
    return mixed.flatten(1) @ w[f"{at}o_proj.weight"].T


def gated(w: Weights, at: str, x: torch.Tensor) -> torch.Tensor:
    up = silu(x @ w[f"{at}gate_proj.weight"].T) * (x @ w[f"{at}up_proj.weight"].T)
    return up @ w[f"{at}down_proj.weight"].T


def experts(w: Weights, at: str, x: torch.Tensor, model: ModelConfig) -> torch.Tensor:
    """Eq. 12-16. x [T, h]."""
    scores = torch.sigmoid(x @ w[f"{at}gate.weight"].T)
    choice = (scores + w[f"{at}gate.e_score_correction_bias"]).detach().unflatten(-1, (model.num_expert_groups, -1))
    per_group = model.num_experts_per_token // model.num_groups_per_token
    open_groups = choice.topk(per_group).values.sum(-1).topk(model.num_groups_per_token).indices
    closed = torch.ones(choice.shape[:2], dtype=torch.bool).scatter(1, open_groups, False)
    chosen = choice.masked_fill(closed[..., None], -torch.inf).flatten(1).topk(model.num_experts_per_token).indices
    weights = torch.zeros_like(scores).scatter(1, chosen, scores.gather(1, chosen))
    weights = model.routed_scaling_factor * weights / weights.sum(-1, keepdim=True)
    outputs = torch.stack([gated(w, f"{at}experts.{e}.", x) for e in range(model.num_experts)], dim=1)
    return gated(w, f"{at}shared_experts.", x) + torch.einsum("te,teh->th", weights, outputs)


def block(w: Weights, layer: int, x: torch.Tensor, model: ModelConfig) -> torch.Tensor:
    """One transformer layer. x [T, h]."""
    at = f"model.layers.{layer}."
    x = x + attention(w, at, norm(x, w[f"{at}input_layernorm.weight"], model), model)
    inner = norm(x, w[f"{at}post_attention_layernorm.weight"], model)
    dense = layer < model.num_dense_layers
    return x + (gated(w, f"{at}mlp.", inner) if dense else experts(w, f"{at}mlp.", inner, model))


def forward(w: Weights, tokens: torch.Tensor, model: ModelConfig) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens [T] -> the main head's logits [T, V], of the next token, and MTP's [T - 1, V], of the one after it."""
    embedded = w["model.embed_tokens.weight"][tokens]
    hidden = embedded
    for layer in range(model.num_layers):
        hidden = block(w, layer, hidden, model)
    hidden = norm(hidden, w["model.norm.weight"], model)
    at = f"model.layers.{model.num_layers}."
    both = norm(embedded[1:], w[f"{at}enorm.weight"], model), norm(hidden[:-1], w[f"{at}hnorm.weight"], model)
    joined = torch.cat(both, dim=-1) @ w[f"{at}eh_proj.weight"].T  # eq. 21
    deeper = norm(block(w, model.num_layers, joined, model), w[f"{at}shared_head.norm.weight"], model)  # eq. 22
    head = w["lm_head.weight"]
    return hidden @ head.T, deeper @ head.T  # eq. 23


def losses(w: Weights, windows: torch.Tensor, model: ModelConfig) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Windows [n, T + 1] -> logits of every sequence, and (main loss, MTP loss), means over predicted tokens.

    Eq. 24 divides MTP's sum of T - 1 terms by T; here, as in megatron-core, it is a mean.
    """
    outputs = [forward(w, window[:-1], model) for window in windows]
    main = [cross_entropy(logits, window[1:]) for (logits, _), window in zip(outputs, windows, strict=True)]
    deeper = [cross_entropy(logits, window[2:]) for (_, logits), window in zip(outputs, windows, strict=True)]
    return [logits for logits, _ in outputs], torch.stack([torch.stack(main).mean(), torch.stack(deeper).mean()])
