"""What the language filter of rejection sampling, as shipped, keeps of chains in one language and of mixed ones."""

import pytest

from r1train.config.load import load_config
from r1train.config.schema_samples import FilterConfig
from r1train.data.prompts import Prompt
from r1train.reward.base import Score
from r1train.reward.candidate import Candidate
from r1train.reward.filters import mixes_languages
from r1train.reward.language import language_score

CHINESE = "\u9996\u5148\u6211\u4eec\u628a\u4e24\u4e2a\u6570\u76f8\u52a0"  # 10 characters, a word each
ENGLISH = "First we look at the wave and at how fast it goes."  # 12 words
CASES = [
    ("a name in a Chinese chain", f"{CHINESE * 3} sin(x) {CHINESE}.", "zh", 40 / 41, True),
    ("a Greek name in an English chain", f"{ENGLISH} \u03bb\u03bb.", "en", 12 / 13, True),
    ("one sentence in five", f"{ENGLISH * 3} {CHINESE}.", "en", 36 / 46, False),
]


@pytest.mark.parametrize("stage", ["reject", "collect"])
@pytest.mark.parametrize(
    ("chain", "language", "share", "passes"), [case[1:] for case in CASES], ids=[c[0] for c in CASES]
)
def test_shipped_filter(stage, chain, language, share, passes):
    cfg = load_config(["experiment=tiny_collect", f"stage={stage}", "stage.init_from=x"], check_files=False)
    text = f"<think>{chain}</think><answer>3</answer>"
    score = language_score(Prompt("p", "math", "?", "3", {"language": language}, (0,)), text)
    assert score == pytest.approx(share, abs=1e-12)
    one = Candidate(
        prompt_id="p",
        task="math",
        question="?",
        index=0,
        text=text,
        tokens=9,
        truncated=False,
        policy_version=1,
        score=Score(1.0, {"language": score}, None),
    )
    assert mixes_languages(one, cfg.stage.filters) == (not passes)
    assert FilterConfig().language == cfg.stage.filters.language == 0.9
