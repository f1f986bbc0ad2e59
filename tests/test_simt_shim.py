"""The shim runs CUDA-style kernels on the CPU: it runs right ones right, and it shows what wrong ones do."""

import os
import signal
import subprocess
from pathlib import Path

import pytest

SHIM = Path(__file__).parent / "simt" / "simt.h"

pytestmark = pytest.mark.slow

# One program, compiled as few times as possible. Each mode prints what the test expects or "<n> wrong".
PROGRAM = r"""
#include "@SHIM@"
#include <cmath>
#include <cstdio>
#include <map>
#include <thread>

static const int kThreadCounts[] = {1, 7, 31, 32, 33, 64, 97, 256, 1000};
static int steps_below(int n) { int steps = 0; while (1 << steps < n) ++steps; return steps; }

// out[block] = the sum over the threads of block + thread. The barrier of step `skipped` is left out.
struct Reduce { float* out; int skipped; };

static void tree_reduce(Reduce a) {
  float* s = reinterpret_cast<float*>(simt::shared_memory());
  const int t = simt::thread_index(), n = simt::num_threads();
  s[t] = simt::block_index() + t;
  int step = steps_below(n);
  if (step != a.skipped) simt::barrier();
  while (--step >= 0) {
    const int stride = 1 << step;
    if (t < stride && t + stride < n) s[t] += s[t + stride];
    if (step != a.skipped) simt::barrier();
  }
  if (t == n - 1) a.out[simt::block_index()] = s[0];
}

static void shuffle_reduce(Reduce a) {
  float* s = reinterpret_cast<float*>(simt::shared_memory());
  const int t = simt::thread_index(), n = simt::num_threads(), warps = (n + 31) / 32;
  float sum = simt::block_index() + t;
  for (int mask = 1; mask < 32; mask *= 2) {
    const double other = simt::shuffle_xor<double>(sum, mask);
    // A full warp adds in any order; the rest is not a power of two, and lane 0 adds up what the others hold.
    if (t / 32 * 32 + 32 <= n) sum += other;
  }
  s[t] = sum;
  simt::warp_barrier();
  if (t % 32 == 0 && t + 32 > n) for (int i = t + 1; i < n; ++i) s[t] += s[i];
  simt::barrier();
  if (t == n - 1) {
    a.out[simt::block_index()] = 0;
    for (int warp = 0; warp < warps; ++warp) a.out[simt::block_index()] += s[warp * 32];
  }
}

static bool reduces(void (*kernel)(Reduce), int threads, int skipped = -1) {
  float out[3];
  simt::launch(kernel, 3, 1, threads, threads * sizeof(float), {out, skipped});
  for (int block = 0; block < 3; ++block) {
    if (!(out[block] == threads * block + threads * (threads - 1) / 2)) return false;
  }
  return true;
}

static int reduce(int seeds) {
  int wrong = 0;
  for (int seed = 0; seed < seeds; ++seed) {
    simt::seed(seed);
    for (int threads : kThreadCounts) wrong += !reduces(tree_reduce, threads) + !reduces(shuffle_reduce, threads);
  }
  std::printf("%d wrong\n", wrong);
  return wrong;
}

// Every barrier of a tree reduction is needed: how many of 20 seeds show that it is missing?
static void reduce_racy() {
  for (int threads : {7, 97, 256}) {
    for (int skipped = 0; skipped <= steps_below(threads); ++skipped) {
      int wrong = 0;
      for (int seed = 0; seed < 20; ++seed) simt::seed(seed), wrong += !reduces(tree_reduce, threads, skipped);
      std::printf("%d wrong\n", wrong);
    }
  }
}

// Every thread of a block reads what the next block of the cluster wrote.
struct Exchange { float* out; bool synced, stays; };

static void exchange(Exchange a) {
  float* s = reinterpret_cast<float*>(simt::shared_memory());
  const int t = simt::thread_index(), n = simt::num_threads(), next = (simt::cluster_rank() + 1) % simt::cluster_size();
  s[t] = simt::block_index() * 100 + t;
  if (a.synced) simt::cluster_barrier();
  const float got = simt::peer(s, next)[n - 1 - t];
  if (a.stays) simt::cluster_barrier();
  a.out[simt::block_index() * n + t] = got;
}

static bool exchanges(bool synced, bool stays) {
  constexpr int kBlocks = 8, kCluster = 4, kThreads = 40;
  float out[kBlocks * kThreads];
  simt::launch(exchange, kBlocks, kCluster, kThreads, kThreads * sizeof(float), {out, synced, stays});
  for (int i = 0; i < kBlocks * kThreads; ++i) {
    const int block = i / kThreads, from = block / kCluster * kCluster + (block + 1) % kCluster;
    if (!(out[i] == from * 100 + kThreads - 1 - i % kThreads)) return false;
  }
  return true;
}

static void exchange_all() {
  for (auto [synced, stays] : {std::pair(true, true), {false, true}, {true, false}}) {
    int wrong = 0;
    for (int seed = 0; seed < 20; ++seed) simt::seed(seed), wrong += !exchanges(synced, stays);
    std::printf("%d wrong\n", wrong);
  }
}

// Every thread of a block sends a number to each block of the cluster, itself too, twice; they add up what came.
struct Letters { float* out; bool waits; };

static void send_round(Letters a) {
  const int t = simt::thread_index(), n = simt::num_threads(), ranks = simt::cluster_size(), me = simt::cluster_rank();
  auto* box = reinterpret_cast<simt::Letterbox*>(simt::shared_memory());
  float* s = reinterpret_cast<float*>(simt::shared_memory() + 16);
  if (t == 0) simt::open_letterbox(box);
  simt::cluster_barrier();
  float sum = 0;
  for (int phase = 0; phase < 2; ++phase) {
    if (t == 0) simt::expect_letters(box, n * ranks * 4);
    for (int to = 0; to < ranks; ++to) simt::send_letter(s + me * n + t, simt::block_index() + t + 1.0f, box, to);
    if (a.waits) simt::wait_for_letters(box, phase);
    for (int i = 0; i < n * ranks; ++i) sum += s[i];
    simt::cluster_barrier();
  }
  a.out[simt::block_index() * n + t] = sum;
}

static bool letters_arrive(bool wait) {
  constexpr int kBlocks = 4, kCluster = 2, kThreads = 40;
  float out[kBlocks * kThreads];
  try {
    simt::launch(send_round, kBlocks, kCluster, kThreads, 16 + kCluster * kThreads * 4, {out, wait});
  } catch (const std::logic_error&) {  // letters are expected while others are
    return false;
  }
  for (int i = 0; i < kBlocks * kThreads; ++i) {
    const int first = i / kThreads / kCluster * kCluster;
    if (!(out[i] == 2 * (kThreads * (kThreads + 1) + kThreads * (2 * first + 1)))) return false;
  }
  return true;
}

// Every thread copies four numbers to shared memory, and reads what its neighbour has copied.
struct Copies { const float* in; float* out; bool awaits; };
struct alignas(16) Quad { float v[4]; };

static void copy_round(Copies a) {
  const int t = simt::thread_index(), next = (t + 1) % simt::num_threads();
  Quad* s = reinterpret_cast<Quad*>(simt::shared_memory());
  simt::copy_async(s + t, reinterpret_cast<const Quad*>(a.in) + t);
  if (a.awaits) simt::await_copies();
  simt::barrier();
  for (int i = 0; i < 4; ++i) a.out[4 * t + i] = s[next].v[i];
}

static bool copies_arrive(bool awaits) {
  constexpr int kThreads = 40;
  alignas(16) float in[4 * kThreads];
  float out[4 * kThreads];
  for (int i = 0; i < 4 * kThreads; ++i) in[i] = i;
  try {
    simt::launch(copy_round, 1, 1, kThreads, sizeof in, {in, out, awaits});
  } catch (const std::logic_error&) {  // a thread leaves before they are there
    return false;
  }
  for (int i = 0; i < 4 * kThreads; ++i) if (!(out[i] == (i + 4) % (4 * kThreads))) return false;
  return true;
}

static void copies_all() {
  for (bool awaits : {true, false}) {
    int wrong = 0;
    for (int seed = 0; seed < 20; ++seed) simt::seed(seed), wrong += !copies_arrive(awaits);
    std::printf("%d wrong\n", wrong);
  }
}

static void letters_all() {
  for (bool wait : {true, false}) {
    int wrong = 0;
    for (int seed = 0; seed < 20; ++seed) simt::seed(seed), wrong += !letters_arrive(wait);
    std::printf("%d wrong\n", wrong);
  }
}

struct Nothing {};
struct Wide { int64_t low; int32_t high; };

static void report(const char* what, int blocks, int cluster, int threads, void (*kernel)(Nothing)) {
  try {
    simt::launch(kernel, blocks, cluster, threads, 64, Nothing{});
    std::printf("%s: done\n", what);
  } catch (const std::exception& e) {
    std::printf("%s: %s\n", what, e.what());
  }
}

static void kinds() {
  report("each warp its own", 1, 1, 80, [](Nothing) {
    if (simt::thread_index() < 32) simt::warp_barrier(); else if (simt::thread_index() < 64) simt::shuffle_xor(1, 1);
    simt::barrier();
    simt::cluster_barrier();
  });
  report("types", 1, 1, 64, [](Nothing) {
    const int t = simt::thread_index(), other = t ^ 5;
    const Wide wide = simt::shuffle_xor(Wide{t, -t}, 5);
    if (wide.low != other || wide.high != -other) throw std::runtime_error("Wide");
    if (simt::shuffle_xor<unsigned char>(t, 5) != other || simt::shuffle_xor(t * 1.5, 5) != other * 1.5) {
      throw std::runtime_error("a number");
    }
  });
  report("lane that is missing", 1, 1, 33, [](Nothing) {
    const float got = simt::shuffle_xor(1.0f, 1);
    if (std::isnan(got) != (simt::thread_index() == 32)) throw std::runtime_error("not NaN");
  });
  report("fresh memory", 6, 2, 2, [](Nothing) {
    float* s = reinterpret_cast<float*>(simt::shared_memory());
    if (!std::isnan(s[simt::thread_index()])) throw std::runtime_error("not NaN");
    if (reinterpret_cast<uintptr_t>(s) % 128 != 0) throw std::runtime_error("not aligned");
    s[simt::thread_index()] = 1;
  });
  try {  // any callable will do
    int calls = 0;
    simt::launch([&calls](const Nothing&) { ++calls; }, 6, 3, 5, 0, Nothing{});
    std::printf("callable: %d calls\n", calls);
    simt::launch([](int) {}, 6, 4, 5, 0, 0);
  } catch (const std::invalid_argument& e) {
    std::printf("%s\n", e.what());
  }
}

static void misuse() {
  report("unequal", 1, 1, 32, [](Nothing) { if (simt::thread_index() != 5) simt::barrier(); });
  report("two kinds", 1, 1, 64, [](Nothing) {
    if (simt::thread_index() < 32) simt::barrier(); else simt::cluster_barrier();
  });
  report("two in a warp", 1, 1, 32, [](Nothing) {
    if (simt::thread_index() < 10) simt::warp_barrier(); else simt::shuffle_xor(1, 1);
  });
  report("shuffle", 1, 1, 40, [](Nothing) { if (simt::thread_index() != 39) simt::shuffle_xor(1, 1); });
  report("cluster", 2, 2, 3, [](Nothing) { if (simt::cluster_rank() == 1) simt::cluster_barrier(); });
  report("throws", 2, 2, 40, [](Nothing) {
    if (simt::thread_index() == 33 && simt::block_index() == 1) throw std::runtime_error("from a thread");
    simt::cluster_barrier();
  });
  report("peer", 2, 2, 1, [](Nothing) { int mine = 0; simt::peer(&mine, 1); });
  report("letters that nobody sends", 2, 2, 3, [](Nothing) {
    auto* box = reinterpret_cast<simt::Letterbox*>(simt::shared_memory());
    simt::open_letterbox(box);
    simt::barrier();
    if (simt::thread_index() == 1) simt::expect_letters(box, 8), simt::send_letter((float*)(box + 1), 1.0f, box, 0);
    simt::wait_for_letters(box, 0);
  });
  report("expected twice", 1, 1, 2, [](Nothing) {
    auto* box = reinterpret_cast<simt::Letterbox*>(simt::shared_memory());
    if (simt::thread_index() == 0) simt::open_letterbox(box);
    simt::barrier();
    simt::expect_letters(box, 8);
  });
  report("unawaited", 1, 1, 32, [](Nothing) {
    static const float number = 1;
    simt::copy_async(reinterpret_cast<float*>(simt::shared_memory()), &number);
  });
  report("too late", 2, 2, 1, [](Nothing) {
    auto* box = reinterpret_cast<simt::Letterbox*>(simt::shared_memory());
    simt::open_letterbox(box);
    simt::cluster_barrier();
    if (simt::cluster_rank() == 0) simt::send_letter(reinterpret_cast<float*>(box + 1), 1.0f, box, 1);
  });
  report("aligned", 1, 1, 1, [](Nothing) { simt::aligned(simt::shared_memory() + 8, 16); });
  report("mask", 1, 1, 32, [](Nothing) { simt::shuffle_xor(1, 32); });
  report("nested", 1, 1, 1, [](Nothing) { simt::launch([](int) {}, 1, 1, 1, 0, 0); });
  reduce(2);
}

// The order in which the threads pass their synchronisation points, as a number.
static uint64_t trace() {
  uint64_t hash = 0;
  for (int i = 0; i < 3; ++i) {
    simt::launch([&hash](int rounds) {
      for (int i = 0; i < rounds; ++i) {
        hash = (hash + simt::block_index() * 1000 + simt::thread_index() + 1) * 0x9E3779B97F4A7C15u;
        if (i % 2 == 0) simt::barrier(); else simt::shuffle_xor(i, 1);
      }
    }, 6, 2, 48, 0, 5);
  }
  return hash;
}

static void schedule() {
  std::printf("%llx\n", static_cast<unsigned long long>(trace()));  // as DLA_SIMT_SEED says
  std::map<uint64_t, int> seen;
  for (int round = 0; round < 2; ++round) for (int seed = 0; seed < 20; ++seed) simt::seed(seed), ++seen[trace()];
  std::printf("%zu schedules\n", seen.size());
}

static void os_threads() {
  std::vector<int> wrong(4);
  std::vector<std::thread> threads;
  for (int& w : wrong) threads.emplace_back([&w] { for (int n : kThreadCounts) w += !reduces(tree_reduce, n); });
  for (std::thread& thread : threads) thread.join();
  std::printf("%d wrong\n", wrong[0] + wrong[1] + wrong[2] + wrong[3]);
}

static int deep(volatile int* above) {
  volatile int here[256] = {*above};
  return *above < 0 ? 0 : deep(here) + here[0];
}

int main(int, char** argv) {
  const std::string mode = argv[1];
  if (mode == "reduce") return reduce(std::stoi(argv[2])) != 0;
  if (mode == "reduce_racy") reduce_racy();
  if (mode == "exchange") exchange_all();
  if (mode == "letters") letters_all();
  if (mode == "copies") copies_all();
  if (mode == "kinds") kinds();
  if (mode == "misuse") misuse();
  if (mode == "schedule") schedule();
  if (mode == "os_threads") os_threads();
  if (mode == "overrun") {
    simt::launch([](int n) { simt::shared_memory()[simt::thread_index() + n] = 0; }, 1, 1, 32, 100, 69);
  }
  if (mode == "overflow") simt::launch([](int n) { volatile int zero = n; deep(&zero); }, 1, 1, 32, 0, 0);
}
"""

BUILDS = {
    "x86": ["-O2"],
    "ucontext": ["-O0", "-DSIMT_UCONTEXT"],
    "sanitized": ["-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"],
}


@pytest.fixture(scope="module")
def programs(tmp_path_factory):
    """Return a function that runs the program in a build, made when it is first asked for."""
    folder = tmp_path_factory.mktemp("simt")
    source = folder / "program.cpp"
    source.write_text(PROGRAM.replace("@SHIM@", str(SHIM)))

    def run(build, *arguments, **environment):
        program = folder / build
        if not program.exists():
            flags = ["-std=c++17", "-Wall", "-Wextra", "-Werror", "-pthread", *BUILDS[build]]
            built = subprocess.run(["g++", *flags, source, "-o", program], capture_output=True, text=True, check=False)
            assert built.returncode == 0, built.stderr
        command = [program, *map(str, arguments)]
        environment = os.environ | {"DLA_SIMT_SEED": "0"} | environment
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=120)

    return run


def printed(done):
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    assert done.stderr == ""
    return done.stdout.splitlines()


def wrong_counts(done):
    return [int(line.removesuffix(" wrong")) for line in printed(done)]


@pytest.fixture(params=[*BUILDS])
def run(request, programs):
    return lambda *arguments, **environment: programs(request.param, *arguments, **environment)


def test_reductions_are_right_under_every_seed(run):
    assert wrong_counts(run("reduce", 20)) == [0]


def test_a_missing_barrier_gives_wrong_sums(run):
    counts = wrong_counts(run("reduce_racy"))
    assert len(counts) == (3 + 1) + (7 + 1) + (8 + 1)
    assert min(counts) > 0


def test_blocks_of_a_cluster_exchange_memory(run):
    right, unsynced, gone = wrong_counts(run("exchange"))
    assert right == 0
    assert unsynced > 0
    assert gone > 0  # a block that exits before its peers have read


def test_letters_arrive_before_those_who_wait_for_them_go_on(run):
    right, unawaited = wrong_counts(run("letters"))
    assert right == 0
    assert unawaited > 0


def test_copies_arrive_before_those_who_wait_for_them_go_on(run):
    right, unawaited = wrong_counts(run("copies"))
    assert right == 0
    assert unawaited > 0


def test_every_kind_of_synchronisation_and_launch_works(run):
    assert printed(run("kinds")) == [
        "each warp its own: done",
        "types: done",
        "lane that is missing: done",
        "fresh memory: done",
        "callable: 30 calls",
        "simt: cannot launch 6 blocks in clusters of 4, of 5 threads",
    ]


def test_misuse_is_an_error_and_the_next_launch_works(run):
    assert printed(run("misuse")) == [
        "unequal: simt: deadlock: block 0: 31 threads at barrier, 1 finished",
        "two kinds: simt: deadlock: block 0: 32 threads at barrier, 32 at cluster_barrier",
        "two in a warp: simt: deadlock: block 0: 10 threads at warp_barrier, 22 in shuffle_xor",
        "shuffle: simt: deadlock: block 0: 7 threads in shuffle_xor, 33 finished",
        "cluster: simt: deadlock: block 0: 3 threads finished; block 1: 3 threads at cluster_barrier",
        "throws: from a thread",
        "peer: simt: peer() of what is not in my shared memory",
        "letters that nobody sends: simt: deadlock: block 0: 3 threads finished; block 1: 3 threads at letterbox",
        "expected twice: simt: a letterbox that expects letters already",
        "unawaited: simt: a thread that does not await its copies",
        "too late: simt: a letter to a block that has finished",
        "aligned: simt: an access of 16 bytes that does not begin on as many",
        "mask: simt: shuffle_xor(mask 32)",
        "nested: simt: a kernel launches another",
        "0 wrong",
    ]


def test_a_seed_gives_one_schedule_in_every_build(programs):
    first, schedules = printed(programs("x86", "schedule", DLA_SIMT_SEED="7"))
    assert schedules == "20 schedules"  # of 20 seeds, each twice
    for build in BUILDS:
        assert printed(programs(build, "schedule", DLA_SIMT_SEED="7")) == [first, schedules]
    assert printed(programs("x86", "schedule", DLA_SIMT_SEED="8"))[0] != first


def test_os_threads_launch_at_once(run):
    assert wrong_counts(run("os_threads")) == [0]


def test_address_sanitizer_sees_a_write_past_shared_memory(programs):
    done = programs("sanitized", "overrun")
    assert done.returncode != 0
    assert "AddressSanitizer: heap-buffer-overflow" in done.stderr


@pytest.mark.parametrize("mode", ["reduce", "misuse"])
def test_fake_stacks_of_address_sanitizer_are_switched_with_the_threads(programs, mode):
    printed(programs("sanitized", mode, 1, ASAN_OPTIONS="detect_stack_use_after_return=1"))


def test_a_stack_that_overflows_meets_its_guard(programs):
    assert programs("x86", "overflow").returncode == -signal.SIGSEGV
