"""Serves the functions of an answer, in its sandbox, to the test that runs in another (code_judge.py).

python -I -S code_answer.py, with answer.py and code_judge.py beside it. Whatever the answer does to this process, all
that leaves it is data.
"""

import builtins
import importlib
import json
import os
import sys
from typing import Any

sys.path.insert(0, os.getcwd())  # -I leaves the script's folder out


def reply_to(request: dict[str, Any], functions: dict[str, Any], *, plain: Any) -> dict[str, Any]:
    """The result of one call, or the name of the exception that it raised. plain: the module code_judge."""
    try:
        args, kwargs = plain.decode(request["args"]), plain.decode(request["kwargs"])
        return {"value": plain.encode(functions[request["name"]](*args, **kwargs))}
    except Exception as error:  # an edge: the answer may raise anything, which is for the test to judge
        return {"raised": type(error).__name__}


def main() -> None:
    plain = importlib.import_module("code_judge")  # lies beside this file in the sandbox only
    sys.set_int_max_str_digits(0)
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    functions: dict[str, Any] = {"__name__": "answer", "__builtins__": builtins}
    with open("answer.py", encoding="utf-8") as file:
        exec(compile(file.read(), "answer.py", "exec"), functions)
    for line in sys.stdin:
        replies.write(json.dumps(reply_to(json.loads(line), functions, plain=plain)) + "\n")
        replies.flush()


if __name__ == "__main__":
    main()
