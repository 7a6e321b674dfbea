"""Names of the files that the prepare stage writes into the data folder, as far as the config alone tells."""

from collections.abc import Iterable

TOKENIZER = "tokenizer/tokenizer.json"
# Held-out documents of corpus/<name> are the corpus of this name behind it.
HELDOUT_SUFFIX = "_heldout"
_ROWS = ("cold_start.jsonl", "prompts/train.jsonl", "prompts/heldout.jsonl")
_CORPUS_ENDINGS = (".bin", ".idx", ".json")


def prepared_names(corpora: Iterable[str]) -> list[str]:
    """Names below data.dir; corpora: of data.corpora. The rest of a given tokenizer and held-out parts come on top."""
    return [TOKENIZER, *_ROWS, *(f"corpus/{name}{ending}" for name in corpora for ending in _CORPUS_ENDINGS)]
