"""Our side of test_reference_pretrain.py: python reference.py FOLDER OVERRIDE...

Writes two small corpora with held-out documents, trains the run FOLDER/first for a step, so that its experts have
biases, and from its weights the run FOLDER/pretrain.
"""

import sys
from pathlib import Path

from r1train.config.load import dump_resolved, load_config
from r1train.dist.init import select_device


def write_data(folder: Path, vocab_size: int) -> None:
    from r1train.data.corpus import write_corpus
    from r1train.data.documents import documents
    from r1train.data.tokenizer import Tokenizer, save_tokenizer, train_tokenizer

    texts = list(documents("builtin:gsm8k"))[:200]
    save_tokenizer(train_tokenizer(texts, vocab_size), folder / "tokenizer")
    tokenizer = Tokenizer.load(folder / "tokenizer")
    for name, part in (
        ("a", texts[:90]),
        ("b", texts[90:180]),
        ("a_heldout", texts[180:190]),
        ("b_heldout", texts[190:]),
    ):
        write_corpus(part, tokenizer, folder / "corpus" / name)


def main(folder: Path, overrides: list[str]) -> None:
    first = load_config([*overrides, f"root={folder}", "step=first", "stage.steps=1"], check_files=False)
    select_device(first.cluster)
    write_data(Path(first.data.dir), first.data.tokenizer_vocab_size)
    from r1train.log.result import write_result
    from r1train.stages.pretrain import run

    second = load_config(
        [*overrides, f"root={folder}", "step=pretrain", f"stage.init_from={first.run_dir}"], check_files=False
    )
    for cfg in (first, second):
        dump_resolved(cfg, cfg.run_dir)
        write_result(cfg.run_dir, run(cfg))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
