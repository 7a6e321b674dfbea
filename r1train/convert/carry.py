"""The small files of a Hugging Face folder: carried from import to export; our own tokenizer in transformers' form."""

import json
import shutil
from pathlib import Path
from typing import Any

import yaml

from r1train.data.tokenizer import SPECIAL_TOKENS, TOKENIZER_FILE
from r1train.log.atomic import write_atomically

HF_FILES = "hf"  # folder in the run folder of an import, for the export of what is trained from it
_CARRIED = (
    *("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "tokenizer.model"),
    *("special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt", "tiktoken.model"),
    *("chat_template.jinja", "chat_template.json", "tokenization_*.py", "LICENSE*"),
)
# The chat format of data/chat.py: one question, one response; a turn of the assistant ends with <|eos|>.
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'user' %}{{ '<|user|>' + message['content'] }}"
    "{% elif message['role'] == 'assistant' %}{{ '<|assistant|>' + message['content'] + eos_token }}"
    "{% else %}{{ raise_exception('this model knows the roles user and assistant only') }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def carry_files(source: Path, target: Path) -> list[str]:
    """Copy config, generation config and tokenizer files that are there; returns their names."""
    target.mkdir(parents=True, exist_ok=True)
    names = sorted({path.name for pattern in _CARRIED for path in source.glob(pattern) if path.is_file()})
    for name in names:
        shutil.copyfile(source / name, target / f"{name}.tmp")
        (target / f"{name}.tmp").replace(target / name)
    return names


def tokenizer_of_run(run: Path) -> Path | None:
    """The tokenizer's folder: what an import carried along, else that of the run's data folder; None without either."""
    resolved = run / "resolved.yaml"
    folders = [run / HF_FILES]
    if resolved.is_file():
        folders.append(Path(yaml.safe_load(resolved.read_text(encoding="utf-8"))["data"]["dir"]) / "tokenizer")
    return next((folder for folder in folders if folder.is_dir()), None)


def write_our_tokenizer(folder: Path, target: Path, *, max_length: int) -> dict[str, Any]:
    """Our tokenizer as AutoTokenizer loads it, with chat template; returns the token ids for config.json."""
    shutil.copyfile(folder / TOKENIZER_FILE, target / TOKENIZER_FILE)
    bos, eos, pad = SPECIAL_TOKENS[:3]
    names = {"bos_token": bos, "eos_token": eos, "pad_token": pad}
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": max_length,
        "clean_up_tokenization_spaces": False,
        "add_bos_token": False,
        "chat_template": CHAT_TEMPLATE,
        **names,
    }
    write_atomically(target / "tokenizer_config.json", json.dumps(config, indent=2).encode())
    write_atomically(target / "special_tokens_map.json", json.dumps(names, indent=2).encode())
    return {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
