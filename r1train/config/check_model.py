"""Rules about the model that hold for every architecture."""

from r1train.config.schema import RunConfig
from r1train.errors import Problem


def model_numbers_in_range(cfg: RunConfig) -> list[Problem]:
    model = cfg.model
    return [
        Problem(f"model.{name}", value, "must be above 0", "write a positive number")
        for name, value in (
            ("rope_base", model.rope_base),
            ("rms_norm_eps", model.rms_norm_eps),
            ("init_std", model.init_std),
        )
        if value <= 0
    ]


def vocabulary_holds_the_tokenizer(cfg: RunConfig) -> list[Problem]:
    if cfg.model.vocab_size >= cfg.data.tokenizer_vocab_size:
        return []
    what = f"smaller than the tokenizer's {cfg.data.tokenizer_vocab_size} entries"
    return [Problem("model.vocab_size", cfg.model.vocab_size, what, "at least data.tokenizer_vocab_size")]


RULES = (model_numbers_in_range, vocabulary_holds_the_tokenizer)
