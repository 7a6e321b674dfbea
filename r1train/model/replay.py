"""Which experts a forward chooses: recorded, compared, or replayed from what another forward chose.

megatron-core's RouterReplay does this for one model per process, in the order of construction; a policy, its reference
and several micro-batches in flight need a tape per router. Sources: R3, arXiv 2510.11370; GSPO, 2507.18071 section 5.3.
Legend: b sequences, s tokens of each, n = s * b tokens of one forward, L expert layers of this stage, k experts per
token.
"""

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from megatron.core import parallel_state
from megatron.core.transformer.moe.moe_layer import MoELayer
from torch import Tensor

from r1train.model.gpt import R1Model

UNKNOWN = -1  # at tokens whose experts nobody recorded: padding, and a sample's last token, which no engine computes


class RouteTape:
    """Stands where megatron-core looks for its RouterReplay, and is asked for the experts of every forward."""

    def __init__(self) -> None:
        self.recording = False
        self.recorded: Tensor | None = None  # [n, k], of the last forward while recording
        self.target: Tensor | None = None  # [n, k] int64, what the running forward is compared with
        self.replaying = False
        self.recomputes: deque[Tensor] = deque()
        self.compared = torch.zeros(3, dtype=torch.int64)  # tokens with known experts, flipped ones, replayed ones
        self._to_confirm: Tensor | None = None

    @property
    def in_use(self) -> bool:
        """Whether the next forward has to ask for its experts."""
        return self.recording or self.target is not None or bool(self.recomputes)

    def get_replay_topk(
        self,
        scores: Tensor,
        topk: int,
        num_groups: int | None = None,
        group_topk: int | None = None,
        default_compute_topk: Callable[..., tuple[Tensor, Tensor]] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """The experts to use and their scores, both [n, k]. Scores are the running forward's, so gates follow them."""
        assert default_compute_topk is not None
        values, own = default_compute_topk(scores, topk, num_groups=num_groups, group_topk=group_topk)
        if self.recording:
            self.recorded = own
        target = self.target if self.target is not None or not self.recomputes else self.recomputes.popleft()
        if target is None:
            return values, own
        known = target[:, :1] != UNKNOWN
        flipped = (own.sort(dim=1).values != target.sort(dim=1).values).any(dim=1) & known[:, 0]
        self.compared[0] += known.sum()
        self.compared[1] += flipped.sum()
        if not self.replaying:
            return values, own
        self._to_confirm = target
        chosen = torch.where(known, target, own)
        return scores.gather(1, chosen), chosen

    def confirm(self, routing_map: Tensor) -> None:
        """routing_map: bool [n, experts], what the layer really sends where. Counts the tokens that go as recorded."""
        target, self._to_confirm = self._to_confirm, None
        if target is None:
            return
        known = target[:, 0] != UNKNOWN
        as_recorded = routing_map.gather(1, target.clamp(min=0)).all(dim=1)
        self.compared[2] += (known & as_recorded & (routing_map.sum(dim=1) == target.shape[1])).sum()


def tapes(model: R1Model) -> list[RouteTape]:
    """One per expert layer of this pipeline stage, in order; MTP's is not among them: RL leaves MTP out."""
    return [block.mlp.router.tape for block in model.decoder.layers if isinstance(block.mlp, MoELayer)]


@contextmanager
def recording(model: R1Model, *, wanted: bool = True) -> Iterator[None]:
    """Every forward inside leaves its experts in tape.recorded."""
    for tape in tapes(model):
        tape.recording = wanted
    try:
        yield
    finally:
        for tape in tapes(model):
            tape.recording, tape.recorded = False, None


@dataclass(frozen=True)
class RouteCounts:
    """Pairs of token and layer over all ranks: known ones of the batches, and of the forwards: compared with what was
    recorded, flipped (another set than recorded by the forward's own choice), sent as recorded.
    """

    expected: int
    compared: int
    flipped: int
    replayed: int


class Routing:
    """What one pass over micro-batches does with routes: compare, replay, record. An object serves one pass."""

    def __init__(self, model: R1Model, *, replay: bool, record: bool = False):
        """model: the bare module whose forwards are meant. replay: use the routes, not only compare with them.

        record: keep what every forward chose in `recorded`, one int16 [b, s, L, k] per micro-batch.
        """
        config = model.config
        self.recorded: list[Tensor] = []
        self._tapes = tapes(model)
        self._replay, self._record = replay, record
        modules = config.recompute_modules or []
        self._recomputes = config.recompute_granularity == "full" or (
            config.recompute_granularity == "selective" and "moe" in modules
        )
        self._topk = config.moe_router_topk
        self._expected = torch.zeros((), dtype=torch.int64, device=torch.cuda.current_device())
        for tape in self._tapes:
            assert not tape.recomputes, "a pass before this one was cut short"
            tape.compared = torch.zeros(3, dtype=torch.int64, device=torch.cuda.current_device())

    @contextmanager
    def forward(self, routes: Tensor | None, tokens: Tensor) -> Iterator[None]:
        """Around the forward of one micro-batch. routes: int16 [b, s, L, k] or None; tokens: [b, s].

        Where experts are recomputed, the backward calls the routers again, micro-batch by micro-batch in the order of
        the forwards (one stage per rank): each tape keeps what it has to answer then.
        """
        if routes is not None:
            mine = _part_of_rank(routes.transpose(0, 1)).flatten(0, 1).long()  # [n, L, k]
            again = self._recomputes and torch.is_grad_enabled()
            self._expected += (mine[..., 0] != UNKNOWN).sum() * (2 if again else 1)
            for layer, tape in enumerate(self._tapes):
                tape.target, tape.replaying = mine[:, layer], self._replay
                if again:
                    tape.recomputes.append(mine[:, layer])
        for tape in self._tapes:
            tape.recording = self._record
        try:
            yield
            if self._record:
                self.recorded.append(self._take(tokens.shape))
        finally:
            for tape in self._tapes:
                tape.target, tape.recording, tape.recorded = None, False, None

    def _take(self, shape: torch.Size) -> Tensor:
        """What the last forward chose, of all its tokens: int16 [b, s, L, k]."""
        b, s = shape
        if not self._tapes:
            return torch.zeros((b, s, 0, self._topk), dtype=torch.int16, device=torch.cuda.current_device())
        mine = torch.stack([tape.recorded for tape in self._tapes if tape.recorded is not None], dim=1)  # [n, L, k]
        group = parallel_state.get_tensor_model_parallel_group()
        if group.size() > 1:
            parts = [torch.empty_like(mine) for _ in range(group.size())]
            torch.distributed.all_gather(parts, mine.contiguous(), group=group)
            mine = torch.cat(parts)
        return mine.short().unflatten(0, (s, b)).transpose(0, 1).contiguous()

    def counts(self) -> RouteCounts:
        """Of all forwards of the pass, recomputed ones included, over all ranks. Collective, once at the end."""
        for tape in self._tapes:
            assert not tape.recomputes, "a recomputation that the pass announced did not happen"
            tape.replaying = False
        nothing = torch.zeros(3, dtype=torch.int64, device=self._expected.device)
        totals = torch.cat([self._expected[None], sum((tape.compared for tape in self._tapes), nothing)])
        torch.distributed.all_reduce(totals)
        return RouteCounts(*totals.tolist())


def _part_of_rank(routes: Tensor) -> Tensor:
    """[s, ...] -> the tokens that this rank's routers see: with tensor parallelism sequences are cut."""
    group = parallel_state.get_tensor_model_parallel_group()
    return routes.chunk(group.size())[group.rank()]
