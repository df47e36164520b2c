// at::parallel_for by threads of the standard library. ThreadSanitizer sees how these begin and end; of OpenMP, whose
// runtime is not instrumented, it sees neither, and takes every result for a race. Included before all else.
#pragma once

#include <algorithm>
#include <cstdint>
#include <thread>
#include <vector>

namespace at {

int get_num_threads();

namespace internal {

template <class F>
void invoke_parallel(int64_t begin, int64_t end, int64_t grain_size, const F& f) {
  const int64_t grain = std::max<int64_t>(1, grain_size), most = (end - begin + grain - 1) / grain;
  const int64_t threads = std::min<int64_t>(get_num_threads(), most), chunk = (end - begin + threads - 1) / threads;
  std::vector<std::thread> team;
  for (int64_t first = begin; first < end; first += chunk)
    team.emplace_back([&f, first, last = std::min(first + chunk, end)] { f(first, last); });
  for (std::thread& one : team) one.join();
}

}  // namespace internal
}  // namespace at
