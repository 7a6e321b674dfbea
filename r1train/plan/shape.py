"""Exact parameter counts of a model: the whole, its MTP blocks, and what one token activates.

The counts equal the released checkpoints' tensor lists. They include the routers' expert biases, which the optimizer
does not train (a rank's parameters in ranks.py leave them out).
"""

from dataclasses import dataclass

from r1train.config.schema_model import AnyModelConfig, DenseModelConfig, ModelConfig
from r1train.plan import shape_deepseek, shape_dense


@dataclass(frozen=True, kw_only=True)
class ParameterCounts:
    """Elements, not bytes. main: without MTP; mtp: what the MTP blocks add (embedding and head are shared).

    active: parameters that one token uses, MTP left out; without_embedding: minus the lookup table, unless the head is
    tied to it and computes with it. A dense model has no MoE layer, expert or MTP: 0.
    """

    attention: int
    dense_layer: int
    moe_layer: int
    expert: int
    embedding: int
    main: int
    mtp: int
    active: int
    active_without_embedding: int
    mtp_active: int

    @property
    def total(self) -> int:
        return self.main + self.mtp


def count_parameters(model: AnyModelConfig) -> ParameterCounts:
    """Counts of the whole model."""
    return _deepseek(model) if isinstance(model, ModelConfig) else _dense(model)


def _deepseek(model: ModelConfig) -> ParameterCounts:
    embedding = model.vocab_size * model.hidden_size
    outside = 2 * embedding + model.hidden_size + model.num_dense_layers * shape_deepseek.dense_layer(model)
    outside += shape_deepseek.token_merging(model)
    active_experts = model.num_experts_per_token
    moe_layer = shape_deepseek.moe_layer(model, model.num_experts)
    active = outside + model.num_moe_layers * shape_deepseek.moe_layer(model, active_experts)
    return ParameterCounts(
        attention=shape_deepseek.attention(model),
        dense_layer=shape_deepseek.dense_layer(model),
        moe_layer=moe_layer,
        expert=shape_deepseek.expert(model),
        embedding=embedding,
        main=outside + model.num_moe_layers * moe_layer,
        mtp=model.mtp_depth * shape_deepseek.mtp_block(model, model.num_experts),
        active=active,
        active_without_embedding=active - embedding,
        mtp_active=model.mtp_depth * shape_deepseek.mtp_block(model, active_experts),
    )


def _dense(model: DenseModelConfig) -> ParameterCounts:
    embedding = model.vocab_size * model.hidden_size
    without_embedding = model.num_layers * shape_dense.layer(model) + model.hidden_size + embedding  # with the head
    main = without_embedding + (0 if model.tie_embeddings else embedding)
    return ParameterCounts(
        attention=shape_dense.attention(model),
        dense_layer=shape_dense.layer(model),
        moe_layer=0,
        expert=0,
        embedding=embedding,
        main=main,
        mtp=0,
        active=main,
        active_without_embedding=without_embedding,
        mtp_active=0,
    )
