"""Code answers: compiled and run against hidden tests in the sandbox; every comparison is made outside of it."""

import json
import re
import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from r1train.config.schema_reward import CodeConfig
from r1train.errors import DataError, EnvironmentProblem
from r1train.reward.code_judge import Names, names_of
from r1train.reward.isolation import compiler, compiler_views, library_views, python_views
from r1train.reward.jail import Ended, Jail
from r1train.reward.jail_job import FOLDER, PYTHON, Job, Limits

LANGUAGES = ("python", "cpp")
WALL_PER_CPU = 3.0  # a busy host must not change verdicts
MAX_CODE_CHARS = 100_000
BINARY_BYTES = 33_554_432
COMPILER_MEMORY_BYTES = 2**31
NO_COMPILER = "this host has no g++ in /usr/bin or /bin, so C++ answers cannot be graded"

_FENCE = re.compile(r"(?:^([ \t]+))?```[\w+#-]*[ \t]*\r?\n(.*?)```", re.DOTALL | re.MULTILINE)
# exit() and quit() come from site, which -S leaves out.
_RUN_PYTHON = (
    "import _sitebuiltins as s, builtins as b; b.exit = s.Quitter('exit', 'EOF'); b.quit = s.Quitter('quit', 'EOF'); "
    "del s, b; exec(compile(open('answer.py', encoding='utf-8').read(), 'answer.py', 'exec'))"
)
_HERE = Path(__file__).parent
NO_NAMES = Names((), (), ())


@dataclass(frozen=True)
class Test:
    """snippet: Python that calls functions of the answer and raises where they are wrong; else stdin -> stdout.

    names: of a snippet, whose they are.
    """

    stdin: str = ""
    stdout: str = ""
    snippet: str | None = None
    names: Names = NO_NAMES


@dataclass(frozen=True)
class CodeTask:
    """metadata of a prompt of task "code": {"code_language", "entry_point", "tests": [{"stdin", "stdout"} or
    {"snippet"}]}.
    """

    language: str
    tests: tuple[Test, ...]


def code_score(answer: str, entry: dict[str, Any], cfg: CodeConfig) -> float:
    """Share of passed tests (cfg.partial), or 1.0 where all pass, else 0.0 (DeepSeek-R1 section 2.2: hidden tests).

    answer: the code, or text with one fenced block. A program that crashes, hangs, prints too much or does not compile
    has failed. Raises DataError for metadata without usable tests, EnvironmentProblem where the host cannot isolate
    programs or has no compiler, RuntimeError where the sandbox itself failed: that is no verdict on the answer.
    """
    task, code = read_task(entry), extract_code(answer)
    if len(code) > MAX_CODE_CHARS:
        return 0.0
    deadline = time.monotonic() + cfg.total_s
    jail = jail_of(cfg.allow_unisolated)
    files = {"answer.py": code.encode(errors="replace")}
    if task.language == "cpp":
        binary = _compiled(jail, code, cfg)
        if binary is None:
            return 0.0
        files = {"answer": binary}
    passed = 0
    for test in task.tests:
        wall_s = min(cfg.time_s * WALL_PER_CPU, deadline - time.monotonic())
        good = wall_s > 0 and _passes(jail, test, files, _limits(cfg, wall_s))
        if not good and not cfg.partial:
            return 0.0
        passed += good
    return passed / len(task.tests)


def read_task(entry: dict[str, Any]) -> CodeTask:
    """Checks the tests of an entry. Raises DataError with what is wrong."""
    metadata = entry["metadata"]
    language, rows = metadata.get("code_language", "python"), metadata.get("tests")
    if language not in LANGUAGES:
        raise DataError(f"metadata code_language = {language!r} is not known. Fix: one of {', '.join(LANGUAGES)}")
    if not isinstance(rows, list) or not rows:
        raise DataError("a code problem has no tests in its metadata. Fix: tests: [{stdin, stdout} or {snippet}, ...]")
    tests = []
    for row in rows:
        if not isinstance(row, dict):
            raise DataError(f"a test is {type(row).__name__}. Fix: an object with stdin and stdout, or with snippet")
        if set(row) not in ({"stdin", "stdout"}, {"snippet"}) or not all(isinstance(x, str) for x in row.values()):
            raise DataError(f"a test with the keys {sorted(row)}. Fix: stdin and stdout, or snippet alone, all text")
        if "snippet" in row and language != "python":
            raise DataError(f"a snippet tests Python, not {language}. Fix: stdin and stdout")
        names = _names(row["snippet"], metadata.get("entry_point")) if "snippet" in row else NO_NAMES
        tests.append(Test(**row, names=names))
    return CodeTask(language, tuple(tests))


def _names(snippet: str, entry_point: object) -> Names:
    """Whose the names of a snippet are. Raises DataError where no answer could pass it, whatever it is."""
    if entry_point is not None and not isinstance(entry_point, str):
        raise DataError(
            f"metadata entry_point = {entry_point!r} is no name. Fix: the function that the answer must have"
        )
    try:
        names = names_of(snippet, entry_point)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:  # the last two: nested too deep
        raise DataError(f"a snippet is no Python: {error}. Fix: correct it") from None
    if names.unknown:
        what = f"a snippet uses {', '.join(names.unknown)}, which it neither makes, imports nor calls"
        raise DataError(f"{what}. Fix: write it into the snippet; constants of an answer cannot be read")
    if not names.functions:
        what = "a snippet calls no function that must be the answer's"
        raise DataError(f"{what}. Fix: name it in metadata entry_point, or call it under assert")
    return names


def extract_code(answer: str) -> str:
    """The last fenced block of an answer, all of it where there is none. A fence may be indented with its lines."""
    blocks = _FENCE.findall(answer)
    if not blocks:
        return answer
    indent, code = blocks[-1]
    lines = code.replace("\r\n", "\n").split("\n")
    return "\n".join(line.removeprefix(indent) for line in lines)


@cache
def jail_of(allow_unisolated: bool) -> Jail:
    """The sandbox of this process, made when the first code comes. Raises EnvironmentProblem without isolation."""
    return Jail(allow_unisolated=allow_unisolated)


def same_output(given: bytes, expected: str) -> bool:
    """Equal line by line, spaces at the ends of lines and empty lines at the end apart."""
    text = given.decode("utf-8", errors="replace")
    first, second = ([line.rstrip() for line in part.rstrip().splitlines()] for part in (text, expected))
    return first == second


def _passes(jail: Jail, test: Test, files: dict[str, bytes], limits: Limits) -> bool:
    if test.snippet is not None:
        return _snippet_passes(jail, test, files, limits)
    if "answer" in files:
        job = Job((f"{FOLDER}/answer",), limits, library_views(), files, test.stdin.encode())
    else:
        job = Job((*PYTHON, "-c", _RUN_PYTHON), limits, python_views(), files, test.stdin.encode())
    ended = jail.run(job)
    _raise_if_broken(ended)
    return ended.outcome == "ok" and same_output(ended.stdout, test.stdout)


def _snippet_passes(jail: Jail, test: Test, files: dict[str, bytes], limits: Limits) -> bool:
    scripts = {name: (_HERE / name).read_bytes() for name in ("code_judge.py", "code_answer.py")}
    assert test.snippet is not None
    names = json.dumps(test.names._asdict()).encode()
    judge_files = {"code_judge.py": scripts["code_judge.py"], "test.py": test.snippet.encode(), "names.json": names}
    judge = Job((*PYTHON, f"{FOLDER}/code_judge.py"), limits, python_views(), judge_files)
    answer = Job((*PYTHON, f"{FOLDER}/code_answer.py"), limits, python_views(), {**scripts, **files})
    verdict, served = jail.run_pair(judge, answer)
    _raise_if_broken(verdict)
    _raise_if_broken(served)
    return verdict.outcome == "ok" and verdict.stderr == b"pass"


def _compiled(jail: Jail, code: str, cfg: CodeConfig) -> bytes | None:
    """The program, None where the code does not compile."""
    program = compiler()
    if program is None:
        raise EnvironmentProblem(f"{NO_COMPILER}. Fix: install g++")
    limits = Limits(
        cpu_s=cfg.compile_s,
        wall_s=cfg.compile_s * WALL_PER_CPU,
        memory_bytes=COMPILER_MEMORY_BYTES,
        scratch_bytes=4 * BINARY_BYTES,
        output_bytes=BINARY_BYTES,
        processes=16,
    )
    script = f"{program} -std=c++17 -O2 -pipe -o answer answer.cpp 1>&2 && exec cat answer"
    job = Job(("/bin/sh", "-c", script), limits, compiler_views(), {"answer.cpp": code.encode(errors="replace")})
    ended = jail.run(job)
    _raise_if_broken(ended)
    return ended.stdout if ended.outcome == "ok" else None


def _limits(cfg: CodeConfig, wall_s: float) -> Limits:
    return Limits(
        cpu_s=cfg.time_s,
        wall_s=wall_s,
        memory_bytes=cfg.memory_bytes,
        scratch_bytes=cfg.scratch_bytes,
        output_bytes=cfg.output_bytes,
        processes=cfg.processes,
    )


def _raise_if_broken(ended: Ended) -> None:
    if ended.outcome == "setup":
        raise RuntimeError(f"the sandbox failed: {ended.detail}")
