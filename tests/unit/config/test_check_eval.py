"""Rules about suites and passkey retrieval, and the message for a file that is not there."""

import pytest

SUITE = "{name: amc, path: none.jsonl, kind: math"
START = ("stage=evaluate", "stage.init_from=x")


@pytest.mark.parametrize(
    ("suites", "key", "what"),
    [
        (SUITE + ", template: 'Solve.'}", "eval.suites.0.template", "the question is not in the template"),
        (SUITE + ", template: '{question} {tests}'}", "eval.suites.0.template", "of kind math have no field {tests}"),
        (SUITE + ", answer_from: []}", "eval.suites.0.answer_from", "no answer could be found"),
        (SUITE + ", temperature: 0.0, samples_per_problem: 2}", "eval.suites.0.samples_per_problem", "the same answer"),
        (SUITE + ", temperature: -0.5}", "eval.suites.0.temperature", "below 0"),
        (SUITE + ", top_p: 1.5}", "eval.suites.0.top_p", "outside"),
        (
            SUITE + ", max_response_tokens: 500}",
            "eval.suites.0.max_response_tokens",
            "beyond the 512 positions that",
        ),
        (SUITE + ", problems: 0}", "eval.suites.0.problems", "below 1"),
        ("{name: a/b, path: x, kind: math}", "eval.suites.0.name", "names a file"),
        ("{name: chain_sum, path: x, kind: math}", "eval.suites.0.name", "has this name"),
        (SUITE + "}, " + SUITE + "}", "eval.suites.1.name", "has this name"),
        ("{name: a, path: x, kind: poems}", "eval.suites.0.kind", "poems"),
    ],
)
def test_suites(problems, suites, key, what):
    found = problems(*START, f"eval.suites=[{suites}]")
    assert what in str(found[key])


def test_the_reward_looks_somewhere(problems):
    assert problems(*START, "reward.answer_from=[]")["reward.answer_from"].what == "no answer could be found"
    assert problems(*START, "reward=free_text") == {}


def test_a_good_suite_and_a_template_with_a_box(problems):
    template = "'{question}\\nPut your final answer within \\\\boxed{}.'"
    assert problems(*START, f"eval.suites=[{SUITE}, template: {template}}}]") == {}


@pytest.mark.parametrize(
    ("passkey", "key", "what"),
    [
        ("{lengths: [600], depths: [0.5], problems: 1}", "eval.passkey.lengths", "beyond what the model can tell"),
        ("{lengths: [], depths: [0.5], problems: 1}", "eval.passkey.lengths", "empty, or a value twice"),
        ("{lengths: [100], depths: [0.5, 1.5], problems: 1}", "eval.passkey.depths", "outside 0 to 1"),
        ("{lengths: [100], depths: [0.5, 0.5], problems: 1}", "eval.passkey.depths", "a value twice"),
        ("{lengths: [100], depths: [0.5], problems: 1, digits: 1}", "eval.passkey.digits", "one-digit keys"),
    ],
)
def test_passkey(problems, passkey, key, what):
    assert what in problems(*START, f"eval.passkey={passkey}")[key].what
    assert problems(*START, "eval.passkey={lengths: [100, 496], depths: [0.0, 1.0], problems: 2}") == {}


def test_perplexity_windows_are_cut_over_tensor_ranks(problems):
    tp = ("parallel.tp=2", "parallel.ep=1")
    found = problems(*START, *tp, "eval.perplexity_length=63")
    assert "63 tokens over parallel.tp = 2" in found["eval.perplexity_length"].what
    assert problems(*START, *tp, "eval.perplexity_length=64") == {}
    odd = problems(*START, *tp, "model.max_position_embeddings=511")
    assert "511 tokens" in odd["eval.perplexity_length"].what  # the model's own limit


def test_perplexity_windows_fit_the_model(problems):
    assert "512 positions" in problems("eval.perplexity_length=513")["eval.perplexity_length"].what


YARN = "model.yarn={{factor: {factor}, original_max_positions: 128}}"
PASSKEY = "eval.passkey={lengths: [88, 249], depths: [0.5], problems: 1, max_response_tokens: 8}"


@pytest.mark.parametrize(
    ("override", "key", "what"),
    [
        (f"eval.suites=[{SUITE}, max_response_tokens: 233}}]", "eval.suites.0.max_response_tokens", "a prompt of 24"),
        (PASSKEY, "eval.passkey.lengths", "with 8 tokens of response beyond what"),
        ("eval.perplexity_length=257", "eval.perplexity_length", "beyond the 256 positions"),
        ("eval.max_response_tokens=233", "eval.max_response_tokens", "a prompt of 24 beyond the 256 positions"),
    ],
)
def test_yarn_says_how_far_evaluation_may_reach(problems, override, key, what):
    """512 positions, of which factor 2 lets the model tell 256 apart, and 2.1 lets it tell 268."""
    found = problems(*START, override, YARN.format(factor=2.0))
    assert set(found) == {key} and what in found[key].what
    assert problems(*START, override, YARN.format(factor=2.1)) == {}
    assert problems(*START, override) == {}


def test_a_missing_suite_is_said_before_anything_runs(problems, prepared):
    start = [f"root={prepared}", "stage=evaluate", f"stage.init_from={prepared}/pretrain"]
    found = problems(*start, f"eval.suites=[{SUITE}}}]", check_files=True)
    assert set(found) == {"eval.suites.0.path"}
    assert str(found["eval.suites.0.path"]) == (
        "eval.suites.0.path = 'none.jsonl': no such file. "
        "Fix: the suite's file (docs/evaluation.md says what it holds; none is shipped)"
    )
    there = prepared / "amc.jsonl"
    there.write_text("{}\n")
    assert problems(*start, f"eval.suites=[{{name: amc, path: '{there}', kind: math}}]", check_files=True) == {}
    # Other stages do not read suites.
    sft = [f"root={prepared}", "stage=sft", f"stage.init_from={prepared}/pretrain", f"eval.suites=[{SUITE}}}]"]
    assert problems(*sft, check_files=True) == {}
