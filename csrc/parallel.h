// Threads: those that torch has, in torch's pool.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cstdint>

namespace faststy {

// Runs f(i) for i in 0 … count − 1, on several threads where that is worth it.
//
// `work` is how many numbers a call touches. What the results are must not depend on which thread
// made them: then any number of threads gives the same bits. f must not throw.
template <typename F>
void for_each(int64_t count, int64_t work, const F& f) {
  constexpr int64_t WORTH_A_THREAD = 1 << 14;
  const int64_t grain = std::max<int64_t>(1, WORTH_A_THREAD / std::max<int64_t>(work, 1));
  const auto range = [&f](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) f(i);
  };
  if (count <= grain) {
    range(0, count);
  } else {
    torch::stable::parallel_for(0, count, grain, range);
  }
}

// As for_each, where f itself calls for_each: its threads then share one i after another, unless
// there is enough for each thread to have i of its own, whose data stays in its cache.
template <typename F>
void for_each_nested(int64_t count, int64_t work, const F& f) {
  const int64_t threads = torch::stable::get_num_threads();
  if (count % threads == 0 || count >= 4 * threads) {
    for_each(count, work, f);
  } else {
    for (int64_t i = 0; i < count; ++i) f(i);
  }
}

}  // namespace faststy
