"""Rules about what a layout can be combined with: virtual stages, context parallelism, overlap, recompute, offload."""

from r1train.config.layout import micro_batch_rounds, parse_layout, virtual_stages
from r1train.config.schema import GrpoStage, PretrainStage, RunConfig, SftStage
from r1train.config.schema_model import ModelConfig
from r1train.config.schema_samples import RewardModelStage
from r1train.errors import Problem

RECOMPUTED = ("core_attn", "layernorm", "mla_up_proj", "mlp", "moe", "moe_act", "shared_experts")
RECOMPUTED_ON_GPUS = ("layernorm", "moe_act")


def virtual_stages_need_a_pipeline(cfg: RunConfig) -> list[Problem]:
    parallel = cfg.parallel
    if _virtual_stages(cfg) == 1 or parallel.pp > 1:
        return []
    what = "gives one pipeline rank several stages (|), which only interleaving over pp > 1 can run"
    return [Problem("parallel.pp_layout", parallel.pp_layout, what, "leave the | out, or raise parallel.pp")]


def virtual_stages_have_mtp_at_the_end(cfg: RunConfig) -> list[Problem]:
    """megatron-core builds MTP in the last chunk of its rank, and that rank must not be the embedding's."""
    pp, virtual = cfg.parallel.pp, _virtual_stages(cfg)
    if virtual == 1 or pp == 1 or cfg.parallel.pp_layout is None or "m" not in cfg.parallel.pp_layout:
        return []
    stages = parse_layout(cfg.parallel.pp_layout)
    place = next(index for index, letters in enumerate(stages) if "m" in letters)
    if place >= len(stages) - pp and place % pp != 0:
        return []
    what = f"has MTP (m) in stage {place}; with {virtual} stages per rank it belongs into one of the last {pp - 1}"
    return [Problem("parallel.pp_layout", cfg.parallel.pp_layout, what, "move m behind the last | or the one before")]


def virtual_stages_need_rounds(cfg: RunConfig) -> list[Problem]:
    """Interleaving deals micro-batches to the chunks in rounds of pp."""
    stage, parallel = cfg.stage, cfg.parallel
    if _virtual_stages(cfg) == 1 or not isinstance(stage, PretrainStage | SftStage):
        return []
    micro = stage.micro_batch_size if isinstance(stage, PretrainStage) else 1
    share = parallel.dp * micro * micro_batch_rounds(parallel)
    if stage.batch_size % share == 0:
        return []
    what = f"not divisible by dp x micro_batch_size x pp = {share}, which virtual pipeline stages need"
    return [Problem("stage.batch_size", stage.batch_size, what, f"a multiple of {share}")]


def nothing_is_generated_over_virtual_stages(cfg: RunConfig) -> list[Problem]:
    """The native engine walks through one chunk per rank."""
    if _virtual_stages(cfg) == 1 or not cfg.generates:
        return []
    what = "the native engine cannot generate with several stages per pipeline rank"
    fix = f"a layout of {cfg.parallel.pp} stages for this stage of the schedule, and evaluate_after=false"
    return [Problem("parallel.pp_layout", cfg.parallel.pp_layout, what, fix)]


def context_parallelism_fits(cfg: RunConfig) -> list[Problem]:
    """Ring attention is Transformer Engine's; what looks at whole samples on one rank cannot be cut."""
    parallel = cfg.parallel
    if parallel.cp == 1:
        return []
    if cfg.cluster.device == "cpu":
        what = "attention over a cut sequence is Transformer Engine's, but cluster.device is cpu"
        return [Problem("parallel.cp", parallel.cp, what, "1, or a cluster with cuda")]
    if cfg.generates:
        what = f"stage {cfg.stage.name} generates or weighs whole samples, which context parallelism cuts"
        return [Problem("parallel.cp", parallel.cp, what, "1 (tp cuts long samples, too), evaluate_after=false")]
    if _packs(cfg) and _virtual_stages(cfg) > 1:
        what = "packed rows differ in length once they are cut, and virtual pipeline stages need one length"
        return [Problem("parallel.cp", parallel.cp, what, "1, or a layout without virtual stages")]
    return []


def expert_overlap_fits(cfg: RunConfig) -> list[Problem]:
    """What megatron-core 0.19.2 asks of overlap_moe_expert_parallel_comm (transformer_config.py)."""
    parallel, model = cfg.parallel, cfg.model
    key = "parallel.overlap_expert_all_to_all"
    if not parallel.overlap_expert_all_to_all:
        if parallel.delay_wgrad:
            return [Problem("parallel.delay_wgrad", True, "fills the gaps of the expert overlap only", f"{key}=true")]
        return []
    reasons = {
        "there is no all-to-all with parallel.ep = 1": parallel.ep == 1,
        "with pp > 1 it needs virtual stages (a layout of a multiple of pp stages)": parallel.pp > 1
        and _virtual_stages(cfg) == 1,
        "the allgather dispatcher has no all-to-all": parallel.dispatcher == "allgather",
        "it needs bf16 activations, not optim.precision = fp32": cfg.optim.precision == "fp32",
        "it needs a GPU, but cluster.device is cpu": cfg.cluster.device == "cpu",
        "recompute_modules may not hold moe": "moe" in parallel.recompute_modules,
        "it runs at most one MTP block": isinstance(model, ModelConfig) and model.mtp_depth > 1,
        f"it cannot run an MTP block over packed rows, which stage {cfg.stage.name} trains on": _packs(cfg)
        and isinstance(model, ModelConfig)
        and model.mtp_depth > 0,
    }
    return [Problem(key, True, what, "false, or change that") for what, applies in reasons.items() if applies]


def _packs(cfg: RunConfig) -> bool:
    """Whether the stage trains on rows of several samples that do not see each other."""
    if isinstance(cfg.stage, PretrainStage):
        return cfg.data.mask_across_documents
    return isinstance(cfg.stage, SftStage | GrpoStage | RewardModelStage)


def gather_overlap_fits(cfg: RunConfig) -> list[Problem]:
    parallel = cfg.parallel
    if not parallel.overlap_param_gather or parallel.overlap_grad_reduce:
        return []
    what = "needs parallel.overlap_grad_reduce"
    return [Problem("parallel.overlap_param_gather", True, what, "false, or switch that on, too")]


def allgather_has_one_length(cfg: RunConfig) -> list[Problem]:
    """Between plain pipeline stages lengths may vary, which megatron-core's allgather dispatcher refuses."""
    parallel = cfg.parallel
    if parallel.dispatcher != "allgather":
        return []
    if parallel.cp > 1 and _packs(cfg):
        what = "needs as many tokens on every rank, and packed rows that are cut have other lengths"
    elif parallel.pp > 1 and _virtual_stages(cfg) == 1:
        what = "needs micro-batches of one length, and pipeline stages may exchange several"
    else:
        return []
    return [Problem("parallel.dispatcher", "allgather", what, "alltoall")]


def recompute_modules_exist(cfg: RunConfig) -> list[Problem]:
    key, on_cpu = "parallel.recompute_modules", cfg.cluster.device == "cpu"
    problems = []
    for name in cfg.parallel.recompute_modules:
        if name not in RECOMPUTED:
            problems.append(Problem(key, name, "cannot be recomputed", f"one of {', '.join(RECOMPUTED)}"))
        elif name in RECOMPUTED_ON_GPUS and on_cpu:
            what = "is recomputed by Transformer Engine's modules only, but cluster.device is cpu"
            problems.append(Problem(key, name, what, "leave it out, or choose a cluster with cuda"))
    return problems


def expert_tensor_parallelism_fits(cfg: RunConfig) -> list[Problem]:
    """Expert tensor parallelism cuts an expert's width, and gathers unequal numbers of tokens, which gloo cannot."""
    model, etp = cfg.model, cfg.parallel.etp
    if etp > 1 and cfg.cluster.device == "cpu":
        what = "gloo cannot gather the ranks' different numbers of tokens, and cluster.device is cpu"
        return [Problem("parallel.etp", etp, what, "1, or a cluster with cuda")]
    if not isinstance(model, ModelConfig) or model.moe_ffn_hidden_size % etp == 0:
        return []
    what = f"not divisible by parallel.etp = {etp}"
    return [Problem("model.moe_ffn_hidden_size", model.moe_ffn_hidden_size, what, f"a multiple of {etp}")]


def optimizer_memory_in_range(cfg: RunConfig) -> list[Problem]:
    optim, problems = cfg.optim, []
    if not 0 <= optim.cpu_offload_fraction <= 1:
        problems.append(
            Problem("optim.cpu_offload_fraction", optim.cpu_offload_fraction, "outside 0 to 1", "0 none, 1 all")
        )
    elif optim.cpu_offload_fraction > 0 and cfg.cluster.device == "cpu":
        what = "there is no other memory to offload to: cluster.device is cpu"
        problems.append(Problem("optim.cpu_offload_fraction", optim.cpu_offload_fraction, what, "0"))
    elif optim.cpu_offload_fraction > 0 and optim.moments_dtype != "fp32":
        what = "moments in host memory are fp32 (torch's AdamW)"
        problems.append(Problem("optim.moments_dtype", optim.moments_dtype, what, "fp32, or no offload"))
    if optim.ema_decay is not None and not 0 < optim.ema_decay < 1:
        problems.append(Problem("optim.ema_decay", optim.ema_decay, "outside 0 to 1", "such as 0.999, or null"))
    elif optim.ema_decay is not None and isinstance(cfg.stage, RewardModelStage):
        what = "reward_model keeps no average: nothing serves one with its value head"
        problems.append(Problem("optim.ema_decay", optim.ema_decay, what, "null"))
    return problems


def rl_memory_can_move(cfg: RunConfig) -> list[Problem]:
    """On CPU both switches work and gain nothing: what moves goes from memory to memory."""
    problems: list[Problem] = []
    if not isinstance(cfg.stage, GrpoStage):
        return problems
    if cfg.rl.reference_offload and cfg.rl.kl_coef == 0:
        what = "without a KL term there is no reference policy"
        problems.append(Problem("rl.reference_offload", True, what, "false, or rl.kl_coef above 0"))
    if cfg.rl.offload_during_rollout and cfg.optim.cpu_offload_fraction > 0:
        what = "optimizer state is in host memory already (optim.cpu_offload_fraction)"
        problems.append(Problem("rl.offload_during_rollout", True, what, "false, or optim.cpu_offload_fraction=0"))
    return problems


def _virtual_stages(cfg: RunConfig) -> int:
    """1 for a layout that cannot be read or divided: other rules report that."""
    try:
        return max(virtual_stages(cfg.parallel), 1)
    except ValueError:
        return 1


RULES = (
    virtual_stages_need_a_pipeline,
    virtual_stages_have_mtp_at_the_end,
    virtual_stages_need_rounds,
    nothing_is_generated_over_virtual_stages,
    context_parallelism_fits,
    expert_overlap_fits,
    gather_overlap_fits,
    allgather_has_one_length,
    recompute_modules_exist,
    expert_tensor_parallelism_fits,
    optimizer_memory_in_range,
    rl_memory_can_move,
)
