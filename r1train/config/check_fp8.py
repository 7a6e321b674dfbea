"""Rules about the shapes that FP8 matrix products take."""

from r1train.config.schema import GrpoStage, PretrainStage, RunConfig, SftStage
from r1train.config.schema_model import DenseModelConfig, ModelConfig
from r1train.config.schema_parallel import ParallelConfig
from r1train.config.schema_samples import RewardModelStage
from r1train.errors import Problem

# Transformer Engine's assert_dim_for_fp8_exec (pytorch/utils.py): tokens and widths of every operand.
TOKENS, WIDTH = 8, 16


def fp8_rows_are_whole_units(cfg: RunConfig) -> list[Problem]:
    """What one rank multiplies at a time: its part of a micro-batch, or of a packed row."""
    stage, parallel = cfg.stage, cfg.parallel
    if not cfg.optim.precision.startswith("fp8"):
        return []
    if not isinstance(stage, PretrainStage | SftStage | GrpoStage | RewardModelStage):
        return []
    rows = stage.micro_batch_size if isinstance(stage, PretrainStage) else 1
    ranks = parallel.tp * parallel.cp
    if rows * stage.seq_length % (TOKENS * ranks) == 0:
        return []
    what = f"FP8 takes a multiple of {TOKENS} tokens on a rank: of {rows} x {stage.seq_length}, cut over {ranks} ranks"
    return [Problem("stage.seq_length", stage.seq_length, what, f"a multiple of {TOKENS * ranks}, or bf16")]


def fp8_widths_are_whole_units(cfg: RunConfig) -> list[Problem]:
    if not cfg.optim.precision.startswith("fp8"):
        return []
    ragged = {name: size for name, size in widths_on_a_rank(cfg.model, cfg.parallel).items() if size % WIDTH}
    if not ragged:
        return []
    listed = ", ".join(f"{name} = {size}" for name, size in ragged.items())
    what = f"FP8 takes multiples of {WIDTH}, but on a rank {listed}"
    return [Problem("optim.precision", cfg.optim.precision, what, "bf16, or a model or layout with such widths")]


def widths_on_a_rank(model: ModelConfig | DenseModelConfig, parallel: ParallelConfig) -> dict[str, int]:
    """What the matrices that FP8 multiplies read and write, cut as the layout cuts them."""
    tp, heads = parallel.tp, model.num_attention_heads
    widths = {"hidden_size": model.hidden_size, "ffn_hidden_size": model.ffn_hidden_size // tp}
    if isinstance(model, DenseModelConfig):
        joined = (heads + 2 * model.num_key_value_heads) * model.head_dim
        widths |= {"num_attention_heads * head_dim": heads * model.head_dim // tp}
        return widths | {"queries, keys and values": joined // tp}
    nope, rope, value = model.qk_nope_head_dim, model.qk_rope_head_dim, model.v_head_dim
    widths |= {
        "moe_ffn_hidden_size": model.moe_ffn_hidden_size // parallel.etp,
        "kv_lora_rank": model.kv_lora_rank,
        "kv_lora_rank + qk_rope_head_dim": model.kv_lora_rank + rope,
        "num_attention_heads * (qk_nope_head_dim + qk_rope_head_dim)": heads * (nope + rope) // tp,
        "num_attention_heads * (qk_nope_head_dim + v_head_dim)": heads * (nope + value) // tp,
        "num_attention_heads * v_head_dim": heads * value // tp,
    }
    if model.num_shared_experts:
        widths["num_shared_experts * moe_ffn_hidden_size"] = model.num_shared_experts * model.moe_ffn_hidden_size // tp
    return widths | ({} if model.q_lora_rank is None else {"q_lora_rank": model.q_lora_rank})


RULES = (fp8_rows_are_whole_units, fp8_widths_are_whole_units)
