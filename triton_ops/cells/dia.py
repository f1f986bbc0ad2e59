"""dia: c' = sig(f) c + sig(i) tanh(g), h' = sig(o) act(c'), output h'; with tanh it is the lstm"""

from .activation import RELU, SIGMOID
from .lstm import LSTM

DIA = LSTM._replace(act=SIGMOID)
DIA_RELU = LSTM._replace(act=RELU)
