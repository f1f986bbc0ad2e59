// light_scan: the scan of a light cell. Its channels know nothing of each other, so each of every sample has a thread,
// which takes all of its steps; and its gradients.
#pragma once

#include "light_cell.cuh"

namespace dla {
namespace cuda {

constexpr int kStepsAhead = 4;  // whose numbers are asked for before the first of these steps

// f(i) for the thread's channel of a sample, of which there are B * C, if it has one.
template <class F>
DLA_DEVICE void my_channel(int64_t channels, F f) {
  const int64_t i = int64_t(block_index()) * num_threads() + thread_index();
  if (i < channels) f(i);
}

// Channel i of the state that the first layer starts from.
template <class Rule, class A, class Args>
DLA_DEVICE State<A> light_start(const Args& args, int64_t i) {
  const A c = args.c0 ? args.c0[i] : A(0);
  return {args.h0 ? args.h0[i] : args.c0 ? Rule::feed(c) : args.start_h, c};
}

template <class A>
DLA_KERNEL(light_scan_kernel, A, LightScanArgs<A>) {
  const int64_t channels = args.B * args.C;
  with_rule(args.rule, [&](auto rule) {
    using Rule = decltype(rule);
    my_channel(channels, [&](int64_t i) {
      const LightCell<Rule, A> cell(args.gates, args.C, i % args.C);
      State<A> state = light_start<Rule, A>(args, i);
      for (int64_t t0 = 0; t0 < args.T; t0 += kStepsAhead) {
        A s[kStepsAhead];
#pragma unroll
        for (int j = 0; j < kStepsAhead; ++j)
          if (t0 + j < args.T) s[j] = args.s[(t0 + j) * channels + i];
#pragma unroll
        for (int j = 0; j < kStepsAhead; ++j) {
          if (t0 + j >= args.T) break;
          A a[Rule::NG];
          cell.gates_of(s[j], state.h, a);
          state = Rule::step(a, state);
          const int64_t at = (t0 + j) * channels + i;
          if (Rule::kSavesH) args.states_h[at] = state.h;
          if (Rule::kSavesC) args.states_c[at] = state.c;
        }
      }
    });
  });
}

template <class A>
DLA_KERNEL(light_scan_bwd_kernel, A, LightScanBwdArgs<A>) {
  const int64_t channels = args.B * args.C;
  with_rule(args.rule, [&](auto rule) {
    using Rule = decltype(rule);
    my_channel(channels, [&](int64_t i) {
      const int64_t b = i / args.C, c = i - b * args.C;
      const LightCell<Rule, A> cell(args.gates, args.C, c);
      LightSums<Rule, A> sums;
      State<A> d{A(0), A(0)};  // the gradient of the state after the step
      for (int64_t last = args.T - 1; last >= 0; last -= kStepsAhead) {
        A s[kStepsAhead];
        State<A> before[kStepsAhead], arriving[kStepsAhead];
#pragma unroll
        for (int j = 0; j < kStepsAhead; ++j) {
          const int64_t t = last - j, at = t * channels + i, at_before = at - channels;
          if (t < 0) continue;
          s[j] = args.s[at];
          arriving[j] = {args.dstates_h ? args.dstates_h[at] : A(0), args.dstates_c ? args.dstates_c[at] : A(0)};
          if (t == 0) {
            before[j] = light_start<Rule, A>(args, i);
          } else {
            before[j].c = Rule::kSavesC ? args.states_c[at_before] : A(0);
            before[j].h = Rule::kSavesH ? args.states_h[at_before] : Rule::feed(before[j].c);
          }
        }
#pragma unroll
        for (int j = 0; j < kStepsAhead; ++j) {
          if (last - j < 0) break;
          A a[Rule::NG], da[Rule::NG];
          cell.gates_of(s[j], before[j].h, a);
          d.c = Rule::step_bwd(a, before[j], State<A>{d.h + arriving[j].h, d.c + arriving[j].c}, da);
          d.h = cell.to_h(da);
          args.ds[(last - j) * channels + i] = cell.to_s(da);
          sums.add(da, s[j], before[j].h);
        }
      }
      sums.store(args.factors, args.C, b, c);
      if (args.dh0) args.dh0[i] = d.h;
      if (args.dc0) args.dc0[i] = args.h0 ? d.c : d.c + Rule::feed_bwd(args.c0[i], d.h);
    });
  });
}

}  // namespace cuda
}  // namespace dla
