// The memory of cuda_harness.cpp: exactly as large as asked for, and what is in it.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <deque>
#include <vector>

#include "cuda/device.h"

using namespace dla;
using namespace dla::cuda;

struct Pool {
  std::deque<std::vector<float>> results, inputs;
  std::deque<std::vector<uint16_t>> half_results, half_inputs;
  uint64_t state = 0;

  float draw() { return simt::detail::Random{state += 77}.below(2001) / 1000.0f - 1; }
  float* result(int64_t n) { return results.emplace_back(n, NAN).data(); }
  float* drawn(int64_t n, float scale) {
    std::vector<float>& x = inputs.emplace_back(n);
    for (float& v : x) v = scale * draw();
    return x.data();
  }
  float* result_map(int64_t n, float) { return result(n); }
  BFloat16* result_map(int64_t n, BFloat16) {
    return reinterpret_cast<BFloat16*>(half_results.emplace_back(n, uint16_t(0xffff)).data());
  }
  float* drawn_map(int64_t n, float) { return drawn(n, 1); }
  BFloat16* drawn_map(int64_t n, BFloat16) {
    std::vector<uint16_t>& x = half_inputs.emplace_back(n);
    for (uint16_t& v : x) v = narrow<BFloat16>(draw()).bits;
    return reinterpret_cast<BFloat16*>(x.data());
  }
  uint64_t hash() const {
    uint64_t h = 1;
    for (const auto& x : results)
      for (const float v : x) {
        uint32_t bits;
        std::memcpy(&bits, &v, sizeof bits);
        h = (h ^ bits) * 0x9E3779B97F4A7C15u, h ^= h >> 29;
      }
    for (const auto& x : half_results)
      for (const uint16_t v : x) h = (h ^ v) * 0x9E3779B97F4A7C15u, h ^= h >> 29;
    return h;
  }
  int missing() const {
    int n = 0;
    for (const auto& x : results)
      for (const float v : x) n += v != v;
    for (const auto& x : half_results)
      for (const uint16_t v : x) n += (v & 0x7fff) > 0x7f80;
    return n;
  }
};
