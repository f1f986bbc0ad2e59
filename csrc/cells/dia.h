// dia:  c' = sig(f) c + sig(i) tanh(g),  h' = sig(o) sig(c'),  output h'
#pragma once

#include "lstm.h"

namespace dla {

using Dia = OutputGated<Sigmoid>;

}  // namespace dla
