from __future__ import annotations

import pytest
import torch

from export.networks import find_architecture
from export.networks.gate import SteelGate


@pytest.fixture(scope="module")
def gate() -> SteelGate:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    return SteelGate(widths=(8, 8, 16)).eval()


def image(lines: int, columns: int) -> torch.Tensor:
    return torch.randint(0, 256, (1, 1, lines, columns), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(("lines", "columns"), [(16, 16), (16, 160), (48, 32)])
def test_the_gate_scores_every_cell_of_any_image(gate, lines, columns):
    assert gate(image(lines, columns)).shape == (1, 1, lines // 16, columns // 16)


def test_a_cell_depends_on_nothing_beyond_64_pixels(gate):
    one, other = image(192, 192), image(192, 192)
    other[..., :16, :] = 255 - other[..., :16, :]
    with torch.inference_mode():
        before, after = gate(one)[0, 0], gate(other)[0, 0]
    # the fifth row of cells begins 64 px below the last changed line
    assert torch.equal(before[5:], after[5:])
    assert not torch.equal(before[:5], after[:5])


def test_a_gate_is_rebuilt_from_its_weights_with_the_widths_it_was_trained_with():
    architecture = find_architecture("steel-gate")
    trained = SteelGate(widths=(16, 24, 40))
    rebuilt = architecture.build(trained.state_dict())
    rebuilt.load_state_dict(trained.state_dict())
    assert (architecture.cell, architecture.reduce) == (16, 2)
