"""How code answers are run (limits of the sandbox, what the score is), and reward models as parts of the reward."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class CodeConfig:
    """Sandbox of the code reward. Limits hold for one test; what exceeds one is a failed test, never an error.

    allow_unisolated: run code where the host offers no isolation, with rlimits alone. It can then read and change what
    this user can. partial: score = share of passed tests; false: 1 where all pass, else 0 (R1's hidden tests).
    time_s: CPU time of a process, three times that on the clock (a busy host must not change verdicts); compile_s: the
    same for the compiler; total_s: all tests of a sample on the clock, those that it leaves no time for have failed.
    memory_bytes: address space of a process, and resident memory of all of them together; a test's folder lives in
    memory too and may hold scratch_bytes. output_bytes: stdout of a test. processes: with threads, at a time.
    """

    allow_unisolated: bool = False
    partial: bool = False
    time_s: float = 4.0
    compile_s: float = 20.0
    total_s: float = 120.0
    memory_bytes: int = 536_870_912
    scratch_bytes: int = 33_554_432
    output_bytes: int = 1_048_576
    processes: int = 16


@dataclass(frozen=True, kw_only=True)
class PreferenceConfig:
    """A reward model whose score joins the reward (R1 section 3.2.2), as the part preference/<name>.

    checkpoint: run folder of a reward_model stage, of the policy's own architecture. scored: as that model was trained.
    from_step: first update that uses it, 1-based (R1's second RL: the last 400 of 1,700; longer led to reward hacking).
    tasks: only prompts of these; empty: all. squash: sigmoid keeps the score within 0 and 1. offload: the model waits
    in host memory between scorings.
    """

    name: str
    checkpoint: str
    weight: float
    scored: Literal["summary", "response"]
    from_step: int
    tasks: tuple[str, ...] = ()
    squash: Literal["none", "sigmoid"] = "none"
    offload: bool = False
