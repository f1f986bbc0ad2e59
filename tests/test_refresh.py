"""``refresh`` is ``d_t = Dyn(y_t, c_T)`` for all t at once, output only."""

from .cell_parity import CellParity


class TestRefresh(CellParity):
    op, starts_by_itself = "refresh", False
