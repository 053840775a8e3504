"""Cells over padded and packed rows against torch's own LSTM and GRU over each row alone, in float64."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from llmkit.models.recurrent import RecurrentCache, make_cells, run_cells

WIDTH = 6
LENGTHS = (4, 9, 1, 7)


def cells_of(cell: str, *, bidirectional: bool = False):
    torch.manual_seed(3)
    config = SimpleNamespace(cell=cell, hidden_size=8, num_layers=2, dropout=0.0)
    return make_cells(config, WIDTH, bidirectional=bidirectional).double()


def rows() -> list[torch.Tensor]:
    draw = torch.Generator().manual_seed(5)
    return [torch.randn(length, WIDTH, generator=draw, dtype=torch.float64) for length in LENGTHS]


def alone(cells, row: torch.Tensor, state=None):
    """(T, H), and the state (layers * directions, H) of h and c, of torch's own call on one row."""
    outputs, after = cells(row[None], state)
    parts = after if isinstance(after, tuple) else (after,)
    return outputs[0], [part[:, 0] for part in parts]


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("cell", ["lstm", "gru"])
@pytest.mark.parametrize("side", ["left", "right", "scattered"])
def test_padding_anywhere_changes_nothing(cell, bidirectional, side):
    cells = cells_of(cell, bidirectional=bidirectional)
    width = max(LENGTHS) + 2
    inputs = torch.randn(len(LENGTHS), width, WIDTH, dtype=torch.float64)
    mask = torch.zeros(len(LENGTHS), width, dtype=torch.long)
    for number, row in enumerate(rows()):
        places = {"left": range(width - len(row), width), "right": range(len(row))}.get(side)
        places = torch.tensor(places or sorted(torch.randperm(width)[: len(row)].tolist()))
        inputs[number, places], mask[number, places] = row, 1
    outputs, state = run_cells(cells, inputs, mask=mask)
    for number, row in enumerate(rows()):
        expected, expected_state = alone(cells, row)
        assert torch.allclose(outputs[number][mask[number].bool()], expected, atol=1e-12)
        assert (outputs[number][~mask[number].bool()] == 0).all()
        assert len(state) == len(expected_state) == (2 if cell == "lstm" else 1)
        assert all(torch.allclose(a[number], b, atol=1e-12) for a, b in zip(state, expected_state, strict=True))


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_documents_of_a_row_do_not_see_each_other(cell):
    cells = cells_of(cell)
    documents = rows()
    packed = torch.stack(
        [torch.cat([documents[0], documents[3]]), torch.cat([documents[1], documents[2], documents[2]])]
    )
    starts = torch.zeros(2, 11, dtype=torch.bool)
    starts[0, [0, 4]] = starts[1, [0, 9, 10]] = True
    outputs, state = run_cells(cells, packed, starts=starts)
    expected = [alone(cells, document)[0] for document in documents]
    assert torch.allclose(outputs[0], torch.cat([expected[0], expected[3]]), atol=1e-12)
    assert torch.allclose(outputs[1], torch.cat([expected[1], expected[2], expected[2]]), atol=1e-12)
    assert torch.allclose(state[0][1], alone(cells, documents[2])[1][0], atol=1e-12)


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_a_state_goes_on_in_the_first_document_alone(cell):
    cells = cells_of(cell)
    row = rows()[1]
    whole, after = alone(cells, row)
    _, before = run_cells(cells, row[None, :3])
    rest, state = run_cells(cells, row[None, 3:], state=before)
    assert torch.allclose(rest[0], whole[3:], atol=1e-12)
    assert torch.allclose(state[0][0], after[0], atol=1e-12)
    starts = torch.tensor([[False, False, True, False, False, False]])
    cut, _ = run_cells(cells, row[None, 3:], starts=starts, state=before)
    assert torch.allclose(cut[0, :2], whole[3:5], atol=1e-12)
    assert torch.allclose(cut[0, 2:], alone(cells, row[5:])[0], atol=1e-12)


def test_a_row_without_tokens_keeps_its_state():
    cells = cells_of("lstm")
    inputs = torch.randn(2, 3, WIDTH, dtype=torch.float64)
    before = tuple(torch.randn(2, 2, 8, dtype=torch.float64) for _ in range(2))
    for mask in ([[1, 1, 1], [0, 0, 0]], [[0, 0, 0], [0, 0, 0]]):
        outputs, state = run_cells(cells, inputs, mask=torch.tensor(mask), state=before)
        assert (outputs[1] == 0).all()
        assert all(torch.equal(a[1], b[1]) for a, b in zip(state, before, strict=True))


def test_beams_change_places():
    parts = tuple(torch.arange(6.0).reshape(3, 1, 2) + k for k in (0, 10))
    cache = RecurrentCache(parts, 4)
    cache.reorder_cache(torch.tensor([2, 2, 0]))
    assert cache.get_seq_length() == 4
    assert all(torch.equal(new, old[[2, 2, 0]]) for new, old in zip(cache.states, parts, strict=True))
