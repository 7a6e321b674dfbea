"""Rules about soft token merging (model.token_merging): an experiment of pre-training on whole sequences."""

from r1train.config.schema import PrepareStage, PretrainStage, RunConfig
from r1train.config.schema_model import ModelConfig, TokenMergingConfig
from r1train.errors import Problem

KEY = "model.token_merging"


def merged_layers_exist(cfg: RunConfig) -> list[Problem]:
    merging, problems = _merging(cfg), []
    if merging is None:
        return []
    if merging.window < 2:
        what = "a window of one token merges nothing"
        problems.append(Problem(f"{KEY}.window", merging.window, what, f"2 or more, or {KEY}=null"))
    if not merging.first_layer <= merging.last_layer <= cfg.model.num_layers:
        what = f"not between first_layer = {merging.first_layer} and the last of {cfg.model.num_layers} layers"
        problems.append(
            Problem(f"{KEY}.last_layer", merging.last_layer, what, "layers count from 1, both are included")
        )
    return problems


def merged_tokens_are_pretrained_only(cfg: RunConfig) -> list[Problem]:
    """A cache of one entry per token does not know merged ones, and windows would cross packed samples."""
    if _merging(cfg) is None or isinstance(cfg.stage, PrepareStage):
        return []
    off = f"{KEY}=null"
    if not isinstance(cfg.stage, PretrainStage):
        what = f"stage {cfg.stage.name} generates or packs samples into rows, which merged tokens do not know"
        return [Problem(KEY, "set", what, f"{off}; token merging can only be pre-trained (schedule=pretrain)")]
    problems = []
    if cfg.evaluate_after:
        what = "its evaluation generates, and the cache does not know merged tokens"
        problems.append(Problem("evaluate_after", True, what, f"false, or {off}"))
    if cfg.data.mask_across_documents:
        what = "windows of merged tokens would cross documents"
        problems.append(Problem("data.mask_across_documents", True, what, f"false, or {off}"))
    return problems


def merged_sequences_are_whole(cfg: RunConfig) -> list[Problem]:
    """Every rank has whole sequences and all layers."""
    if _merging(cfg) is None:
        return []
    what = f"{KEY} needs whole sequences and all layers on every rank"
    sizes = {axis: vars(cfg.parallel)[axis] for axis in ("tp", "pp", "cp")}
    return [Problem(f"parallel.{axis}", size, what, f"1, or {KEY}=null") for axis, size in sizes.items() if size > 1]


def merging_stands_alone(cfg: RunConfig) -> list[Problem]:
    """Windows of attention would count merged tokens; the overlap runs the parts of a layer one by one."""
    if not isinstance(cfg.model, ModelConfig) or cfg.model.token_merging is None:
        return []
    problems = []
    windows = cfg.model.attention_windows
    if windows is not None and any(windows):
        what = "an attention window would count merged tokens"
        problems.append(Problem("model.attention_windows", list(windows), what, f"null, or {KEY}=null"))
    if cfg.parallel.overlap_expert_all_to_all:
        what = "the overlap takes layers apart, which must merge and inflate as a whole"
        problems.append(Problem("parallel.overlap_expert_all_to_all", True, what, f"false, or {KEY}=null"))
    return problems


def _merging(cfg: RunConfig) -> TokenMergingConfig | None:
    return cfg.model.token_merging if isinstance(cfg.model, ModelConfig) else None


RULES = (
    merged_layers_exist,
    merged_tokens_are_pretrained_only,
    merged_sequences_are_whole,
    merging_stands_alone,
)
