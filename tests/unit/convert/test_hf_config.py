"""config.json to our model and back, and what is refused by name."""

import json
from dataclasses import replace

import pytest

from r1train.config.schema_model import TokenMergingConfig, YarnConfig
from r1train.convert.export_plan import read_model
from r1train.convert.hf_config import model_from_hf, not_trusted, read_hf_config
from r1train.convert.hf_export_config import model_to_hf
from r1train.errors import CheckpointError

# The fields of DeepSeek-V3's released config.json that recipe facts 1.1 lists.
V3 = {
    "architectures": ["DeepseekV3ForCausalLM"],
    "model_type": "deepseek_v3",
    "attention_bias": False,
    "attention_dropout": 0.0,
    "aux_loss_alpha": 0.001,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "ep_size": 1,
    "first_k_dense_replace": 3,
    "hidden_act": "silu",
    "hidden_size": 7168,
    "initializer_range": 0.02,
    "intermediate_size": 18432,
    "kv_lora_rank": 512,
    "max_position_embeddings": 163840,
    "moe_intermediate_size": 2048,
    "moe_layer_freq": 1,
    "n_group": 8,
    "n_routed_experts": 256,
    "n_shared_experts": 1,
    "norm_topk_prob": True,
    "num_attention_heads": 128,
    "num_experts_per_tok": 8,
    "num_hidden_layers": 61,
    "num_key_value_heads": 128,
    "num_nextn_predict_layers": 1,
    "pretraining_tp": 1,
    "q_lora_rank": 1536,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "quantization_config": {
        "activation_scheme": "dynamic",
        "fmt": "e4m3",
        "quant_method": "fp8",
        "weight_block_size": [128, 128],
    },
    "rms_norm_eps": 1e-06,
    "rope_scaling": {
        "beta_fast": 32,
        "beta_slow": 1,
        "factor": 40,
        "mscale": 1.0,
        "mscale_all_dim": 1.0,
        "original_max_position_embeddings": 4096,
        "type": "yarn",
    },
    "rope_theta": 10000,
    "routed_scaling_factor": 2.5,
    "scoring_func": "sigmoid",
    "seq_aux": True,
    "tie_word_embeddings": False,
    "topk_group": 4,
    "topk_method": "noaux_tc",
    "torch_dtype": "bfloat16",
    "use_cache": True,
    "v_head_dim": 128,
    "vocab_size": 129280,
}


def test_released_v3_config_is_our_model(repo):
    """Also the training values: 0.006 and 1e-4 of the report instead of the file's leftovers 0.02 and 0.001."""
    assert model_from_hf(V3) == read_model(repo / "conf" / "model" / "deepseek_v3.yaml")
    sentences = not_trusted(V3)
    assert ["initializer_range = 0.02" in sentences[0], "init_std is 0.006" in sentences[0]] == [True, True]
    assert ["aux_loss_alpha = 0.001" in sentences[1], "sequence_loss_coef is 0.0001" in sentences[1]] == [True, True]


def test_what_we_write_says_all_that_the_released_file_says(repo):
    model = read_model(repo / "conf" / "model" / "deepseek_v3.yaml")
    written = model_to_hf(model, dtype="bfloat16", fp8=True)
    ids = {"bos_token_id", "eos_token_id", "pretraining_tp"}
    assert V3.keys() - written.keys() == ids
    leftovers = {"aux_loss_alpha": 1e-4, "initializer_range": 0.006}
    scaling = written["rope_scaling"]
    assert scaling == V3["rope_scaling"] | {"rope_type": "yarn"}
    same = V3.keys() - ids - leftovers.keys() - {"rope_scaling"}
    assert {key: written[key] for key in same} == {key: V3[key] for key in same}
    assert {key: written[key] for key in leftovers} == leftovers


@pytest.mark.parametrize("name", ["deepseek", "moonlight", "v2_lite", "llama", "qwen"])
def test_config_survives_the_round_trip(models, name):
    model = models[name]
    assert model_from_hf(json.loads(json.dumps(model_to_hf(model, dtype="bfloat16")))) == model


@pytest.mark.parametrize("name", ["deepseek", "moonlight", "v2_lite", "llama", "qwen"])
def test_transformers_reads_and_rewrites_our_config(models, tmp_path, name):
    """transformers 5 stores rope_parameters instead of rope_theta and rope_scaling; both mean the same model."""
    from transformers import AutoConfig

    (tmp_path / "config.json").write_text(json.dumps(model_to_hf(models[name], dtype="bfloat16")))
    AutoConfig.from_pretrained(tmp_path).save_pretrained(tmp_path / "again")
    fields = json.loads((tmp_path / "again" / "config.json").read_text())
    assert "rope_parameters" in fields
    assert model_from_hf(fields) == models[name]


def test_everything_that_changes_the_maths_is_refused_by_name_at_once():
    changes = {
        "attention_bias": True,
        "moe_layer_freq": 2,
        "scoring_func": "softmax",
        "router_temperature": 0.7,
        "hidden_act": "gelu",
        "num_key_value_heads": 8,
        "rope_scaling": {"type": "dynamic", "factor": 2},
        "kv_lora_rank": None,
        "hidden_size": "wide",
    }
    with pytest.raises(CheckpointError) as error:
        model_from_hf(V3 | changes)
    listed = [line.split(" = ")[0].split(":")[0] for line in str(error.value).splitlines() if line.startswith("  - ")]
    expected = {*changes, "rope_scaling.rope_type"} - {"rope_scaling"}
    assert sorted(line.removeprefix("  - ") for line in listed) == sorted(expected)


@pytest.mark.parametrize(
    ("scaling", "said"),
    [
        (
            {"type": "yarn", "factor": 4, "original_max_position_embeddings": 64, "mscale": 1.0},
            "mscale_all_dim: missing",
        ),
        ({"type": "yarn", "factor": 4, "original_max_position_embeddings": 64, "truncate": False}, "truncate"),
        ({"rope_type": "default", "partial_rotary_factor": 0.5}, "partial_rotary_factor"),
    ],
)
def test_rope_scaling_that_is_not_ours(scaling, said):
    with pytest.raises(CheckpointError, match=said):
        model_from_hf(V3 | {"rope_scaling": scaling})


def test_yarn_without_both_mscales_is_transformers_default():
    scaling = {"type": "yarn", "factor": 4, "original_max_position_embeddings": 64}
    yarn = model_from_hf(V3 | {"rope_scaling": scaling}).yarn
    assert yarn == YarnConfig(factor=4.0, original_max_positions=64, mscale=1.0, mscale_all_dim=0.0)


def test_grouped_softmax_gate_is_refused(models):
    fields = model_to_hf(models["v2_lite"], dtype="bfloat16") | {"n_group": 8, "topk_method": "group_limited_greedy"}
    with pytest.raises(CheckpointError) as error:
        model_from_hf(fields)
    assert "n_group = 8" in str(error.value) and "topk_method = 'group_limited_greedy'" in str(error.value)


def test_windows_are_not_exported(models):
    """Neither class of transformers has them; a list without a window is none."""
    v3, layers = models["deepseek"], models["deepseek"].num_layers
    with pytest.raises(CheckpointError, match="attention_windows=.*have no windows"):
        model_to_hf(replace(v3, attention_windows=(4, *[None] * (layers - 1))), dtype="bfloat16")
    plain = replace(v3, attention_windows=(None,) * layers)
    assert model_to_hf(plain, dtype="bfloat16") == model_to_hf(v3, dtype="bfloat16")


def test_merged_tokens_are_not_exported(models):
    merging = TokenMergingConfig(first_layer=2, last_layer=2, window=4)
    with pytest.raises(CheckpointError, match="token_merging is an experiment that no Hugging Face or vLLM class has"):
        model_to_hf(replace(models["deepseek"], token_merging=merging), dtype="bfloat16")


def test_groups_scored_by_another_number_of_experts_are_refused(models):
    """Transformers takes a group's best two, megatron-core num_experts_per_tok / topk_group: 2 in V3."""
    with pytest.raises(CheckpointError, match="topk_group = 2: has to be half of num_experts_per_tok = 8"):
        model_from_hf(V3 | {"topk_group": 2})
    with pytest.raises(CheckpointError, match="by its best two, this model by its best 1"):
        model_to_hf(replace(models["deepseek"], num_groups_per_token=2), dtype="bfloat16")


def test_models_without_a_class_are_not_written(models):
    for model in (
        replace(models["deepseek"], router_bias=False),
        replace(models["v2_lite"], mtp_depth=1),
        replace(models["qwen"], rope_scaling=models["llama"].rope_scaling),
    ):
        with pytest.raises(CheckpointError, match="transformers"):
            model_to_hf(model, dtype="bfloat16")


@pytest.mark.parametrize(
    ("text", "said"),
    [(None, "no such file"), ("{", "not JSON"), ("[]", "not a JSON object"), ('{"model_type": "gpt2"}', "'gpt2'")],
)
def test_unreadable_config_is_named(tmp_path, text, said):
    path = tmp_path / "config.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(CheckpointError, match=said) as error:
        read_hf_config(path)
    assert str(path) in str(error.value)
