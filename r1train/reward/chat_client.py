"""Questions to an OpenAI-compatible endpoint: retries, time-outs, counted outcomes, and answers kept across runs."""

import json
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path

from r1train.config.schema_samples import JudgeConfig
from r1train.errors import DataError, R1TrainError

LONGEST_WAIT_S = 30.0
# Questions in a row, in units of those under way at a time, that found no server: then the others are not asked.
PATIENCE = 3
_PASSING = (408, 409, 425, 429)  # besides 5xx: another try may be answered


class JudgeFailed(R1TrainError):
    """Too many questions to a served model stayed without a usable answer."""

    exit_code = 1


@dataclass(frozen=True)
class Answer[T]:
    """value: what the reply was read as; None exactly when outcome is not "ok" but says what went wrong last:
    "time-out", "unreachable", "http 503", "no chat completion", "unreadable" or "not asked".
    """

    value: T | None
    outcome: str


class ChatClient:
    """One endpoint. Use it from many threads."""

    def __init__(self, cfg: JudgeConfig):
        """Raises DataError when the key file cannot be read."""
        self.cfg = cfg
        self._headers = {"Content-Type": "application/json"}
        if cfg.api_key_file is not None:
            try:
                self._headers["Authorization"] = f"Bearer {Path(cfg.api_key_file).read_text(encoding='utf-8').strip()}"
            except OSError as error:
                raise DataError(f"{cfg.api_key_file}: cannot be read ({error}). Fix: judge.api_key_file") from None
        self._lock = threading.Lock()
        self._unreachable = 0

    def ask[T](self, question: str, read: Callable[[str], T | None]) -> Answer[T]:
        """One question. read: the reply's text -> value, None for a reply that cannot be used, which is asked again."""
        wait, outcome = self.cfg.wait_s, "not asked"
        for attempt in range(self.cfg.tries):
            if self._given_up():
                return Answer(None, outcome)
            if attempt:
                time.sleep(min(wait, LONGEST_WAIT_S))
                wait *= 2
            text, outcome, again = self._post(question)
            with self._lock:
                self._unreachable = self._unreachable + 1 if outcome == "unreachable" else 0
            if text is not None:
                value = read(text)
                if value is not None:
                    return Answer(value, "ok")
                outcome = "unreadable"
            elif not again:
                return Answer(None, outcome)
        return Answer(None, outcome)

    def _given_up(self) -> bool:
        return self._unreachable >= PATIENCE * max(self.cfg.parallel, self.cfg.tries)

    def _post(self, question: str) -> tuple[str | None, str, bool]:
        """(text of the reply, outcome, whether another try makes sense)."""
        body = {
            "model": self.cfg.model,
            "messages": [{"role": "user", "content": question}],
            "temperature": self.cfg.temperature,
            "max_tokens": self.cfg.max_tokens,
        }
        url = self.cfg.url.rstrip("/") + "/chat/completions"
        request = urllib.request.Request(url, data=json.dumps(body).encode(), headers=self._headers)
        try:
            with urllib.request.urlopen(request, timeout=self.cfg.timeout_s) as reply:
                content = json.load(reply)
            text = content["choices"][0]["message"]["content"]
        except urllib.error.HTTPError as error:
            return None, f"http {error.code}", error.code >= 500 or error.code in _PASSING
        except TimeoutError:
            return None, "time-out", True
        except urllib.error.URLError as error:
            return None, "time-out" if isinstance(error.reason, TimeoutError) else "unreachable", True
        except (OSError, HTTPException):  # the connection broke in the middle of a reply
            return None, "unreachable", True
        except (ValueError, LookupError, TypeError):  # not JSON, or not what the API promises
            return None, "no chat completion", True
        return (text, "ok", True) if isinstance(text, str) else (None, "no chat completion", True)


def ask_all[T](
    client: ChatClient, questions: Mapping[str, str], read: Callable[[str, str], T | None], *, store: Path
) -> tuple[dict[str, T], dict[str, int]]:
    """Every question by its key -> (values by key, outcomes counted). Answers stand in `store` as soon as they come.

    read: (key, reply) -> value, None for a reply that cannot be used. A run that was interrupted asks only what has no
    answer in the store yet. Raises JudgeFailed when more than most_failures
    of the questions stay without one; DataError for a store that is not JSON lines.
    """
    values = {key: value for key, text in _stored(store) if key in questions and (value := read(key, text)) is not None}
    counts: Counter[str] = Counter({"ok": len(values)} if values else {})
    todo = [key for key in questions if key not in values]
    store.parent.mkdir(parents=True, exist_ok=True)

    def ask(key: str) -> Answer[tuple[str, T]]:
        def with_text(text: str) -> tuple[str, T] | None:
            value = read(key, text)
            return None if value is None else (text, value)

        return client.ask(questions[key], with_text)

    with store.open("a", encoding="utf-8") as file, ThreadPoolExecutor(client.cfg.parallel) as pool:
        futures = {pool.submit(ask, key): key for key in todo}
        for future in as_completed(futures):
            answer = future.result()
            counts[answer.outcome] += 1
            if answer.value is not None:
                text, values[futures[future]] = answer.value
                file.write(json.dumps({"key": futures[future], "text": text}) + "\n")
                file.flush()
    failed = len(questions) - len(values)
    if failed > client.cfg.most_failures * len(questions):
        raise JudgeFailed(
            f"{client.cfg.url}: {failed} of {len(questions)} questions have no usable answer ({dict(counts)}); "
            f"the others are in {store}. Fix: see that {client.cfg.model} is served there, and start the stage again: "
            "it asks only these; or raise most_failures"
        )
    return values, dict(counts)


def _stored(store: Path) -> Iterator[tuple[str, str]]:
    """(key, reply) of earlier runs; a last line that a kill tore is left out."""
    if not store.is_file():
        return
    text = store.read_text(encoding="utf-8")
    whole, torn = text[: text.rfind("\n") + 1], text[text.rfind("\n") + 1 :]
    if torn:
        store.write_text(whole, encoding="utf-8")
    for number, line in enumerate(whole.splitlines(), start=1):
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(f"{store}:{number} is not JSON ({error}). Fix: delete that line") from error
        yield row["key"], row["text"]
