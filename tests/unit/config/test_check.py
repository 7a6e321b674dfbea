"""One test per rule: what is reported, at which key, and that the neighbouring good value passes."""

import pytest

from r1train.config import check_deepseek, check_dense
from r1train.config.check_data import RULES as DATA_RULES
from r1train.config.check_layout import RULES as LAYOUT_RULES
from r1train.config.check_model import RULES as MODEL_RULES
from r1train.config.check_rl import RULES as RL_RULES

PRETRAIN = ("stage=pretrain",)
GRPO = ("stage=grpo", "stage.init_from=x")
REJECT = ("stage=reject", "stage.init_from=x")
DENSE = (*PRETRAIN, "model=smollm2_135m", "parallel.ep=1")
ROPE_SCALING = (
    "model.rope_scaling={{factor: 8.0, low_freq_factor: {low}, high_freq_factor: 4.0, original_max_positions: 64}}"
)
FOUR = ("parallel.world_size=4", "cluster.processes_per_node=4")
PP2 = (*FOUR, "parallel.pp=2")
FOUR_LAYERS = "model.num_layers=4"

# (rule, stage, overrides, key, part of the message)
CASES = [
    ("dense_layers_within_layers", PRETRAIN, ["model.num_dense_layers=5"], "model.num_dense_layers", "the 3 layers"),
    (
        "groups_divide_experts",
        PRETRAIN,
        ["model.num_expert_groups=3"],
        "model.num_expert_groups",
        "divide the 8 experts",
    ),
    ("groups_per_token_exist", PRETRAIN, ["model.num_groups_per_token=3"], "model.num_groups_per_token", "than the 2"),
    (
        "chosen_groups_hold_enough_experts",
        PRETRAIN,
        ["model.num_experts_per_token=5"],
        "model.num_experts_per_token",
        "only 4 experts",
    ),
    ("group_score_is_top_two", PRETRAIN, ["model.num_experts_per_token=1"], "model.num_experts_per_token", "top 2"),
    ("group_has_two_experts", PRETRAIN, ["model.num_expert_groups=8"], "model.num_expert_groups", "fewer than 2"),
    ("bias_needs_sigmoid", PRETRAIN, ["model.router_score=softmax"], "model.router_bias", "sigmoid scores only"),
    ("rope_dimension_is_even", PRETRAIN, ["model.qk_rope_head_dim=7"], "model.qk_rope_head_dim", "pairs"),
    ("deepseek_numbers_in_range", PRETRAIN, ["model.sequence_loss_coef=-1"], "model.sequence_loss_coef", "below 0"),
    (
        "windows_fit_the_layers",
        PRETRAIN,
        ["model.attention_windows=[4, null, 7, 8]"],
        "model.attention_windows",
        "4 entries for 3 layers",
    ),
    (
        "windows_without_context_ranks",
        PRETRAIN,
        ["model.attention_windows=[4, null, 8]", "parallel.cp=2", "parallel.ep=1"],
        "model.attention_windows",
        "ring attention has no windows",
    ),
    (
        "expert_widths_divisible",
        PRETRAIN,
        ["parallel.tp=2", "parallel.etp=2", "parallel.ep=1", "model.moe_ffn_hidden_size=47"],
        "model.moe_ffn_hidden_size",
        "not divisible by parallel.etp = 2; not divisible by parallel.tp = 2",
    ),
    (
        "key_value_heads_divide_heads",
        DENSE,
        ["model.num_key_value_heads=2"],
        "model.num_key_value_heads",
        "does not divide the 9",
    ),
    (
        "key_value_heads_divisible_by_tp",
        DENSE,
        ["parallel.tp=2"],
        "model.num_key_value_heads",
        "not divisible by parallel.tp = 2",
    ),
    ("head_dimension_is_even", DENSE, ["model.head_dim=63"], "model.head_dim", "pairs"),
    (
        "rope_scaling_has_a_band",
        DENSE,
        [ROPE_SCALING.format(low=4.0)],
        "model.rope_scaling.low_freq_factor",
        "between 0 and high_freq_factor = 4.0",
    ),
    ("no_experts_to_spread", DENSE, ["parallel.ep=2"], "parallel.ep", "smollm2_135m has no experts"),
    ("model_numbers_in_range", PRETRAIN, ["model.init_std=0"], "model.init_std", "above 0"),
    ("vocabulary_holds_the_tokenizer", PRETRAIN, ["model.vocab_size=500"], "model.vocab_size", "512 entries"),
    ("world_size_is_the_cluster", PRETRAIN, ["parallel.world_size=4"], "parallel.world_size", "x 2 process(es) = 2"),
    ("axes_divide_the_world", PRETRAIN, ["parallel.cp=4"], "parallel.world_size", "1 x 1 x 4 = 4"),
    ("expert_axes_divide_the_world", PRETRAIN, ["parallel.ep=4"], "parallel.ep", "4 x 1 x 1 = 4 does not divide"),
    (
        "heads_divisible_by_tp",
        PRETRAIN,
        ["parallel.tp=2", "model.num_attention_heads=5"],
        "model.num_attention_heads",
        "not divisible by parallel.tp = 2",
    ),
    (
        "vocabulary_divisible_by_tp",
        PRETRAIN,
        ["parallel.tp=2", "model.vocab_size=513"],
        "model.vocab_size",
        "not divisible by parallel.tp = 2",
    ),
    (
        "widths_divisible",
        PRETRAIN,
        ["parallel.tp=2", "model.ffn_hidden_size=255"],
        "model.ffn_hidden_size",
        "not divisible by parallel.tp = 2",
    ),
    ("experts_divisible_by_ep", PRETRAIN, ["model.num_experts=9"], "parallel.ep", "does not divide the 9 experts"),
    (
        "groups_align_with_expert_ranks",
        PRETRAIN,
        ["parallel.world_size=3", "cluster.processes_per_node=3", "parallel.ep=3", "model.num_experts=12"],
        "parallel.ep",
        "cuts across the 2 expert groups",
    ),
    ("even_split_needs_divisible_layers", PRETRAIN, [*PP2, "model.num_layers=5"], "parallel.pp", "5 layers cannot"),
    ("layout_can_be_read", PRETRAIN, [*PP2, "parallel.pp_layout=Ettx|tmL"], "parallel.pp_layout", "character(s) x"),
    ("layout_starts_and_ends", PRETRAIN, [*PP2, 'parallel.pp_layout="tt|tmL"'], "parallel.pp_layout", "one E"),
    ("layout_has_every_layer", PRETRAIN, [*PP2, 'parallel.pp_layout="Et|tmL"'], "parallel.pp_layout", "has 2 decoder"),
    ("layout_has_every_mtp_block", PRETRAIN, [*PP2, 'parallel.pp_layout="Ett|tL"'], "parallel.pp_layout", "has 0 MTP"),
    ("layout_has_mtp_last", PRETRAIN, [*PP2, 'parallel.pp_layout="Et|tmtL"'], "parallel.pp_layout", "after the last"),
    ("layout_has_pp_stages", PRETRAIN, [*PP2, 'parallel.pp_layout="Et|t|tmL"'], "parallel.pp_layout", "has 3 stages"),
    ("device_can_run_it", PRETRAIN, ["optim.precision=fp8_blockwise"], "optim.precision", "FP8 needs a GPU"),
    ("names_are_unique", PRETRAIN, ["data.corpora.1.name=text"], "data.corpora", "stands 2 times"),
    ("corpus_names_are_file_names", PRETRAIN, ["data.corpora.0.name=a/b"], "data.corpora.0.name", "files are named"),
    (
        "corpus_weights_count",
        PRETRAIN,
        ["data.corpora=[{name: a, source: b, weight: 0.0}]"],
        "data.corpora",
        "no corpus has a weight",
    ),
    ("task_styles_are_shares", PRETRAIN, ["data.tasks.0.styles={steps: 0.9}"], "data.tasks.0.styles", "sum to 1"),
    (
        "task_has_problems",
        PRETRAIN,
        ["data.tasks.0.train=0", "data.tasks.0.heldout=0", "data.tasks.0.cold_start=0"],
        "data.tasks.0",
        "all 0",
    ),
    ("heldout_fraction_is_a_share", PRETRAIN, ["data.heldout_fraction=1.0"], "data.heldout_fraction", "outside [0, 1)"),
    (
        "boundary_split_rate_is_a_share_of_something",
        PRETRAIN,
        ["data.boundary_split_rate=0.1"],
        "data.boundary_split_rate",
        "digits makes no tokens",
    ),
    ("tasks_from_files_have_them", PRETRAIN, ["data.tasks.0.template=Solve."], "data.tasks.0.template", "not in the"),
    ("fim_rate_is_a_share", PRETRAIN, ["data.fim_rate=-0.1"], "data.fim_rate", "outside [0, 1)"),
    (
        "isolated_documents_come_one_by_one",
        PRETRAIN,
        ["data.mask_across_documents=true", "stage.micro_batch_size=2"],
        "stage.micro_batch_size",
        "one sequence at a time",
    ),
    (
        "batch_ramp_ends_at_the_batch",
        PRETRAIN,
        ["stage.batch_size=32", "lr.batch_size={start: 16, segments: [{until: 100, shape: linear, to: 24}]}"],
        "lr.batch_size",
        "ends at 24 sequences, but stage.batch_size is 32",
    ),
    (
        "batch_ramp_ends_at_the_batch",
        PRETRAIN,
        ["lr.batch_size={start: 1}", "lr.batch_multiple=16"],
        "lr.batch_size.start",
        "starts below lr.batch_multiple = 16",
    ),
    (
        "batch_ramp_ends_at_the_batch",
        PRETRAIN,
        ["stage.batch_size=32", "lr.batch_size={start: 64, segments: [{until: 100, shape: linear, to: 32}]}"],
        "lr.batch_size.segments",
        "not a growing ramp",
    ),
    (
        "passkey_corpora_have_settings",
        PRETRAIN,
        ["data.corpora.0.source='builtin:passkey'"],
        "data.corpora.0.passkey",
        "how long and how many",
    ),
    ("worked_corpus_has_examples", PRETRAIN, ["data.worked_examples=0"], "data.worked_examples", "would be empty"),
    (
        "checkpoints_fall_between_rollouts",
        GRPO,
        ["stage.minibatches_per_step=2", "stage.steps=20", "stage.save_every_steps=5"],
        "stage.save_every_steps",
        "in the middle of a rollout",
    ),
    (
        "vllm_without_tensor_parallelism",
        GRPO,
        ["parallel.tp=2", "parallel.ep=1", "rollout.engine=vllm"],
        "parallel.tp",
        "pushed to vLLM",
    ),
    ("group_has_two_samples", GRPO, ["stage.samples_per_prompt=1"], "stage.samples_per_prompt", "needs two"),
    ("clip_and_kl_not_negative", GRPO, ["rl.kl_coef=-0.1"], "rl.kl_coef", "below 0"),
    ("kl_estimator_has_a_gradient", GRPO, ["rl.kl_estimator=k1"], "rl.kl_estimator", "whose mean is zero"),
    (
        "sequence_ratio_takes_sequence_mean",
        GRPO,
        ["rl=gspo", "rl.aggregation=token-mean"],
        "rl.aggregation",
        "defined per sequence",
    ),
    (
        "sequence_rules_see_whole_sequences",
        GRPO,
        ["rl=gspo", "parallel.cp=2", "parallel.ep=1"],
        "rl.policy_loss",
        "context parallelism cuts",
    ),
    (
        "corrections_have_their_bounds",
        GRPO,
        ["rl.correction.weight=icepop", "rl.correction.weight_high=5.0"],
        "rl.correction.weight_low",
        "weight icepop needs this bound",
    ),
    (
        "corrections_have_their_bounds",
        GRPO,
        ["rl.correction.mask_high=1.001"],
        "rl.correction.mask_high",
        "sequence_mask none does not read",
    ),
    (
        "corrections_have_their_bounds",
        GRPO,
        ["rl.correction={sequence_mask: ratio, mask_low: 2.0, mask_high: 0.5}"],
        "rl.correction.mask_low",
        "not below mask_high = 0.5",
    ),
    ("overlong_buffer_fits", GRPO, ["rl.overlong.rule=penalty"], "rl.overlong.buffer_tokens", "budget of 40 tokens"),
    ("overlong_buffer_fits", GRPO, ["rl.overlong.buffer_tokens=8"], "rl.overlong.buffer_tokens", "does not read it"),
    ("sampling_can_fill_a_rollout", GRPO, ["rl.sampling.max_tries=3"], "rl.sampling", "every group is kept"),
    (
        "sampling_can_fill_a_rollout",
        GRPO,
        ["rl.sampling={keep: mixed, oversample: 0.5, max_tries: 3}"],
        "rl.sampling.oversample",
        "fewer prompts",
    ),
    (
        "sampling_can_fill_a_rollout",
        GRPO,
        ["rl.sampling={keep: mixed, oversample: 2.0, max_tries: 3}", "reward.accuracy=0"],
        "rl.sampling.keep",
        "by their accuracy, which weighs nothing",
    ),
    (
        "own_forward_is_of_the_old_policy",
        GRPO,
        ["rl.old_logprobs=update", "stage.minibatches_per_step=2", "stage.steps=20", "stage.save_every_steps=10"],
        "rl.old_logprobs",
        "have other weights",
    ),
    (
        "own_forward_is_of_the_old_policy",
        GRPO,
        ["rl.old_logprobs=update", "stage.minibatches_per_step=1", "rl.routing_replay=old"],
        "rl.old_logprobs",
        "what the pass recorded",
    ),
    (
        "own_forward_is_of_the_old_policy",
        GRPO,
        ["rl.old_logprobs=update", "stage.minibatches_per_step=1", "rl.stop_if.flipped_experts_share_above=0.1"],
        "rl.old_logprobs",
        "what the pass counts",
    ),
    ("stops_can_be_met", GRPO, ["rl.stop_if.kl_above=-0.1"], "rl.stop_if.kl_above", "never below 0"),
    ("stops_can_be_met", GRPO, ["rl=gspo", "rl.stop_if.kl_above=0.1"], "rl.stop_if.kl_above", "no reference policy"),
    ("sampling_temperature_positive", GRPO, ["rollout.temperature=0"], "rollout.temperature", "above 0"),
    (
        "greedy_answers_once",
        PRETRAIN,
        ["eval.temperature=0", "eval.samples_per_problem=4"],
        "eval.samples_per_problem",
        "the same answer every time",
    ),
    ("top_p_is_a_share", GRPO, ["rollout.top_p=1.5"], "rollout.top_p", "outside (0, 1]"),
    ("sample_fits_training_sequence", GRPO, ["stage.seq_length=63"], "stage.seq_length", "max_response_tokens = 64"),
    (
        "sample_fits_positions",
        GRPO,
        ["rollout.max_response_tokens=500"],
        "rollout.max_response_tokens",
        "512 positions",
    ),
    (
        "sample_fits_positions",
        (*GRPO, "model.yarn={factor: 1.0, original_max_positions: 128}"),
        ["rollout.max_response_tokens=105", "stage.seq_length=160"],
        "rollout.max_response_tokens",
        "with a prompt of 24 beyond the 128 positions",
    ),
    (
        "reward_weights_count",
        GRPO,
        ["reward.accuracy=0", "reward.format=0", "reward.language=0"],
        "reward",
        "every weight of the reward is 0",
    ),
    ("reward_weights_count", GRPO, ["reward.code.total_s=3"], "reward.code.total_s", "less time than time_s = 4 gives"),
]


@pytest.mark.parametrize(
    ("stage", "overrides", "key", "message"), [case[1:] for case in CASES], ids=[c[0] for c in CASES]
)
def test_rule_reports(problems, stage, overrides, key, message):
    found = problems(*stage, *overrides)
    assert message in found[key].what
    assert found[key].fix


@pytest.mark.parametrize("stage", [PRETRAIN, GRPO, REJECT, DENSE, (*DENSE, ROPE_SCALING.format(low=1.0))])
def test_the_base_of_every_case_is_good(problems, stage):
    assert problems(*stage) == {}


def test_every_rule_has_a_case():
    rules = {rule.__name__ for rule in (*MODEL_RULES, *LAYOUT_RULES, *DATA_RULES, *RL_RULES)}
    rules |= {rule.__name__ for rule in (*check_deepseek.RULES, *check_deepseek.LAYOUT_RULES)}
    rules |= {rule.__name__ for rule in (*check_dense.RULES, *check_dense.LAYOUT_RULES)}
    assert rules == {case[0] for case in CASES}


@pytest.mark.parametrize(
    ("override", "what"),
    [
        ("model.num_experts=0", "below 1"),
        ("parallel.tp=-1", "below 1"),
        ("model.mtp_depth=-1", "below 0"),
        ("optim.eps=nan", "not a finite number"),
        ("data.corpora.0.weight=inf", "not a finite number"),
    ],
)
def test_sizes_and_numbers(problems, override, what):
    assert problems(*PRETRAIN, override)[override.partition("=")[0]].what == what


def test_passkey_settings_of_a_corpus(problems):
    source, settings = "data.corpora.0.source='builtin:passkey'", "data.corpora.0.passkey"
    assert problems(*PRETRAIN, source, f"{settings}={{max_tokens: 96, documents: 5}}") == {}
    elsewhere = problems(*PRETRAIN, f"{settings}={{max_tokens: 96, documents: 5}}")
    assert elsewhere[settings].what == "only the source builtin:passkey is made from it"
    one_digit = problems(*PRETRAIN, source, f"{settings}={{max_tokens: 96, documents: 5, digits: 1}}")
    assert "one-digit keys" in one_digit[f"{settings}.digits"].what
    assert problems(*PRETRAIN, source, f"{settings}={{max_tokens: 96, documents: 5, digits: 2}}") == {}


@pytest.mark.parametrize(
    "overrides",
    [
        *([f"rl={name}"] for name in ("grpo", "grpo_r1", "dr_grpo", "gspo", "gspo_token", "cispo")),
        ["rl=dapo", "rl.overlong.buffer_tokens=8"],
        ["rl.correction={weight: tis, weight_high: 2.0, sequence_mask: geometric, mask_low: 0.999, mask_high: 1.001}"],
        ["rl.correction={weight: icepop, weight_low: 0.5, weight_high: 5.0, off_policy_delta: 0.1}"],
        ["rl.kl_estimator=k1", "rl.kl_coef=0.0"],
        ["rl.overlong.rule=mask", "rl.stop_if.entropy_below=0.1"],
    ],
)
def test_named_algorithms_and_corrections_pass(problems, overrides):
    assert problems(*GRPO, *overrides) == {}


def test_flex_dispatcher_needs_cuda(problems):
    assert "needs a GPU" in problems(*PRETRAIN, "parallel.dispatcher=flex")["parallel.dispatcher"].what
    on_gpu = ["cluster.device=cuda", "parallel.dispatcher=flex", "optim.precision=fp8_blockwise"]
    assert problems(*PRETRAIN, *on_gpu) == {}


def test_yarn_limits_positions(problems):
    yarn = "model.yarn={factor: 2.0, original_max_positions: 64}"
    assert "the 128 positions" in problems(*PRETRAIN, yarn, "stage.seq_length=129")["stage.seq_length"].what
    assert problems(*PRETRAIN, yarn, "stage.seq_length=128") == {}


def test_greedy_evaluation_is_allowed(problems):
    assert problems(*PRETRAIN, "eval.temperature=0") == {}
    assert problems(*PRETRAIN, "eval.temperature=-1")["eval.temperature"].what == "below 0"
