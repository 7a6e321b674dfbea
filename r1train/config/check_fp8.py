"""Rules about the shapes that FP8 matrix products take."""

from r1train.config.schema import EvaluateStage, GrpoStage, PrepareStage, PretrainStage, RunConfig, SftStage
from r1train.config.schema_model import DenseModelConfig, ModelConfig
from r1train.config.schema_parallel import ParallelConfig
from r1train.config.schema_samples import PairsStage, RewardModelStage
from r1train.config.widths import TOKENS, WIDTH, matrix_widths
from r1train.errors import Problem


def fp8_rows_are_whole_units(cfg: RunConfig) -> list[Problem]:
    """What one rank multiplies at a time: its part of a micro-batch, of a packed row, or of a held-out window.

    Packed rows that are cut over ranks are padded to whole units (train/context.py), whatever lies in them.
    """
    stage, parallel = cfg.stage, cfg.parallel
    if not cfg.optim.precision.startswith("fp8"):
        return []
    rows, key = 1, "stage.seq_length"
    if isinstance(stage, EvaluateStage):
        if not cfg.data.corpora:
            return []
        # Computed one at a time.
        key, given = "eval.perplexity_length", cfg.eval.perplexity_length
        length = cfg.eval.window_length(cfg.model.distinct_positions)
    elif isinstance(stage, PretrainStage | SftStage | GrpoStage | RewardModelStage):
        given = length = stage.seq_length
        rows = stage.micro_batch_size if isinstance(stage, PretrainStage) else 1
    else:
        return []
    ranks = parallel.tp * parallel.cp
    if rows * length % (TOKENS * ranks) == 0:
        return []
    what = f"FP8 takes a multiple of {TOKENS} tokens on a rank: of {rows} x {length}, cut over {ranks} ranks"
    return [Problem(key, given, what, f"a multiple of {TOKENS * ranks}, or bf16")]


def fp8_widths_are_whole_units(cfg: RunConfig) -> list[Problem]:
    """Where a model computes at all: preparing data and pairing stored samples do without."""
    if not cfg.optim.precision.startswith("fp8") or isinstance(cfg.stage, PrepareStage | PairsStage):
        return []
    ragged = {name: size for name, size in widths_on_a_rank(cfg.model, cfg.parallel).items() if size % WIDTH}
    if not ragged:
        return []
    listed = ", ".join(f"{name} = {size}" for name, size in ragged.items())
    what = f"FP8 takes multiples of {WIDTH}, but on a rank {listed}"
    return [Problem("optim.precision", cfg.optim.precision, what, "bf16, or a model or layout with such widths")]


def widths_on_a_rank(model: ModelConfig | DenseModelConfig, parallel: ParallelConfig) -> dict[str, int]:
    """What the matrices that FP8 multiplies read and write, cut as the layout cuts them."""
    ranks = {None: 1, "tp": parallel.tp, "experts": parallel.etp}
    return {one.name: one.size // ranks[one.cut] for one in matrix_widths(model, mtp=True) if one.in_trainer}


RULES = (fp8_rows_are_whole_units, fp8_widths_are_whole_units)
