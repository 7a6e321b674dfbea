"""r1train: a DeepSeek-V3-shaped model from raw text to an R1-style reasoning model, on megatron-core."""

__version__ = "0.1.0"
