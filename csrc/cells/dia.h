// dia:  c' = sig(f) c + sig(i) tanh(g),  h' = sig(o) act(c'),  output h'; with tanh it is the lstm
#pragma once

#include "lstm.h"

namespace dla {

template <class Act>
using Dia = OutputGated<Act>;

}  // namespace dla
