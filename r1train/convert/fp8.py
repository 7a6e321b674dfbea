"""FP8 block quantisation as DeepSeek-V3 releases it: e4m3 values with one fp32 scale per 128 x 128 block.

Blocks at the right and lower edge are smaller where a side is no multiple of 128 (kv_a_proj of V3: 576 rows, 5 blocks).
Source: DeepSeek-V3's README_WEIGHTS; "scale_inv" is what the values are multiplied with to get the weight back.
"""

import torch

from r1train.config.schema_model import FP8_BLOCK

E4M3_MAX = 448.0
SCALE_SUFFIX = "_scale_inv"


def scale_shape(shape: tuple[int, ...]) -> tuple[int, int]:
    """Shape of the scales of a matrix: blocks per column and per row, the ragged ones included."""
    rows, columns = shape
    return -(-rows // FP8_BLOCK), -(-columns // FP8_BLOCK)


def dequantise(values: torch.Tensor, scale: torch.Tensor, *, first_row: int, dtype: torch.dtype) -> torch.Tensor:
    """Weight rows = value * scale of its block, in `dtype`.

    values: float8_e4m3fn [r, c], rows first_row to first_row + r of a matrix of R rows. scale: of that whole matrix,
    fp32 [ceil(R / 128), ceil(c / 128)].
    """
    out = torch.empty(values.shape, dtype=dtype)
    columns = values.shape[1]
    row = 0
    while row < values.shape[0]:
        block = (first_row + row) // FP8_BLOCK
        end = min(values.shape[0], (block + 1) * FP8_BLOCK - first_row)
        by_column = scale[block].repeat_interleave(FP8_BLOCK)[:columns]
        out[row:end] = values[row:end].float().mul_(by_column)
        row = end
    return out


def quantise(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Weight [r, c] whose first row starts a block -> float8_e4m3fn [r, c] and fp32 scales [ceil(r/128), ceil(c/128)].

    scale = max |w| of the block / 448, value = w / scale rounded to e4m3; a block of zeros has scale 1.
    """
    rows, columns = weight.shape
    values = torch.empty(weight.shape, dtype=torch.float8_e4m3fn)
    scale = torch.empty(scale_shape((rows, columns)), dtype=torch.float32)
    padding = -columns % FP8_BLOCK
    for block in range(scale.shape[0]):
        part = weight[block * FP8_BLOCK : (block + 1) * FP8_BLOCK].float()
        largest = torch.nn.functional.pad(part.abs().amax(0), (0, padding)).view(-1, FP8_BLOCK).amax(1)
        scale[block] = torch.where(largest > 0, largest / E4M3_MAX, 1.0)
        by_column = scale[block].repeat_interleave(FP8_BLOCK)[:columns]
        part = (part / by_column).clamp_(-E4M3_MAX, E4M3_MAX)  # not in place: part may be the weight itself
        values[block * FP8_BLOCK : (block + 1) * FP8_BLOCK] = part.to(torch.float8_e4m3fn)
    return values, scale


def quantise_whole(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """quantise() of a whole matrix on its own device, all blocks at once: bit for bit the same, for more memory."""
    rows, columns = weight.shape
    down, across = scale_shape((rows, columns))
    padded = torch.nn.functional.pad(weight.float(), (0, -columns % FP8_BLOCK, 0, -rows % FP8_BLOCK))
    blocks = padded.view(down, FP8_BLOCK, across, FP8_BLOCK)
    largest = blocks.abs().amax((1, 3))
    scale = torch.where(largest > 0, largest / E4M3_MAX, 1.0)
    values = (blocks / scale[:, None, :, None]).clamp_(-E4M3_MAX, E4M3_MAX).to(torch.float8_e4m3fn)
    # A view of whole blocks has no rows of the matrix's own width.
    return values.view(down * FP8_BLOCK, across * FP8_BLOCK)[:rows, :columns].contiguous(), scale


def squared_error(weight: torch.Tensor, values: torch.Tensor, scale: torch.Tensor) -> tuple[float, float]:
    """Sum of squared differences between weight [r, c] and its quantised form, and sum of squares of weight."""
    difference = squares = 0.0
    for row in range(0, weight.shape[0], FP8_BLOCK):
        part = weight[row : row + FP8_BLOCK].float()
        back = dequantise(values[row : row + FP8_BLOCK], scale, first_row=row, dtype=torch.float32)
        difference += float((back - part).square().sum(dtype=torch.float64))
        squares += float(part.square().sum(dtype=torch.float64))
    return difference, squares
