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
  X("dia", Dia<Sigmoid>)                             \
  X("dia-relu", Dia<Relu>)                           \
  X("dsu-sigmoid-context", Dsu<Sigmoid, Identity>)   \
  X("dsu-tanh-context", Dsu<Tanh, Identity>)         \
  X("dsu-relu-context", Dsu<Relu, Identity>)         \
  X("dsu-identity-context", Dsu<Identity, Identity>) \
  X("dsu-sigmoid-sigmoid", Dsu<Sigmoid, Sigmoid>)    \
  X("dsu-tanh-sigmoid", Dsu<Tanh, Sigmoid>)          \
  X("dsu-relu-sigmoid", Dsu<Relu, Sigmoid>)          \
  X("dsu-identity-sigmoid", Dsu<Identity, Sigmoid>)

namespace dla {

// Rules by number, for code that chooses one at run time: the order of the list above.
#define DLA_RULE_NAME(name, ...) name,
constexpr const char* kRuleNames[] = {DLA_FOR_EACH_RULE(DLA_RULE_NAME)};
#undef DLA_RULE_NAME
constexpr int kNumRules = sizeof(kRuleNames) / sizeof(kRuleNames[0]);

DLA_HOST_DEVICE constexpr bool same_name(const char* a, const char* b) {
  for (; *a && *a == *b; ++a, ++b) {
  }
  return *a == *b;
}
// The number of the rule of that name; kNumRules if there is none.
DLA_HOST_DEVICE constexpr int rule_number(const char* name) {
  int rule = 0;
  while (rule < kNumRules && !same_name(kRuleNames[rule], name)) ++rule;
  return rule;
}

// Calls f with a value of the type of rule number `rule`.
template <class F>
DLA_HOST_DEVICE void with_rule(int rule, F f) {
#define DLA_RULE_CASE(name, ...)                                \
  case std::integral_constant<int, rule_number(name)>::value: { \
    f(__VA_ARGS__{});                                           \
    break;                                                      \
  }
  switch (rule) { DLA_FOR_EACH_RULE(DLA_RULE_CASE) }
#undef DLA_RULE_CASE
}

}  // namespace dla
