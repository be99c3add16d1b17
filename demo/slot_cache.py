"""Keys and values of many running requests in one block of memory, handed to Hugging Face models.

A *slot* is one row of the block: the tokens of one request, from position 0. A finished request's slot keeps its keys
and values, so the next turn of a conversation computes only its new tokens, and samples of one question share their
prompt.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from transformers import AttentionInterface, PretrainedConfig

ATTENTION = "slot_cache_attention"


class SlotCache:
    """Implements the `past_key_values` methods that Hugging Face decoders call: `update` and `get_seq_length`.

    `keys[layer]` and `values[layer]`: (slots, max_length, kv_heads, head_dim).
    """

    is_compileable = False

    def __init__(
        self,
        config: PretrainedConfig,
        *,
        slots: int,
        max_length: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        heads = config.num_key_value_heads
        head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        shape = (slots, max_length, heads, head_dim)
        layers = range(config.num_hidden_layers)
        self.keys = [torch.zeros(shape, dtype=dtype, device=device) for _ in layers]
        self.values = [torch.zeros(shape, dtype=dtype, device=device) for _ in layers]
        self._max_length = max_length

    def select(self, rows: Sequence[int], positions: torch.Tensor) -> torch.Tensor:
        """Selects the slots and positions (B, T) that the next forward pass computes.

        Returns its attention mask (B, 1, T, width): position p of a slot sees positions 0..p of that slot.
        """
        index = torch.tensor(rows)
        self._width = int(positions.max()) + 1
        self._targets = (index[:, None] * self._max_length + positions).flatten()  # (B * T,) rows of a flattened block
        # Usually the first slots are the busy ones, and a view of them avoids copying.
        self._rows: slice | torch.Tensor = slice(len(rows)) if list(rows) == list(range(len(rows))) else index
        unseen = (torch.arange(self._width) > positions[:, :, None])[:, None]
        # Added to the scores: scaled_dot_product_attention would convert a boolean mask in every layer.
        return torch.zeros(unseen.shape, dtype=self.keys[0].dtype).masked_fill(unseen, -torch.inf)

    def update(
        self, keys: torch.Tensor, values: torch.Tensor, layer_idx: int, *_: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Stores the new keys and values, (B, kv_heads, T, head_dim), and returns all of each selected slot's."""
        return self._store(self.keys[layer_idx], keys), self._store(self.values[layer_idx], values)

    def _store(self, block: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
        flat = new.transpose(1, 2).flatten(0, 1).to(block.dtype)  # (B * T, kv_heads, head_dim)
        block.flatten(0, 1).index_copy_(0, self._targets, flat)
        return block[self._rows, : self._width].transpose(1, 2)

    def copy_prefix(self, source: int, target: int, length: int) -> None:
        """Makes slot `target` begin with the first `length` positions of slot `source`."""
        for block in (*self.keys, *self.values):
            block[target, :length] = block[source, :length]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Zero: positions are always given explicitly."""
        return 0


def _attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    **_: object,
) -> tuple[torch.Tensor, None]:
    """Grouped-query attention; decoding treats a group's heads as queries of one head, so no key is copied."""
    batch, heads, length, head_dim = query.shape
    groups = heads // key.shape[1]
    if length == 1:
        query = query.reshape(batch, heads // groups, groups, head_dim)
    else:
        key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    query, key, value = (x.to(value.dtype) for x in (query, key, value))
    out = F.scaled_dot_product_attention(query, key, value, attn_mask=attention_mask, scale=scaling)
    return out.reshape(batch, heads, length, head_dim).transpose(1, 2).contiguous(), None


AttentionInterface.register(ATTENTION, _attention)
