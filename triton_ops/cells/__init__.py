"""The pointwise rules, by the names that every backend knows them by."""

from .dia import DIA, DIA_RELU
from .dsu import ACTIVATIONS, OUTPUTS, dsu
from .gate import GATE as GATE
from .lstm import LSTM
from .rnn import RNN
from .state import Cell

RULES: dict[str, Cell] = {"rnn": RNN, "lstm": LSTM, "dia": DIA, "dia-relu": DIA_RELU}
RULES |= {f"dsu-{act}-{out}": dsu(act, out) for out in OUTPUTS for act in ACTIVATIONS}
