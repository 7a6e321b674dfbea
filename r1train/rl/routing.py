"""Routing replay in the passes of an update, its gauges, and the proof that replayed experts were used."""

from r1train.config.schema_rl import RlConfig
from r1train.errors import R1TrainError
from r1train.model.gpt import R1Model
from r1train.model.replay import RouteCounts, Routing, tapes


class ReplayNotUsed(R1TrainError):
    """Tokens went to other experts than the replayed ones, so the update would not be what the config asks for."""

    exit_code = 1


def route_shape(model: R1Model, cfg: RlConfig) -> tuple[int, int] | None:
    """(expert layers of this stage, experts per token) of recorded routes; None for models without experts."""
    if not cfg.record_routing or model.config.num_moe_experts is None:
        return None
    return len(tapes(model)), model.config.moe_router_topk


def old_pass(model: R1Model, cfg: RlConfig) -> Routing | None:
    """For the log-probabilities of the rollout's policy: compares with the engine's experts, or uses them."""
    if model.config.num_moe_experts is None:
        return None
    return Routing(model, replay=cfg.routing_replay == "engine", record=cfg.routing_replay == "old")


def reference_pass(model: R1Model, cfg: RlConfig) -> Routing | None:
    """For the reference's log-probabilities: None where it chooses for itself."""
    return Routing(model, replay=True) if cfg.replay_reference else None


def update_pass(model: R1Model, cfg: RlConfig) -> Routing | None:
    """For the update: None where the policy chooses for itself."""
    return Routing(model, replay=True) if cfg.routing_replay != "none" else None


def flip_gauge(counts: RouteCounts) -> dict[str, float]:
    """flipped_experts_share: pairs of token and layer whose own experts are another set than the engine's."""
    return {"flipped_experts_share": counts.flipped / counts.compared} if counts.compared else {}


def replay_gauge(counts: RouteCounts, what: str) -> dict[str, float]:
    """replayed_share/<what>: pairs that were sent to the recorded experts, of those that should be; always 1.

    Expected pairs come from the batches, replayed ones from the map by which the layer sends its tokens; recomputed
    forwards count again in both. Raises ReplayNotUsed below 1.
    """
    if counts.replayed != counts.expected:
        fix = "Fix: rl.routing_replay=none, and report this: some forward does not ask the tape"
        raise ReplayNotUsed(
            f"routing replay, {what}: {counts.replayed} of {counts.expected} pairs of token and layer were sent to "
            f"the recorded experts. {fix}"
        )
    return {f"replayed_share/{what}": 1.0}
