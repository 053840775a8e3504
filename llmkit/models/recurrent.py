"""What the recurrent architectures share: stacks of LSTM or GRU cells over padded or packed rows, and their state.

Padding never changes a result: a row's tokens are gathered before the cells run, so that a masked position moves no
state, wherever it stands. Rows that hold several documents are cut the same way.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from transformers import PreTrainedModel
from transformers import initialization as init

State = tuple[torch.Tensor, ...]
"""(h,) of a GRU or (h, c) of an LSTM, each (B, layers * directions, width): batch first, as beam search wants it."""


def make_cells(config: Any, input_size: int, *, bidirectional: bool) -> nn.LSTM | nn.GRU:
    """The stack of `config`. Two directions share hidden_size, so that the output is (B, T, hidden_size) either way."""
    kind: type[nn.LSTM | nn.GRU] = {"lstm": nn.LSTM, "gru": nn.GRU}[config.cell]
    return kind(
        input_size,
        config.hidden_size // (2 if bidirectional else 1),
        config.num_layers,
        dropout=config.dropout if config.num_layers > 1 else 0.0,
        batch_first=True,
        bidirectional=bidirectional,
    )


def embed(table: nn.Embedding, ids: torch.Tensor) -> torch.Tensor:
    """(B, T, H) rows of a table that the head may share, times sqrt(H) (Vaswani et al. 2017): cells read values of unit
    variance while the head begins with small ones. 120 steps of a character model end at 5.32 with it, 5.76 without.
    """
    embedded: torch.Tensor = table(ids) * table.embedding_dim**0.5
    return embedded


def run_cells(
    cells: nn.LSTM | nn.GRU,
    inputs: torch.Tensor,
    *,
    mask: torch.Tensor | None = None,
    starts: torch.Tensor | None = None,
    state: State | None = None,
) -> tuple[torch.Tensor, State]:
    """(B, T, H) outputs, zero where masked, and the state after each row's last token.

    inputs: (B, T, D). mask: (B, T), true at tokens. starts: (B, T), true where a document begins and the state is zero
    again. state: that before each row's first token; None: zeros.
    """
    if mask is None and starts is None:
        outputs, after = cells(inputs, _to_torch(state))
        return outputs, _from_torch(after)
    token = torch.ones(inputs.shape[:2], dtype=torch.bool, device=inputs.device) if mask is None else mask.bool()
    if bool(token.all()) and starts is None:
        return run_cells(cells, inputs, state=state)
    return _run_pieces(cells, inputs, token, starts, state)


def _run_pieces(
    cells: nn.LSTM | nn.GRU,
    inputs: torch.Tensor,
    token: torch.Tensor,
    starts: torch.Tensor | None,
    state: State | None,
) -> tuple[torch.Tensor, State]:
    """`run_cells` with every document as a row of its own."""
    rows, width = token.shape
    first = token & (token.cumsum(1) == 1)
    begins = first if starts is None else first | (starts & token)
    before = _zeros(cells, inputs, rows) if state is None else state
    if not bool(token.any()):
        return inputs.new_zeros(rows, width, _width(cells)), before
    place = token.flatten().nonzero().squeeze(1)  # of every token, row by row
    piece = begins.flatten()[place].cumsum(0) - 1
    lengths = torch.bincount(piece)
    offset = torch.arange(len(place), device=place.device) - (lengths.cumsum(0) - lengths)[piece]
    gathered = inputs.new_zeros(len(lengths), int(lengths.max()), inputs.shape[-1])
    gathered[piece, offset] = inputs.flatten(0, 1)[place]
    row = place[offset == 0].div(width, rounding_mode="floor")  # of every piece
    opening = first.flatten()[place[offset == 0]]  # the pieces that go on from `state`
    entering = tuple(part[row] * opening[:, None, None] for part in before)
    packed = pack_padded_sequence(gathered, lengths.cpu(), batch_first=True, enforce_sorted=False)
    packed_outputs, after = cells(packed, _to_torch(entering))
    outputs = pad_packed_sequence(packed_outputs, batch_first=True)[0]
    scattered = outputs.new_zeros(rows * width, outputs.shape[-1])
    scattered[place] = outputs[piece, offset]
    closing = torch.ones_like(row, dtype=torch.bool)
    closing[:-1] = row[1:] != row[:-1]  # a row's last piece leaves its state
    left = []
    for old, new in zip(before, _from_torch(after), strict=True):
        kept = old.to(new.dtype).clone()
        kept[row[closing]] = new[closing]
        left.append(kept)
    return scattered.view(rows, width, -1), tuple(left)


def _width(cells: nn.LSTM | nn.GRU) -> int:
    return cells.hidden_size * (2 if cells.bidirectional else 1)


def _zeros(cells: nn.LSTM | nn.GRU, like: torch.Tensor, rows: int) -> State:
    layers = cells.num_layers * (2 if cells.bidirectional else 1)
    zero = like.new_zeros(rows, layers, cells.hidden_size)
    return (zero, zero) if isinstance(cells, nn.LSTM) else (zero,)


def _to_torch(state: State | None) -> Any:
    if state is None:
        return None
    parts = tuple(part.transpose(0, 1).contiguous() for part in state)
    return parts if len(parts) == 2 else parts[0]


def _from_torch(state: Any) -> State:
    parts = state if isinstance(state, tuple) else (state,)
    return tuple(part.transpose(0, 1) for part in parts)


class RecurrentCache:
    """What `generate` hands from step to step instead of keys and values: states, `seen` tokens old.

    transformers asks a cache for its length and to be reordered when beams change places.
    """

    is_compileable = False

    def __init__(self, states: State, seen: int):
        self.states = states
        self.seen = seen

    def get_seq_length(self) -> int:
        return self.seen

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        self.states = tuple(part.index_select(0, beam_idx.to(part.device)) for part in self.states)


class RecurrentPreTrainedModel(PreTrainedModel):
    """Initial weights of every architecture here: cells uniform in 1/sqrt(width), forget gates open (Jozefowicz et al.
    2015), embeddings normal with 1/sqrt(width) so that tied logits begin near zero."""

    base_model_prefix = "model"
    main_input_name = "input_ids"
    _is_stateful = True

    def post_init(self) -> None:
        """transformers' own, which has no types."""
        super().post_init()  # type: ignore[no-untyped-call]

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.LSTM | nn.GRU):
            bound = module.hidden_size**-0.5
            for name, parameter in module.named_parameters():
                if name.startswith("weight"):
                    init.uniform_(parameter, -bound, bound)
                    continue
                bias = torch.zeros_like(parameter)
                if isinstance(module, nn.LSTM) and name.startswith("bias_ih"):
                    bias[module.hidden_size : 2 * module.hidden_size] = 1
                init.copy_(parameter, bias)
        elif isinstance(module, nn.Embedding):
            init.normal_(module.weight, std=module.embedding_dim**-0.5)
            if module.padding_idx is not None:
                init.zeros_(module.weight[module.padding_idx])
        elif isinstance(module, nn.Linear | nn.Conv1d):
            bound = module.weight[0].numel() ** -0.5
            init.uniform_(module.weight, -bound, bound)
            if module.bias is not None:
                init.zeros_(module.bias)

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        """No keys and values to keep: the first forward of `generate` makes a RecurrentCache itself."""
        return False
