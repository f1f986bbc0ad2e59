// Chooses the instruction set, once per process.
#include "microkernels.h"

#include <cstdlib>

#include <torch/headeronly/util/Exception.h>

#include "microkernels/tables.h"

namespace dla {
namespace cpu {
namespace {

struct Choice {
  std::string isa;
  const Tables& (*tables)();
};

Choice choose() {
  const char* asked = std::getenv("DLA_KERNELS_ISA");
  const std::string limit = asked ? asked : "";
  STD_TORCH_CHECK(limit.empty() || limit == "baseline" || limit == "x86-64-v3" || limit == "x86-64-v4",
                  "DLA_KERNELS_ISA: expected baseline, x86-64-v3 or x86-64-v4, got '", limit, "'");
#if defined(DLA_X86_64_V4)
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512cd") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
      (limit.empty() || limit == "x86-64-v4"))
    return {"x86-64-v4", &x86_64_v4::tables};
#endif
#if defined(DLA_X86_64_V3)
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2") &&
      limit != "baseline")
    return {"x86-64-v3", &x86_64_v3::tables};
#endif
  return {"baseline", &baseline::tables};
}

const Choice& choice() {
  static const Choice chosen = choose();
  return chosen;
}
const Tables& tables() {
  static const Tables& chosen = choice().tables();
  return chosen;
}

}  // namespace

const std::string& isa() { return choice().isa; }

template <>
const RowKernels<float>& row_kernels<float>() {
  return tables().fp32;
}
template <>
const RowKernels<double>& row_kernels<double>() {
  return tables().fp64;
}
template <>
const MapKernels<float>& map_kernels<float>() {
  return tables().map_fp32;
}
template <>
const MapKernels<double>& map_kernels<double>() {
  return tables().map_fp64;
}
template <>
const MapKernels<BFloat16>& map_kernels<BFloat16>() {
  return tables().map_bf16;
}
template <>
const MapKernels<Half>& map_kernels<Half>() {
  return tables().map_fp16;
}

template <class A>
const RuleKernels<A>& find_rule(const std::string& name) {
  const RowKernels<A>& all = row_kernels<A>();
  std::string known;
  for (int i = 0; i < all.num_rules; ++i) {
    if (name == all.rules[i].name) return all.rules[i];
    known += std::string(i ? ", " : "") + all.rules[i].name;
  }
  STD_TORCH_CHECK(false, "rule: expected one of ", known, ", got '", name, "'");
}
template const RuleKernels<float>& find_rule<float>(const std::string&);
template const RuleKernels<double>& find_rule<double>(const std::string&);

}  // namespace cpu
}  // namespace dla
