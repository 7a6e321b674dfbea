"""Parameters that one rank holds of a pipeline stage of a dense model."""

from r1train.config.schema import RunConfig
from r1train.config.schema_model import DenseModelConfig
from r1train.plan.shape_dense import layer


def held(model: DenseModelConfig, cfg: RunConfig, letters: str) -> int:
    """Tensor parallelism cuts every matrix and bias, not the norms. A tied head in another stage is a second copy."""
    tp, hidden = cfg.parallel.tp, model.hidden_size
    norms = 2 * hidden
    table = model.vocab_size * hidden // tp
    tables = 1 if model.tie_embeddings and {"E", "L"} <= set(letters) else letters.count("E") + letters.count("L")
    return letters.count("t") * ((layer(model) - norms) // tp + norms) + tables * table + hidden * ("L" in letters)
