"""A launcher that imports once for many launches of the tests: python server.py PRELOAD; JSON lines in and out.

In: {"arguments": [script, ...], "nproc": n, "output": file}; out: the exit code. Its ranks are forks of one process, as
those of a schedule on one CPU machine are (r1train/dist/warm.py), with torchrun's variables.
"""

import json
import os
import sys

from r1train.dist.parent import end_with_parent
from r1train.dist.warm import WarmRanks


def main(preload: str) -> None:
    end_with_parent()
    # What a preloaded module prints must not be taken for an answer.
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    ranks = WarmRanks(preload, {})
    for line in sys.stdin:
        order = json.loads(line)
        running = ranks.start("warm_rank", order["arguments"], world_size=order["nproc"])
        with open(order["output"], "w", encoding="utf-8") as file:
            for printed in running.lines():
                file.write(printed)
                file.flush()
        print(running.wait(), file=answers, flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
