"""Which keys of a config decide a stage's result."""

from r1train.stages.lineage import config_reasons, deciding


def test_paths_do_not_decide_and_lists_do():
    tree = {"stage": {"name": "sft", "dataset": "a", "lengths": [1, 2]}, "evaluate_after": False, "root": "r"}
    assert deciding(tree) == {"stage.name": "sft", "stage.lengths.0": 1, "stage.lengths.1": 2}
    # A kind that nobody has listed: everything but places.
    other = {"stage": {"name": "new"}, "evaluate_after": False, "root": "r", "rl": {"kl_coef": 0.1}}
    assert deciding(other) == {"stage.name": "new", "evaluate_after": False, "rl.kl_coef": 0.1}


def test_where_a_reward_model_waits_decides_nothing():
    """Lists of records: the switch of each of them, and vLLM's share of the memory."""

    def tree(*, offload: bool, share: float, weight: float) -> dict:
        reward = {"preferences": [{"name": "a", "weight": weight, "offload": offload}]}
        rollout = {"engine": "vllm", "gpu_memory_share": share, "push_mib": int(100 * share)}
        return {"stage": {"name": "grpo"}, "evaluate_after": False, "reward": reward, "rollout": rollout}

    one = tree(offload=False, share=0.4, weight=1.0)
    assert config_reasons(one, tree(offload=True, share=0.5, weight=1.0)) == []
    reasons = config_reasons(one, tree(offload=True, share=0.5, weight=2.0))
    assert reasons == ["reward.preferences.0.weight was 1.0, is now 2.0"]


def test_a_key_of_a_newer_version_decides_only_where_it_is_set():
    stage = {"stage": {"name": "pretrain"}, "evaluate_after": False}
    then = {**stage, "model": {"hidden_size": 8}}
    assert config_reasons(then, {**stage, "model": {"hidden_size": 8, "token_merging": None}}) == []
    (reason,) = config_reasons(then, {**stage, "model": {"hidden_size": 8, "token_merging": {"window": 4}}})
    assert reason == "model.token_merging.window was absent, is now 4"


def test_a_newer_key_that_does_what_was_done_before_decides_nothing():
    """data.packing came with concatenate, which is what older versions did."""
    then = {"stage": {"name": "pretrain"}, "evaluate_after": False, "data": {"mask_across_documents": False}}

    def now(packing: str) -> dict:
        return {**then, "data": {**then["data"], "packing": packing}}

    assert config_reasons(then, now("concatenate")) == []
    assert config_reasons(then, now("best_fit")) == ["data.packing was absent, is now 'best_fit'"]
    assert config_reasons(now("best_fit"), then) == ["data.packing was 'best_fit', is now absent"]


def test_a_key_that_is_gone_decides_nothing():
    """optim.distributed was a switch of speed; runs of older versions have it, either way."""
    now = {"stage": {"name": "pretrain"}, "evaluate_after": False, "optim": {"beta1": 0.9}}
    for value in (True, False):
        then = {**now, "optim": {"beta1": 0.9, "distributed": value}}
        assert config_reasons(then, now) == []
        assert deciding(then) == deciding(now)
    gone = {**now, "optim": {"beta1": 0.9, "unheard_of": True}}
    assert config_reasons(gone, now) == ["optim.unheard_of was True, is now absent"]


def test_a_batch_that_grew_in_other_steps_decides():
    """lr.batch_multiple came with 1; how the layout divides the batch decides nothing."""
    then = {"stage": {"name": "pretrain", "micro_batch_size": 1}, "evaluate_after": False, "lr": {"name": "a"}}
    now = {**then, "stage": {"name": "pretrain", "micro_batch_size": 2}}
    assert config_reasons(then, {**now, "lr": {"name": "a", "batch_multiple": 1}}) == []
    (reason,) = config_reasons(then, {**now, "lr": {"name": "a", "batch_multiple": 4}})
    assert reason == "lr.batch_multiple was absent, is now 4"


def test_rl_of_a_version_before_its_own_balance_loss_had_the_models():
    grpo = {"stage": {"name": "grpo"}, "evaluate_after": False}
    stage = {**grpo, "model": {"sequence_loss_coef": 1e-4}}
    then, now = {**stage, "rl": {"kl_coef": 0.1}}, {**stage, "rl": {"kl_coef": 0.1, "sequence_loss_coef": 0.0}}
    assert config_reasons(then, now) == ["rl.sequence_loss_coef was absent, is now 0.0"]
    assert config_reasons(then, {**stage, "rl": {"kl_coef": 0.1, "sequence_loss_coef": 1e-4}}) == []
    assert (
        config_reasons({**grpo, "rl": {"kl_coef": 0.1}}, {**grpo, "rl": {"kl_coef": 0.1, "sequence_loss_coef": 0.0}})
        == []
    )
