"""dia: c' = sig(f) c + sig(i) tanh(g), h' = sig(o) sig(c'), output h'"""

from .activation import SIGMOID
from .lstm import LSTM

DIA = LSTM._replace(act=SIGMOID)
