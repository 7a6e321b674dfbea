"""Pipeline layouts: megatron-core's layout string, or an even split, as one string of letters per pipeline stage.

Letters: E embedding, t decoder layer, m multi-token-prediction block, L output head and loss.
"""

import re

from r1train.config.schema_model import AnyModelConfig
from r1train.config.schema_parallel import ParallelConfig

LETTERS = "EtmL"


def parse_layout(text: str) -> tuple[str, ...]:
    """Letters of each stage in layer order; `x*3` and `(tt|)*3` repeat, commas are cosmetic.

    Raises ValueError with the offending characters if something else than letters remains.
    """
    unrolled = text.replace(",", "").replace(" ", "")
    for pattern in (r"\(([^()]+)\)\*(\d+)", r"([^()|*])\*(\d+)"):
        unrolled = re.sub(pattern, lambda match: match.group(1) * int(match.group(2)), unrolled)
    unknown = sorted(set(unrolled) - set(LETTERS + "|"))
    if unknown:
        raise ValueError(f"has the unknown character(s) {' '.join(unknown)}")
    return tuple(unrolled.split("|"))


def virtual_stages(parallel: ParallelConfig) -> int:
    """Model chunks per pipeline rank: the layout has pp times as many stages; 1 without interleaving.

    Raises ValueError for a layout that cannot be read.
    """
    return 1 if parallel.pp_layout is None else len(parse_layout(parallel.pp_layout)) // parallel.pp


def micro_batch_rounds(parallel: ParallelConfig) -> int:
    """A step's micro-batches per data-parallel rank are a multiple of this: interleaving deals them in rounds of pp."""
    return parallel.pp if virtual_stages(parallel) > 1 else 1


def embedding_stages(parallel: ParallelConfig) -> tuple[int, ...]:
    """pp_ranks that hold the input embedding: the first, and the one with MTP, which has a copy of it.

    Without MTP in the layout the last one stands for MTP or a tied head, as megatron-core assumes.
    """
    copy = parallel.pp - 1
    if parallel.pp_layout is not None and "m" in parallel.pp_layout:
        stages = parse_layout(parallel.pp_layout)
        copy = next(index for index, letters in enumerate(stages) if "m" in letters) % parallel.pp
    return (0,) if copy == 0 else (0, copy)


def stage_letters(model: AnyModelConfig, parallel: ParallelConfig) -> tuple[str, ...]:
    """Letters of every (virtual) pipeline stage; without a layout the decoder layers are split evenly.

    Stage i belongs to pp_rank i % pp, as in megatron-core. The config must have passed the checks.
    """
    if parallel.pp_layout is not None:
        return parse_layout(parallel.pp_layout)
    stages = ["t" * (model.num_layers // parallel.pp)] * parallel.pp
    stages[0] = "E" + stages[0]
    stages[-1] = stages[-1] + "m" * model.mtp_depth + "L"
    return tuple(stages)
