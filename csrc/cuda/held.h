// Numbers that launches leave for each other: many buffers in one tensor.
#pragma once

#include <utility>
#include <vector>

#include "host.h"

namespace dla {
namespace cuda {

template <class A>
class Held {
 public:
  // A pointer that is to point to so many numbers, from 16 bytes on.
  void want(A*& pointer, int64_t numbers) { wanted_.emplace_back(&pointer, divide_up(numbers, 4) * 4); }
  void allocate(const Tensor& like) {
    int64_t size = 0;
    for (const auto& buffer : wanted_) size += buffer.second;
    held_ = empty<A>(like, {size});
    int64_t at = 0;
    for (const auto& buffer : wanted_) *buffer.first = data<A>(held_) + at, at += buffer.second;
    wanted_.clear();
  }

 private:
  std::vector<std::pair<A**, int64_t>> wanted_;
  Tensor held_;
};

}  // namespace cuda
}  // namespace dla
