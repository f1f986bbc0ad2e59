// The stacks of the shim's fibers, and the switch from one to another.
#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstddef>
#include <new>
#include <vector>

#if defined(__has_feature)
#if __has_feature(address_sanitizer)
#define __SANITIZE_ADDRESS__ 1  // as GCC says it
#endif
#endif
#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#define SIMT_ASAN(...) __VA_ARGS__
#else
#define SIMT_ASAN(...)
#endif

// SIMT_UCONTEXT chooses the portable switch, which is many times slower, on x86-64 too: so that it can be tested.
#if defined(SIMT_UCONTEXT) || !defined(__x86_64__)
#define SIMT_UCONTEXT 1
#include <ucontext.h>
#endif

namespace simt {
namespace detail {

constexpr size_t kStackBytes = 64 * 1024 SIMT_ASAN(*4);  // red zones make frames several times larger

#if defined(SIMT_UCONTEXT)
using Suspended = ucontext_t;

inline void switch_stack(Suspended* save, Suspended* go_on) { swapcontext(save, go_on); }

inline void prepare(Suspended& suspended, unsigned char* stack, void (*entry)()) {
  getcontext(&suspended);
  suspended.uc_stack.ss_sp = stack;
  suspended.uc_stack.ss_size = kStackBytes;
  makecontext(&suspended, entry, 0);
}
#else
using Suspended = void*;  // the stack pointer; all else is on the stack

// Saves what the System V ABI wants kept, and its stack pointer through rdi; continues at the one that rsi points to.
// It must be a call that the compiler knows nothing about: with -fipa-ra GCC trusts a callee that it has seen to leave
// other registers alone. It ends in `ret`, not in a jump: nearly all calls come from one place, so it is predicted.
#if __has_attribute(noipa)
__attribute__((noipa))
#endif
__attribute__((naked, noinline)) inline void switch_stack(Suspended* /*save*/, Suspended* /*go_on*/) {
  asm volatile(
      "pushq %rbp; pushq %rbx; pushq %r12; pushq %r13; pushq %r14; pushq %r15;"
      "movq %rsp, (%rdi); movq (%rsi), %rsp;"
      "popq %r15; popq %r14; popq %r13; popq %r12; popq %rbx; popq %rbp; ret");
}

// As switch_stack leaves a stack: six registers (rbp = 0 ends a backtrace), then where to go on. Above that is what
// entry takes for its own return address; with it, the stack is aligned as after a call.
inline void prepare(Suspended& suspended, unsigned char* stack, void (*entry)()) {
  void** top = reinterpret_cast<void**>(stack + kStackBytes) - 8;
  std::fill_n(top, 8, nullptr);
  top[6] = reinterpret_cast<void*>(entry);
  suspended = top;
}
#endif

// A suspended stack, and what ASan wants to be told about it.
struct Context {
  Suspended suspended;
  void* fake_stack;
  const void* stack;
  size_t stack_bytes;
};

// Suspends `from` and continues `to`. A stack left for good gives its ASan fake stack back.
inline void jump(Context& from, Context& to, [[maybe_unused]] bool for_good) {
  SIMT_ASAN(__sanitizer_start_switch_fiber(for_good ? nullptr : &from.fake_stack, to.stack, to.stack_bytes);)
  switch_stack(&from.suspended, &to.suspended);
  SIMT_ASAN(__sanitizer_finish_switch_fiber(from.fake_stack, nullptr, nullptr);)
}

// Stacks, each above an inaccessible page; kept between launches.
class Stacks {
 public:
  ~Stacks() {
    for (unsigned char* mapped : mapped_) {
      SIMT_ASAN(__asan_unpoison_memory_region(mapped, guard_ + kStackBytes);)  // whatever is mapped here next
      munmap(mapped, guard_ + kStackBytes);
    }
  }
  void reserve(size_t count) {
    mapped_.reserve(count);
    while (mapped_.size() < count) {
      void* mapped = mmap(nullptr, guard_ + kStackBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
      if (mapped == MAP_FAILED) throw std::bad_alloc();
      mapped_.push_back(static_cast<unsigned char*>(mapped));
      if (mprotect(mapped, guard_, PROT_NONE) != 0) throw std::bad_alloc();
    }
  }
  unsigned char* operator[](size_t i) const { return mapped_[i] + guard_; }

 private:
  const size_t guard_ = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  std::vector<unsigned char*> mapped_;
};

}  // namespace detail
}  // namespace simt
