// Runs CUDA-style kernels on the CPU: one fiber per CUDA thread, scheduled in an order that a seed draws.
//
// What a GPU leaves open (who runs first between two synchronisation points) is random here, and what it leaves
// undefined shows: shared memory starts as NaN and is NaN again once its block has exited, and a barrier that not
// everybody reaches is an exception. A fiber gives way only where it synchronises: a kernel that spins on a value
// which another thread is to write never ends. All state is per OS thread, so several of them may launch at once.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <memory>
#include <new>
#include <numeric>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "stacks.h"

namespace simt {
namespace detail {

constexpr int kWarp = 32, kMaxThreads = 1024, kMaxShuffled = 16;
constexpr int kPoison = 0xFF;  // in every byte of a float of any width: NaN
constexpr std::align_val_t kSharedAlignment{128};

// splitmix64: cheap, and a good stream from any seed, 0 included.
struct Random {
  uint64_t state = 0;
  uint32_t below(uint32_t n) {
    uint64_t z = state += 0x9E3779B97F4A7C15u;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return static_cast<uint32_t>(((z >> 32) * n) >> 32);
  }
  template <class Iterator>
  void shuffle(Iterator begin, Iterator end) {
    for (auto n = end - begin; n > 1; --n) std::swap(begin[n - 1], begin[below(static_cast<uint32_t>(n))]);
  }
};

// ---- Who runs next ----

// The threads that can run. Each pop draws one, uniformly among those that are not late; the late ones starve until
// nobody else can run. So a favoured thread gets as far ahead of a late one as synchronisation lets it.
class RunQueue {
 public:
  void start(std::vector<unsigned char> late) {
    late_ = std::move(late);
    for (int i : {0, 1}) ready_[i].resize(late_.size()), size_[i] = 0;
  }
  void stop() { size_[0] = size_[1] = 0; }
  bool empty() const { return size_[0] + size_[1] == 0; }
  void push(int first, int count) {
    for (int i = first; i < first + count; ++i) ready_[late_[i]][size_[late_[i]]++] = i;
  }
  int pop(Random& random) {
    const int late = size_[0] == 0;
    const int drawn = random.below(size_[late]);
    return std::exchange(ready_[late][drawn], ready_[late][--size_[late]]);
  }

 private:
  std::vector<unsigned char> late_;  // for each thread, 0 or 1
  std::vector<int> ready_[2];
  int size_[2];
};

// ---- Threads, warps, blocks ----

enum State { kAtBarrier, kAtWarpBarrier, kAtClusterBarrier, kAtLetterbox, kInShuffle, kFinished, kStates };
constexpr const char* kNames[] = {"at barrier",   "at warp_barrier", "at cluster_barrier",
                                  "at letterbox", "in shuffle_xor",  "finished"};

// Where threads first .. first + count - 1 of the cluster meet. All must come, so once the last one does, it is known
// who waits, and nobody had to be listed. Every kind of synchronisation has gates of its own.
struct Gate {
  int first = 0, count = 0, arrived = 0;
};

struct Warp {
  Gate barrier, shuffle;
  int buffer = 0;  // of two, in turn: some may be in the next shuffle before all have read from this one
  alignas(kMaxShuffled) unsigned char values[2][kWarp][kMaxShuffled];
};

// Bytes that are still to come in this phase; before they are expected fewer than none.
struct Letterbox {
  int32_t awaited;
  uint16_t phase;
  uint16_t expecting;
};
// What is on its way from one block to another.
struct Letter {
  unsigned char value[8];
  int bytes, rank;
  void* to;
  Letterbox* box;
};

// What a thread copies past its registers: there when it waits, if not before.
struct Copy {
  void* to;
  const void* from;
  size_t bytes;
};

struct Block {
  int index, rank, live;
  unsigned char* shared;
  Gate barrier;
};

struct Machine;
struct Fiber {
  Context context;
  Machine* machine;
  Block* block;
  Warp* warp;
  int thread, lane;
  State state;  // what it waits for; of no meaning while it can run
  std::vector<Copy> copies;
};

inline thread_local Fiber* me = nullptr;  // the fiber that runs on this OS thread
[[noreturn]] void fiber_main();

// All that one OS thread needs for its launches.
struct Machine {
  Random random;
  RunQueue queue;
  Stacks stacks;
  Context host, unused;       // host: the caller of launch
  std::vector<Fiber> fibers;  // these three: of the cluster that runs
  std::vector<Warp> warps;
  std::vector<Block> blocks;
  std::vector<Letter> letters;
  std::vector<std::pair<Letterbox*, int>> at_letterboxes;  // threads that wait
  Gate cluster_barrier;
  int num_blocks = 0, threads = 0;
  size_t shared_bytes = 0;
  void (*call)(const void* kernel, const void* args) = nullptr;
  const void *kernel = nullptr, *args = nullptr;
  std::exception_ptr error;

  Machine() {
    if (const char* seed = std::getenv("DLA_SIMT_SEED")) random.state = std::strtoull(seed, nullptr, 0);
  }

  // Gives way to the next fiber, or to the host if there is none. Not inlined: see switch_stack on `ret`.
  __attribute__((noinline)) void suspend(Fiber& self, bool for_good) {
    while (!letters.empty() && !error && (queue.empty() || random.below(4) == 0)) deliver(random.below(letters.size()));
    Fiber* next = queue.empty() ? nullptr : &fibers[queue.pop(random)];
    if (next == &self) return;
    me = next;
    jump(self.context, next != nullptr ? next->context : host, for_good);
  }

  // True for the last to come. It is queued like the others, so that it has no advantage.
  bool arrive(Fiber& self, Gate& gate, State state) {
    self.state = state;
    if (++gate.arrived < gate.count) return false;
    gate.arrived = 0;
    queue.push(gate.first, gate.count);
    return true;
  }
  void wait(Fiber& self, Gate& gate, State state) {
    arrive(self, gate, state);
    suspend(self, false);
  }

  void finish(Fiber& self) {
    self.state = kFinished;
    if (!self.copies.empty() && !error)
      error = std::make_exception_ptr(std::logic_error("simt: a thread that does not await its copies"));
    if (--self.block->live == 0) std::memset(self.block->shared, kPoison, shared_bytes);  // peers must not look now
    if (error) queue.stop();
    suspend(self, true);
  }

  // Letters arrive in any order, between any two steps of threads.
  void deliver(size_t i) {
    const Letter letter = letters[i];
    letters[i] = letters.back(), letters.pop_back();
    if (blocks[letter.rank].live == 0) {
      error = std::make_exception_ptr(std::logic_error("simt: a letter to a block that has finished"));
      return queue.stop();
    }
    std::memcpy(letter.to, letter.value, letter.bytes);
    letter.box->awaited -= letter.bytes;
    end_phase(*letter.box);
  }
  void end_phase(Letterbox& box) {
    if (!box.expecting || box.awaited != 0) return;
    box.phase ^= 1, box.expecting = 0;
    for (size_t i = 0; i < at_letterboxes.size();) {
      if (at_letterboxes[i].first != &box) {
        ++i;
        continue;
      }
      queue.push(at_letterboxes[i].second, 1);
      at_letterboxes[i] = at_letterboxes.back(), at_letterboxes.pop_back();
    }
  }

  // Different mistakes show under different schedules; each cluster draws the kind of its own.
  std::vector<unsigned char> choose_late() {
    enum { kNobody, kOne, kAllButOne, kEachByCoin, kKinds };
    std::vector<unsigned char> late(fibers.size());
    const int all = static_cast<int>(late.size()), size = random.below(2) ? kWarp : threads;  // of warps, or of blocks
    const int kind = random.below(kKinds), one = random.below((all + size - 1) / size);
    for (int i = 0; i < all; ++i) {
      const bool by_coin = i % size == 0 ? random.below(2) : late[i - 1];
      late[i] = kind == kEachByCoin ? by_coin : kind != kNobody && (i / size == one) == (kind == kOne);
    }
    return late;
  }

  void start_cluster(int first_block) {
    const int all = static_cast<int>(fibers.size()), warps_per_block = (threads + kWarp - 1) / kWarp;
    cluster_barrier = {0, all, 0};
    letters.clear(), at_letterboxes.clear();
    for (Block& block : blocks) {
      block.rank = static_cast<int>(&block - blocks.data());
      block.index = first_block + block.rank;
      block.live = threads;
      block.barrier = {block.rank * threads, threads, 0};
      std::memset(block.shared, kPoison, shared_bytes);
    }
    for (Warp& warp : warps) {
      const int number = static_cast<int>(&warp - warps.data()), first = number % warps_per_block * kWarp;
      warp.barrier = {number / warps_per_block * threads + first, std::min(kWarp, threads - first), 0};
      warp.shuffle = warp.barrier;
      std::memset(warp.values, kPoison, sizeof(warp.values));
    }
    for (int i = 0; i < all; ++i) {
      Fiber& fiber = fibers[i];
      fiber.machine = this;
      fiber.thread = i % threads;
      fiber.lane = fiber.thread % kWarp;
      fiber.block = &blocks[i / threads];
      fiber.warp = &warps[i / threads * warps_per_block + fiber.thread / kWarp];
      fiber.copies.clear();
      fiber.context = {{}, nullptr, stacks[i], kStackBytes};
      // The red zones of frames that were never left: those around fiber_main, or any if the launch was given up.
      SIMT_ASAN(const size_t dirty = fiber.state == kFinished ? 4096 : kStackBytes;)
      SIMT_ASAN(__asan_unpoison_memory_region(stacks[i] + kStackBytes - dirty, dirty);)
      prepare(fiber.context.suspended, stacks[i], fiber_main);
    }
  }

  void run_cluster(int first_block) {
    start_cluster(first_block);
    queue.start(choose_late());
    queue.push(0, static_cast<int>(fibers.size()));
    me = &fibers[queue.pop(random)];
    jump(host, me->context, false);
    // Back here: all have finished, or one has thrown, or nobody can run. Stacks left halfway are simply reused.
    if (error) std::rethrow_exception(std::exchange(error, nullptr));
    for (const Block& block : blocks) {
      if (block.live > 0) throw std::runtime_error(describe_deadlock());
    }
  }

  std::string describe_deadlock() const {
    std::string text = "simt: deadlock";
    for (const Block& block : blocks) {
      int counts[kStates] = {};
      for (int i = 0; i < threads; ++i) ++counts[fibers[block.barrier.first + i].state];
      text += (block.rank == 0 ? ": block " : "; block ") + std::to_string(block.index);
      const char *before = ": ", *unit = " threads ";
      for (int state = 0; state < kStates; ++state) {
        if (counts[state] == 0) continue;
        text += before + std::to_string(counts[state]) + unit + kNames[state];
        before = ", ", unit = " ";
      }
    }
    return text;
  }

  void launch(int grid, int cluster, int block_threads, size_t bytes) {
    if (cluster < 1 || grid < 1 || grid % cluster != 0 || block_threads < 1 || block_threads > kMaxThreads) {
      throw std::invalid_argument("simt: cannot launch " + std::to_string(grid) + " blocks in clusters of " +
                                  std::to_string(cluster) + ", of " + std::to_string(block_threads) + " threads");
    }
    num_blocks = grid, threads = block_threads, shared_bytes = bytes;
    blocks.resize(cluster);
    warps.resize(static_cast<size_t>(cluster) * ((threads + kWarp - 1) / kWarp));
    fibers.resize(static_cast<size_t>(cluster) * threads);
    stacks.reserve(fibers.size());
    host.stack = nullptr;  // see fiber_main
    // Allocated one by one and to the byte, so that ASan sees who leaves it.
    const auto release = [](unsigned char* shared) { ::operator delete(shared, kSharedAlignment); };
    std::vector<std::shared_ptr<unsigned char>> owned;
    for (Block& block : blocks) {
      owned.emplace_back(static_cast<unsigned char*>(::operator new(bytes, kSharedAlignment)), release);
      block.shared = owned.back().get();
    }
    std::vector<int> clusters(grid / cluster);
    std::iota(clusters.begin(), clusters.end(), 0);
    random.shuffle(clusters.begin(), clusters.end());
    for (const int i : clusters) run_cluster(i * cluster);
  }
};

// Where a fiber begins.
[[noreturn]] inline void fiber_main() {
  Machine& machine = *me->machine;
  // The first of a launch comes from the host, and learns where its stack is.
  [[maybe_unused]] Context* from = machine.host.stack == nullptr ? &machine.host : &machine.unused;
  SIMT_ASAN(__sanitizer_finish_switch_fiber(nullptr, &from->stack, &from->stack_bytes);)
  try {
    machine.call(machine.kernel, machine.args);
  } catch (...) {
    machine.error = std::current_exception();
  }
  machine.finish(*me);
  std::abort();  // nobody continues a finished fiber
}

inline Machine& this_machine() {
  static thread_local Machine machine;
  return machine;
}

}  // namespace detail

// ---- What kernels call ----

inline int thread_index() { return detail::me->thread; }
inline int num_threads() { return detail::me->machine->threads; }
inline int block_index() { return detail::me->block->index; }
inline int num_blocks() { return detail::me->machine->num_blocks; }
inline int cluster_rank() { return detail::me->block->rank; }
inline int cluster_size() { return static_cast<int>(detail::me->machine->blocks.size()); }

// The block's dynamic shared memory, 128-byte aligned.
inline unsigned char* shared_memory() { return detail::me->block->shared; }

// p, where an access of so many bytes begins that a GPU makes only there where it is aligned.
inline void* aligned(void* p, size_t bytes) {
  if (reinterpret_cast<uintptr_t>(p) % bytes != 0)
    throw std::logic_error("simt: an access of " + std::to_string(bytes) + " bytes that does not begin on as many");
  return p;
}

// All threads of the block, of the warp, of all blocks of the cluster.
inline void barrier() {
  detail::Fiber& self = *detail::me;
  self.machine->wait(self, self.block->barrier, detail::kAtBarrier);
}
inline void warp_barrier() {
  detail::Fiber& self = *detail::me;
  self.machine->wait(self, self.warp->barrier, detail::kAtWarpBarrier);
}
inline void cluster_barrier() {
  detail::Fiber& self = *detail::me;
  self.machine->wait(self, self.machine->cluster_barrier, detail::kAtClusterBarrier);
}

// The same place as p, which is in my shared memory, in that of block `rank` of my cluster.
template <class T>
T* peer(T* p, int rank) {
  const detail::Machine& machine = *detail::me->machine;
  const uintptr_t offset = reinterpret_cast<uintptr_t>(p) - reinterpret_cast<uintptr_t>(shared_memory());
  if (offset > machine.shared_bytes) throw std::out_of_range("simt: peer() of what is not in my shared memory");
  return reinterpret_cast<T*>(machine.blocks.at(rank).shared + offset);
}

// A letterbox counts the bytes that blocks of the cluster send to this one. One thread expects so many in a phase; with
// the last of them the phase ends, and the other of the two begins.
using Letterbox = detail::Letterbox;
inline void open_letterbox(Letterbox* box) { *box = {}; }
inline void expect_letters(Letterbox* box, int bytes) {
  if (box->expecting) throw std::logic_error("simt: a letterbox that expects letters already");
  box->awaited += bytes, box->expecting = 1;
  detail::me->machine->end_phase(*box);
}
// x, to where `to` lies in block `rank`, counted in the same letterbox there. It arrives some time.
template <class T>
void send_letter(T* to, T x, Letterbox* box, int rank) {
  static_assert(sizeof(T) <= sizeof(detail::Letter::value));
  detail::Letter letter{{}, sizeof(T), rank, peer(to, rank), peer(box, rank)};
  std::memcpy(letter.value, &x, sizeof(T));
  detail::me->machine->letters.push_back(letter);
}
inline void wait_for_letters(Letterbox* box, int phase) {
  detail::Fiber& self = *detail::me;
  if (box->phase != phase) return;
  self.state = detail::kAtLetterbox;
  self.machine->at_letterboxes.push_back({box, self.block->barrier.first + self.thread});
  self.machine->suspend(self, false);
}

// *from, to my shared memory. It is read, and there, at once or when the thread awaits it.
template <class T>
void copy_async(T* to, const T* from) {
  static_assert(sizeof(T) == 4 || sizeof(T) == 8 || sizeof(T) == 16, "what one instruction copies");
  detail::Fiber& self = *detail::me;
  peer(to, self.block->rank);  // an error where it is elsewhere
  const detail::Copy copy{aligned(to, sizeof(T)), aligned(const_cast<T*>(from), sizeof(T)), sizeof(T)};
  if (self.machine->random.below(2) == 0)
    std::memcpy(copy.to, copy.from, copy.bytes);
  else
    self.copies.push_back(copy);
}
inline void await_copies() {
  for (const detail::Copy& copy : detail::me->copies) std::memcpy(copy.to, copy.from, copy.bytes);
  detail::me->copies.clear();
}

// The value of lane `mine ^ mask`. All threads of the warp take part; a lane that the last warp lacks gives NaN.
template <class T>
T shuffle_xor(T value, int mask) {
  static_assert(std::is_trivially_copyable_v<T> && sizeof(T) <= detail::kMaxShuffled);
  detail::Fiber& self = *detail::me;
  detail::Warp& warp = *self.warp;
  if (mask < 0 || mask >= detail::kWarp)
    throw std::out_of_range("simt: shuffle_xor(mask " + std::to_string(mask) + ")");
  auto& values = warp.values[warp.buffer];
  std::memcpy(values[self.lane], &value, sizeof(T));
  if (self.machine->arrive(self, warp.shuffle, detail::kInShuffle)) warp.buffer ^= 1;
  self.machine->suspend(self, false);
  std::memcpy(&value, values[self.lane ^ mask], sizeof(T));
  return value;
}

// ---- What hosts call ----

// Chooses the schedules of this OS thread's launches from here on; each launch moves on to another. Until the first
// call it is the environment's DLA_SIMT_SEED, or 0.
inline void seed(uint64_t value) { detail::this_machine().random.state = value; }

// Runs kernel(args) in `blocks` blocks of `threads` threads, clusters of `cluster` blocks one after the other. Throws
// what a thread throws, and std::runtime_error("simt: deadlock: ...") once some wait for what cannot happen.
template <class Kernel, class Args>
void launch(Kernel kernel, int blocks, int cluster, int threads, size_t shared_bytes, const Args& args) {
  if (detail::me != nullptr) throw std::logic_error("simt: a kernel launches another");
  detail::Machine& machine = detail::this_machine();
  machine.kernel = &kernel;
  machine.args = &args;
  machine.call = [](const void* k, const void* a) { (*static_cast<const Kernel*>(k))(*static_cast<const Args*>(a)); };
  machine.launch(blocks, cluster, threads, shared_bytes);
}
template <class Args>
void launch(void (*kernel)(Args), int blocks, int cluster, int threads, size_t shared_bytes, const Args& args) {
  launch<void (*)(Args), Args>(kernel, blocks, cluster, threads, shared_bytes, args);
}

}  // namespace simt
