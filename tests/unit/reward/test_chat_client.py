"""The client of served models against a real HTTP server: retries, time-outs, garbage, a server that is gone."""

import json
import threading
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from r1train.config.schema_samples import JudgeConfig
from r1train.reward.chat_client import Answer, ChatClient, JudgeFailed, ask_all


class Served:
    """An OpenAI-compatible endpoint whose replies a test scripts: question -> list of behaviours, the last repeats."""

    def __init__(self):
        self.script: dict[str, list[str]] = {}
        self.asked: Counter[str] = Counter()
        self.seen: list[dict] = []
        self.closed = threading.Event()
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}/v1"

    def close(self) -> None:
        self.closed.set()
        self.server.shutdown()
        self.server.server_close()

    def _handler(served):  # noqa: N805 - the handler has a self of its own
        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                question = body["messages"][0]["content"]
                place, served.asked[question] = served.asked[question], served.asked[question] + 1
                served.seen.append({"path": self.path, "key": self.headers["Authorization"], **body})
                script = served.script.get(question, ["say fine"])
                self._act(script[min(place, len(script) - 1)])

            def _act(self, behaviour: str):
                kind, _, rest = behaviour.partition(" ")
                if kind == "hang":
                    served.closed.wait()
                    return
                if kind == "hang-up":
                    self.connection.close()
                    return
                self.send_response(int(rest) if kind == "status" else 200)
                self.end_headers()
                content = json.dumps({"choices": [{"message": {"content": rest}}]}) if kind == "say" else rest
                self.wfile.write(content.encode())

            def log_message(self, *_):
                pass

        return Handler


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    one = Served()
    yield one
    one.close()


def client(served: Served, **changes) -> ChatClient:
    values = {"url": served.url, "model": "m", "tries": 3, "wait_s": 0.0, "timeout_s": 5.0, "parallel": 2, **changes}
    return ChatClient(JudgeConfig(**values))


def read(text: str) -> str | None:
    return text if text != "nonsense" else None


@pytest.mark.parametrize(
    ("script", "outcome", "tries"),
    [
        (["say yes"], Answer("yes", "ok"), 1),
        (["status 503", "say yes"], Answer("yes", "ok"), 2),
        (["raw not json", "say nonsense", "say yes"], Answer("yes", "ok"), 3),
        (["status 500"], Answer(None, "http 500"), 3),
        (["status 429"], Answer(None, "http 429"), 3),
        (["status 401"], Answer(None, "http 401"), 1),  # another try would be refused as well
        (["say nonsense"], Answer(None, "unreadable"), 3),
        (['raw {"choices": []}'], Answer(None, "no chat completion"), 3),
        (['raw {"choices": [{"message": {"content": null}}]}'], Answer(None, "no chat completion"), 3),
        (["hang-up", "say yes"], Answer("yes", "ok"), 2),
    ],
)
def test_outcomes(served, script, outcome, tries):
    served.script["q"] = script
    assert client(served).ask("q", read) == outcome
    assert served.asked["q"] == tries


def test_time_out(served):
    served.script["q"] = ["hang", "say yes"]
    assert client(served, timeout_s=1.0, tries=9).ask("q", read) == Answer("yes", "ok")
    served.script["r"] = ["hang"]
    assert client(served, timeout_s=0.2, tries=2).ask("r", read) == Answer(None, "time-out")


def test_what_is_sent(served, tmp_path):
    (tmp_path / "key").write_text("secret\n")
    client(served, api_key_file=str(tmp_path / "key"), temperature=0.5, max_tokens=9).ask("q", read)
    expected = {
        "path": "/v1/chat/completions",
        "key": "Bearer secret",
        "model": "m",
        "temperature": 0.5,
        "max_tokens": 9,
    }
    assert served.seen == [{**expected, "messages": [{"role": "user", "content": "q"}]}]


def test_answers_survive_and_only_the_rest_is_asked_again(served, tmp_path):
    store = tmp_path / "run" / "judged.jsonl"
    questions = {f"k{n}": f"q{n}" for n in range(10)}
    served.script |= {"q3": ["status 500"], "q4": ["say nonsense"]}
    with pytest.raises(JudgeFailed, match=r"2 of 10 questions have no usable answer.*'ok': 8") as caught:
        ask_all(client(served), questions, lambda _, text: read(text), store=store)
    assert "start the stage again" in str(caught.value) and caught.value.exit_code == 1
    with store.open("a") as file:
        file.write('{"key": "k3", "te')  # a kill in the middle of a line
    served.script, served.asked = {"q4": ["status 500"]}, Counter()
    values, counts = ask_all(client(served, most_failures=0.1), questions, lambda _, text: read(text), store=store)
    assert values == {f"k{n}": "fine" for n in range(10) if n != 4}
    assert counts == {"ok": 9, "http 500": 1}
    assert served.asked == {"q3": 1, "q4": 3}
    assert len(store.read_text().splitlines()) == 9


def test_a_server_that_is_gone_is_given_up(served, tmp_path):
    served.close()
    gone = client(served, parallel=4, tries=2, most_failures=1.0)
    values, counts = ask_all(gone, {str(n): "q" for n in range(200)}, lambda _, text: read(text), store=tmp_path / "s")
    assert values == {}
    # 3 x 4 refused connections in a row (a few more were under way), then nothing is asked any more.
    assert counts["not asked"] > 180 and counts["unreachable"] + counts["not asked"] == 200
