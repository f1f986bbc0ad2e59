// Compiled once per instruction set; DLA_ISA names the namespace of this copy (CMakeLists.txt).
#include "gemm.h"
#include "maps.h"
#include "norm.h"
#include "pointwise.h"
#include "recalibrate.h"
#include "stencil.h"
#include "tables.h"

namespace dla {
namespace cpu {
namespace DLA_ISA {

template <class A>
RowKernels<A> make_row_kernels() {
#define DLA_RULE(name, ...) Pointwise<__VA_ARGS__, A>::kernels(name),
  static const RuleKernels<A> rules[] = {DLA_FOR_EACH_RULE(DLA_RULE)};
#undef DLA_RULE
  return {&dots<A>, &axpys<A>, &pack<A>, rules, int(sizeof rules / sizeof rules[0])};
}

template <class T>
MapKernels<T> make_map_kernels() {
  return {&mean<T>,         &dot<T>, &spread<T>,      &scale<T>,        &add_scaled<T>, &recalibrate<T>, &passed_dot<T>,
          &passed_scale<T>, &mix<T>, &masked_sums<T>, &masked_scale<T>, &stencil<T>,    &correlate<T>};
}

const Tables& tables() {
  static const Tables all = {
      make_row_kernels<float>(),  make_row_kernels<double>(),   make_map_kernels<float>(),
      make_map_kernels<double>(), make_map_kernels<BFloat16>(), make_map_kernels<Half>(),
  };
  return all;
}

}  // namespace DLA_ISA
}  // namespace cpu
}  // namespace dla
