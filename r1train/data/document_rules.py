"""What is done to training documents on their way to token ids: fill in the middle, split boundaries."""

from dataclasses import dataclass

from r1train.data.boundaries import BoundarySplit
from r1train.data.fim import FimRule
from r1train.data.tokenizer import Tokenizer
from r1train.errors import DataError


@dataclass(frozen=True)
class DocumentRules:
    """None leaves documents as they are; held-out ones always are."""

    fim: FimRule | None = None
    split: BoundarySplit | None = None


NO_RULES = DocumentRules()


def document_rules(tokenizer: Tokenizer, *, fim_rate: float, split_rate: float, seed: int) -> DocumentRules:
    """Rules for documents of this tokenizer. Raises DataError where it lacks the tokens that a rate above 0 needs."""
    if fim_rate > 0 and tokenizer.fim_ids is None:
        fix = "tools/train_tokenizer.py --fim trains one that has them, or a FIM rate of 0"
        raise DataError(f"fill in the middle at rate {fim_rate}: a tokenizer without FIM tokens. Fix: {fix}")
    return DocumentRules(
        fim=FimRule(fim_rate, seed) if fim_rate > 0 else None,
        split=BoundarySplit(split_rate, seed, tokenizer) if split_rate > 0 else None,
    )
