"""Rules about the layout: world size, tensor, pipeline, context and expert axes, devices."""

from r1train.config.layout import parse_layout
from r1train.config.schema import RunConfig
from r1train.errors import Problem


def world_size_is_the_cluster(cfg: RunConfig) -> list[Problem]:
    nodes, per_node, world = cfg.cluster.nodes, cfg.cluster.processes_per_node, cfg.parallel.world_size
    if world == nodes * per_node:
        return []
    what = f"the cluster {cfg.cluster.name} has {nodes} node(s) x {per_node} process(es) = {nodes * per_node}"
    return [Problem("parallel.world_size", world, what, f"{nodes * per_node}, or another cluster option")]


def axes_divide_the_world(cfg: RunConfig) -> list[Problem]:
    parallel = cfg.parallel
    used = parallel.tp * parallel.pp * parallel.cp
    if parallel.world_size % used == 0:
        return []
    what = f"not divisible by tp x pp x cp = {parallel.tp} x {parallel.pp} x {parallel.cp} = {used}"
    return [Problem("parallel.world_size", parallel.world_size, what, "choose axes whose product divides it")]


def expert_axes_divide_the_world(cfg: RunConfig) -> list[Problem]:
    parallel = cfg.parallel
    used = parallel.ep * parallel.etp * parallel.pp
    if parallel.world_size % used == 0:
        return []
    what = f"ep x etp x pp = {parallel.ep} x {parallel.etp} x {parallel.pp} = {used} does not divide world_size"
    return [Problem("parallel.ep", parallel.ep, what, f"choose axes whose product divides {parallel.world_size}")]


def heads_divisible_by_tp(cfg: RunConfig) -> list[Problem]:
    if cfg.model.num_attention_heads % cfg.parallel.tp == 0:
        return []
    what = f"not divisible by parallel.tp = {cfg.parallel.tp}"
    fix = f"a multiple of {cfg.parallel.tp}, or a tp that divides it"
    return [Problem("model.num_attention_heads", cfg.model.num_attention_heads, what, fix)]


def vocabulary_divisible_by_tp(cfg: RunConfig) -> list[Problem]:
    if cfg.model.vocab_size % cfg.parallel.tp == 0:
        return []
    what = f"not divisible by parallel.tp = {cfg.parallel.tp}"
    return [Problem("model.vocab_size", cfg.model.vocab_size, what, f"pad it to a multiple of {cfg.parallel.tp}")]


def widths_divisible(cfg: RunConfig) -> list[Problem]:
    """Widths that tensor parallelism cuts."""
    model, tp = cfg.model, cfg.parallel.tp
    return [
        Problem(f"model.{name}", width, f"not divisible by parallel.tp = {tp}", f"a multiple of {tp}")
        for name, width in (("ffn_hidden_size", model.ffn_hidden_size), ("hidden_size", model.hidden_size))
        if width % tp
    ]


def even_split_needs_divisible_layers(cfg: RunConfig) -> list[Problem]:
    model, parallel = cfg.model, cfg.parallel
    if parallel.pp_layout is not None or model.num_layers % parallel.pp == 0:
        return []
    what = f"{model.num_layers} layers cannot be split evenly over {parallel.pp} pipeline stages"
    return [Problem("parallel.pp", parallel.pp, what, "give parallel.pp_layout, such as Ettt|ttmL")]


def layout_can_be_read(cfg: RunConfig) -> list[Problem]:
    try:
        _stages(cfg)
    except ValueError as error:
        fix = "use E, t, m, L and |; repeat with (tt|)*3"
        return [Problem("parallel.pp_layout", cfg.parallel.pp_layout, str(error), fix)]
    return []


def layout_starts_and_ends(cfg: RunConfig) -> list[Problem]:
    """In the very first and the very last stage: megatron-core builds the head there, whatever the letters say."""
    stages = _readable_stages(cfg)
    letters = "".join(stages)
    if not stages or (
        letters.count("E") == letters.count("L") == 1 and stages[0][:1] == "E" and stages[-1][-1:] == "L"
    ):
        return []
    what = "must have one E (embedding) as its first letter and one L (loss) as its last"
    return [Problem("parallel.pp_layout", cfg.parallel.pp_layout, what, "E...|...L")]


def layout_has_every_layer(cfg: RunConfig) -> list[Problem]:
    letters = "".join(_readable_stages(cfg))
    if not _readable_stages(cfg) or letters.count("t") == cfg.model.num_layers:
        return []
    what = f"has {letters.count('t')} decoder layers (t), the model has {cfg.model.num_layers}"
    return [Problem("parallel.pp_layout", cfg.parallel.pp_layout, what, "write one t per layer")]


def layout_has_every_mtp_block(cfg: RunConfig) -> list[Problem]:
    letters = "".join(_readable_stages(cfg))
    if not _readable_stages(cfg) or letters.count("m") == cfg.model.mtp_depth:
        return []
    what = f"has {letters.count('m')} MTP blocks (m), the model has {cfg.model.mtp_depth}"
    return [Problem("parallel.pp_layout", cfg.parallel.pp_layout, what, "write one m per MTP block")]


def layout_has_mtp_last(cfg: RunConfig) -> list[Problem]:
    """megatron-core runs MTP after the last layer, all of it in one stage."""
    stages = _readable_stages(cfg)
    letters = "".join(stages)
    if "m" not in letters or (letters.rfind("t") < letters.find("m") and sum("m" in stage for stage in stages) == 1):
        return []
    what = "MTP blocks (m) must stand together, after the last decoder layer"
    return [Problem("parallel.pp_layout", cfg.parallel.pp_layout, what, "end it with ...tmL")]


def layout_has_pp_stages(cfg: RunConfig) -> list[Problem]:
    stages = _readable_stages(cfg)
    if len(stages) % cfg.parallel.pp == 0:
        return []
    what = f"has {len(stages)} stages, not a multiple of parallel.pp = {cfg.parallel.pp}"
    return [Problem("parallel.pp_layout", cfg.parallel.pp_layout, what, f"separate {cfg.parallel.pp} stages with |")]


def device_can_run_it(cfg: RunConfig) -> list[Problem]:
    """FP8 GEMMs come from Transformer Engine and the flex dispatcher from DeepEP: both need CUDA."""
    problems: list[Problem] = []
    if cfg.cluster.device == "cuda":
        return problems
    if cfg.optim.precision.startswith("fp8"):
        what = "FP8 needs a GPU, but cluster.device is cpu"
        problems.append(Problem("optim.precision", cfg.optim.precision, what, "fp32 or bf16, or a cluster with cuda"))
    if cfg.parallel.dispatcher == "flex":
        what = "the flex dispatcher needs a GPU, but cluster.device is cpu"
        problems.append(Problem("parallel.dispatcher", "flex", what, "alltoall, or a cluster with cuda"))
    return problems


def _stages(cfg: RunConfig) -> tuple[str, ...]:
    return () if cfg.parallel.pp_layout is None else parse_layout(cfg.parallel.pp_layout)


def _readable_stages(cfg: RunConfig) -> tuple[str, ...]:
    """Nothing for a layout that cannot be read: another rule reports that."""
    try:
        return _stages(cfg)
    except ValueError:
        return ()


RULES = (
    world_size_is_the_cluster,
    axes_divide_the_world,
    expert_axes_divide_the_world,
    heads_divisible_by_tp,
    vocabulary_divisible_by_tp,
    widths_divisible,
    even_split_needs_divisible_layers,
    layout_can_be_read,
    layout_starts_and_ends,
    layout_has_every_layer,
    layout_has_every_mtp_block,
    layout_has_mtp_last,
    layout_has_pp_stages,
    device_can_run_it,
)
