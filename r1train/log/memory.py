"""Peak memory of a process and all its descendants together, sampled by a thread."""

import json
import threading
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from r1train.log.atomic import write_atomically

FILE_NAME = "peak_memory.json"
MEASURE = "pss" if psutil.LINUX else "uss"


@dataclass(frozen=True, kw_only=True)
class PeakMemory:
    """peak_bytes: largest sum over the processes at one moment; processes: how many there were then.

    measure: "pss" (Linux: each page divided by the number of processes that share it, so that the sum counts libraries
    and shared memory once), or "uss" (private pages only) where the system has no PSS; "rss" (resident: shared pages
    count in every process) where it is asked for.
    """

    peak_bytes: int
    processes: int
    measure: str


class MemorySampler:
    """Watches a process tree every interval_s seconds from start() to stop(); peaks between two looks are not seen."""

    def __init__(self, *, root_pid: int | None = None, interval_s: float = 0.5, measure: str = MEASURE):
        self._root = psutil.Process(root_pid)
        self._interval_s, self._measure = interval_s, measure
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="memory-sampler", daemon=True)
        self._peak = PeakMemory(peak_bytes=0, processes=0, measure=measure)

    def start(self) -> None:
        """Starts the thread; the tree is looked at at once."""
        self._thread.start()

    def stop(self) -> PeakMemory:
        """Ends the thread after a last look and returns the peak."""
        self._end.set()
        self._thread.join()
        return self._peak

    def _watch(self) -> None:
        while True:
            last = self._end.is_set()
            now = tree_memory(self._root, self._measure)
            if now.peak_bytes > self._peak.peak_bytes:
                self._peak = now
            if last:
                return
            self._end.wait(self._interval_s)


def tree_memory(root: psutil.Process, measure: str = MEASURE) -> PeakMemory:
    """Memory of a process and its descendants now. A process that ends meanwhile, or is another user's, counts 0."""
    total = count = 0
    try:
        tree = [root, *root.children(recursive=True)]
    except psutil.NoSuchProcess:
        tree = []
    for process in tree:
        try:
            info = process.memory_info() if measure == "rss" else process.memory_full_info()
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
        total += info._asdict()[measure]
        count += 1
    return PeakMemory(peak_bytes=total, processes=count, measure=measure)


def save_peak(root: Path, peak: PeakMemory) -> PeakMemory:
    """Writes <root>/peak_memory.json atomically; an earlier run's larger peak stays. Returns what the file now says."""
    earlier = read_peak(root)
    if earlier is not None and earlier.peak_bytes >= peak.peak_bytes:
        return earlier
    write_atomically(root / FILE_NAME, json.dumps(asdict(peak)) + "\n")
    return peak


def read_peak(root: Path) -> PeakMemory | None:
    """The stored peak, None where there is none."""
    path = root / FILE_NAME
    return PeakMemory(**json.loads(path.read_text(encoding="utf-8"))) if path.exists() else None
