"""The parity step on GPUs, in bf16: torchrun --nproc-per-node N gpu_main.py OUT LAYOUT[,LAYOUT]

A layout that ends with _local builds megatron-core's own layers with our attention in place of Transformer Engine's,
one that ends with _local_fp32 does so in fp32.
"""

import sys
from dataclasses import replace
from pathlib import Path

import torch
from tiny import MODEL, OPTIM, Config

from r1train.config.schema_parallel import ClusterConfig, ParallelConfig
from r1train.dist.init import Device, close_processes, init_processes, make_groups, select_device

VPP = "Et|t|t|mL"
STAGES = "Ett|tmL"
LAYOUTS = {
    "single": ParallelConfig(world_size=1),
    # Of DeepSeek-V3's pre-training, and all that can be recomputed.
    "recompute_v3": ParallelConfig(world_size=1, recompute_modules=("layernorm", "mla_up_proj", "moe_act")),
    "recompute_all": ParallelConfig(
        world_size=1, recompute_modules=("core_attn", "layernorm", "mla_up_proj", "mlp", "moe")
    ),
    "cp2": ParallelConfig(world_size=2, cp=2),
    "tp2": ParallelConfig(world_size=2, tp=2),
    "vpp2": ParallelConfig(world_size=2, pp=2, pp_layout=VPP),
    "etp2": ParallelConfig(world_size=2, tp=2, etp=2),
    "ep2": ParallelConfig(world_size=2, ep=2),
    "ep2_overlap": ParallelConfig(world_size=2, ep=2, overlap_expert_all_to_all=True, delay_wgrad=True),
    "pp2": ParallelConfig(world_size=2, pp=2, pp_layout=STAGES),
    "ep4": ParallelConfig(world_size=4, ep=4),
    "pp2_ep2": ParallelConfig(world_size=4, pp=2, ep=2, pp_layout=STAGES),
    "tp2_ep2": ParallelConfig(world_size=4, tp=2, ep=2),
}
# Of which steps of training are compared, too.
CURVES = ("single", "pp2", "ep2", "ep4", "pp2_ep2", "tp2_ep2")
# Widths that fused attention and grouped GEMMs take: multiples of 16, value as wide as the nope part.
GPU_MODEL = replace(
    MODEL,
    vocab_size=256,
    hidden_size=256,
    ffn_hidden_size=512,
    q_lora_rank=128,
    kv_lora_rank=64,
    qk_nope_head_dim=64,
    qk_rope_head_dim=32,
    v_head_dim=64,
    moe_ffn_hidden_size=128,
    init_std=0.05,
)


def gpu_config(layout: str) -> Config:
    precision = "fp32" if layout.endswith("_fp32") else "bf16"
    parallel = LAYOUTS[layout.removesuffix("_fp32").removesuffix("_local")]
    cluster = ClusterConfig(
        name="gpu", device="cuda", nodes=1, processes_per_node=parallel.world_size, threads_per_process=4
    )
    return Config(
        parallel, cluster, model=GPU_MODEL, optim=replace(OPTIM, precision=precision, moments_dtype=precision)
    )


def main(out: Path, layouts: list[str]) -> None:
    first = gpu_config(layouts[0])
    device = select_device(first.cluster)
    init_processes(device, first.parallel, first.cluster)
    from curve import losses
    from megatron.core import parallel_state
    from parity import CASES, measure

    from r1train.dist.seed import seed_all

    # Called cpu, a device gets local modules without fused kernels; the tensors are on the GPU all the same.
    local = Device("cpu", device.torch_device)
    for index, layout in enumerate(layouts):
        cfg = gpu_config(layout)
        if index:
            parallel_state.destroy_model_parallel()
            make_groups(device, cfg.parallel, cfg.cluster)
        seed_all(1)
        # megatron-core's overlap cannot run an MTP block over packed rows; the config refuses it.
        cases = CASES[:2] if cfg.parallel.overlap_expert_all_to_all else CASES
        result = measure(cfg, local if "_local" in layout else device, cases)
        if layout in CURVES:
            result["curve"] = losses(cfg, device)
        torch.save(result, out / f"gpu_parity.{layout}.{torch.distributed.get_rank()}.pt")
    close_processes()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2].split(","))
