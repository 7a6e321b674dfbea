"""Every rule of config/check_switches.py reports a config that breaks it, and lets a good one pass."""

import pytest

from r1train.config import check_switches

PRETRAIN = ("stage=pretrain", "evaluate_after=false")
SFT = ("stage=sft", "stage.init_from=somewhere", "stage.dataset=some.jsonl", "evaluate_after=false")
GRPO = ("stage=grpo", "stage.init_from=somewhere")
REWARD_MODEL = (
    "stage=reward_model",
    "stage.init_from=somewhere",
    "stage.dataset=some.jsonl",
    "stage.steps=4",
    "evaluate_after=false",
)
# tiny has 3 layers and MTP; four processes.
FOUR = ("cluster.processes_per_node=4", "parallel.world_size=4", "parallel.ep=1")
CUDA = ("cluster=one_gpu", "cluster.processes_per_node=4", "parallel.world_size=4", "parallel.ep=1")
VIRTUAL = ("parallel.pp=2", 'parallel.pp_layout="Et|t|t|mL"')
BF16 = ("optim=adamw_bf16",)

CASES = [
    (
        "virtual_stages_need_a_pipeline",
        [*PRETRAIN, 'parallel.pp_layout="Et|ttmL"'],
        "parallel.pp_layout",
        "only interleaving over pp > 1",
    ),
    (
        "virtual_stages_have_mtp_at_the_end",
        [*PRETRAIN, "parallel.pp=2", "parallel.ep=1", 'parallel.pp_layout="Ett|t|m|L"'],
        "parallel.pp_layout",
        "MTP (m) in stage 2",
    ),
    (
        "virtual_stages_need_rounds",
        [*PRETRAIN, *FOUR, *VIRTUAL, "stage.batch_size=16", "stage.micro_batch_size=8"],
        "stage.batch_size",
        "dp x micro_batch_size x pp = 32",
    ),
    (
        "nothing_is_generated_over_virtual_stages",
        [*GRPO, *FOUR, *VIRTUAL],
        "parallel.pp_layout",
        "native engine cannot generate",
    ),
    (
        "nothing_is_generated_over_virtual_stages",
        [*PRETRAIN, *FOUR, *VIRTUAL, "evaluate_after=true"],
        "parallel.pp_layout",
        "native engine cannot generate",
    ),
    ("context_parallelism_fits", [*PRETRAIN, *FOUR, "parallel.cp=2"], "parallel.cp", "cluster.device is cpu"),
    ("context_parallelism_fits", [*GRPO, *CUDA, "parallel.cp=2"], "parallel.cp", "weighs whole samples"),
    ("context_parallelism_fits", [*SFT, *CUDA, *VIRTUAL, "parallel.cp=2"], "parallel.cp", "need one length"),
    (
        "context_parallelism_fits",
        [*PRETRAIN, *CUDA, *VIRTUAL, "parallel.cp=2", "data.mask_across_documents=true", "stage.batch_size=32"],
        "parallel.cp",
        "need one length",
    ),
    (
        "expert_overlap_fits",
        [*PRETRAIN, *CUDA, "parallel.overlap_expert_all_to_all=true"],
        "parallel.overlap_expert_all_to_all",
        "no all-to-all with parallel.ep = 1; it needs bf16",
    ),
    (
        "expert_overlap_fits",
        [*PRETRAIN, *CUDA, *BF16, "parallel.ep=2", "parallel.pp=2", 'parallel.pp_layout="Ett|tmL"']
        + ["parallel.overlap_expert_all_to_all=true"],
        "parallel.overlap_expert_all_to_all",
        "with pp > 1 it needs virtual stages",
    ),
    (
        "expert_overlap_fits",
        [*SFT, *CUDA, *BF16, "parallel.ep=2", "parallel.overlap_expert_all_to_all=true"],
        "parallel.overlap_expert_all_to_all",
        "MTP block over packed rows, which stage sft trains on",
    ),
    ("expert_overlap_fits", [*PRETRAIN, "parallel.delay_wgrad=true"], "parallel.delay_wgrad", "expert overlap only"),
    (
        "gather_overlap_fits",
        [*PRETRAIN, "parallel.overlap_param_gather=true"],
        "parallel.overlap_param_gather",
        "overlap_grad_reduce",
    ),
    (
        "allgather_has_one_length",
        [*PRETRAIN, *FOUR, "parallel.pp=2", 'parallel.pp_layout="Ett|tmL"', "parallel.dispatcher=allgather"],
        "parallel.dispatcher",
        "one length",
    ),
    (
        "allgather_has_one_length",
        [*PRETRAIN, *CUDA, "parallel.cp=2", "parallel.dispatcher=allgather", "data.mask_across_documents=true"],
        "parallel.dispatcher",
        "have other lengths",
    ),
    (
        "recompute_modules_exist",
        [*PRETRAIN, "parallel.recompute_modules=[mlp, attention]"],
        "parallel.recompute_modules",
        "cannot be recomputed",
    ),
    (
        "recompute_modules_exist",
        [*PRETRAIN, "parallel.recompute_modules=[mlp, moe_act]"],
        "parallel.recompute_modules",
        "cluster.device is cpu",
    ),
    ("expert_tensor_parallelism_fits", [*PRETRAIN, *FOUR, "parallel.etp=2"], "parallel.etp", "gloo cannot gather"),
    (
        "expert_tensor_parallelism_fits",
        [*PRETRAIN, *CUDA, "parallel.etp=4", "model.moe_ffn_hidden_size=50"],
        "model.moe_ffn_hidden_size",
        "parallel.etp = 4",
    ),
    (
        "optimizer_memory_in_range",
        [*PRETRAIN, "optim.cpu_offload_fraction=1.5"],
        "optim.cpu_offload_fraction",
        "outside 0 to 1",
    ),
    (
        "optimizer_memory_in_range",
        [*PRETRAIN, "optim.cpu_offload_fraction=0.5"],
        "optim.cpu_offload_fraction",
        "no other memory",
    ),
    (
        "optimizer_memory_in_range",
        [*PRETRAIN, *CUDA, *BF16, "optim.cpu_offload_fraction=0.5"],
        "optim.moments_dtype",
        "fp32 (torch's AdamW)",
    ),
    ("optimizer_memory_in_range", [*PRETRAIN, "optim.ema_decay=1.0"], "optim.ema_decay", "outside 0 to 1"),
    ("optimizer_memory_in_range", [*REWARD_MODEL, "optim.ema_decay=0.9"], "optim.ema_decay", "keeps no average"),
    (
        "rl_memory_can_move",
        [*GRPO, "rl=dapo", "rl.overlong.buffer_tokens=8", "rl.reference_offload=true"],
        "rl.reference_offload",
        "no reference policy",
    ),
    (
        "rl_memory_can_move",
        [
            *GRPO,
            *CUDA,
            *BF16,
            "optim.moments_dtype=fp32",
            "optim.cpu_offload_fraction=0.5",
            "rl.offload_during_rollout=true",
        ],
        "rl.offload_during_rollout",
        "in host memory already",
    ),
]


@pytest.mark.parametrize(("overrides", "key", "message"), [c[1:] for c in CASES], ids=[c[0] for c in CASES])
def test_rule_reports(problems, overrides, key, message):
    found = problems(*overrides)
    assert message in found[key].what
    assert found[key].fix


def test_every_rule_has_a_case():
    assert {rule.__name__ for rule in check_switches.RULES} == {case[0] for case in CASES}


@pytest.mark.parametrize(
    "overrides",
    [
        [*PRETRAIN, *FOUR, *VIRTUAL, "stage.batch_size=32", "stage.micro_batch_size=8"],
        [*PRETRAIN, *CUDA, "parallel.cp=2"],
        [*PRETRAIN, *CUDA, "parallel.cp=2", "parallel.dispatcher=allgather"],
        [*PRETRAIN, *CUDA, "stage.batch_size=32", "parallel.recompute_modules=[layernorm, mla_up_proj, moe_act]"],
        [*PRETRAIN, *CUDA, *BF16, "stage.batch_size=32", "parallel.ep=4", "parallel.overlap_expert_all_to_all=true"],
        [*PRETRAIN, "parallel.overlap_grad_reduce=true", "parallel.overlap_param_gather=true"],
        [*PRETRAIN, "parallel.recompute_modules=[mla_up_proj, mlp]"],
        [*PRETRAIN, *CUDA, "parallel.ep=2", "parallel.etp=2", "parallel.tp=2"],
        [*PRETRAIN, "optim.ema_decay=0.999"],
        [*GRPO, "rl.reference_offload=true", "rl.offload_during_rollout=true", "rl.stop_if.reward_below=-0.5"],
    ],
)
def test_good_combinations_pass(problems, overrides):
    assert problems(*overrides) == {}
