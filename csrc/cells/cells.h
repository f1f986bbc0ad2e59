// Every cell rule, once: X(name, type). Python's dla_kernels/cells.py lists the same names, and a
// test checks that the two agree.
#pragma once

#include "dia.h"
#include "dsu.h"
#include "lstm.h"
#include "rnn.h"

#define DLA_FOR_EACH_RULE(X)                         \
  X("rnn", Rnn)                                      \
  X("lstm", Lstm)                                    \
  X("dia", Dia)                                      \
  X("dsu-sigmoid-context", Dsu<Sigmoid, Identity>)   \
  X("dsu-tanh-context", Dsu<Tanh, Identity>)         \
  X("dsu-relu-context", Dsu<Relu, Identity>)         \
  X("dsu-identity-context", Dsu<Identity, Identity>) \
  X("dsu-sigmoid-sigmoid", Dsu<Sigmoid, Sigmoid>)    \
  X("dsu-tanh-sigmoid", Dsu<Tanh, Sigmoid>)          \
  X("dsu-relu-sigmoid", Dsu<Relu, Sigmoid>)          \
  X("dsu-identity-sigmoid", Dsu<Identity, Sigmoid>)
