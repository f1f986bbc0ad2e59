"""The pointwise rules, by the names that every backend knows them by."""

from .dia import DIA
from .dsu import ACTIVATIONS, OUTPUTS, dsu
from .lstm import LSTM
from .rnn import RNN
from .state import Cell

RULES: dict[str, Cell] = {"rnn": RNN, "lstm": LSTM, "dia": DIA}
RULES |= {f"dsu-{act}-{out}": dsu(act, out) for out in OUTPUTS for act in ACTIVATIONS}
