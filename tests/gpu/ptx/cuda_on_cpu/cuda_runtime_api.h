// What csrc/cuda needs of CUDA beyond ../cuda_on_cpu.h. One team of threads lives as long as the program: starting
// hundreds of them for every block takes most of the time under ThreadSanitizer. All of them run the host code of a
// launch, and go through its blocks together.
#pragma once

#include <algorithm>
#include <cstdlib>

#include "../cuda_on_cpu.h"

using cudaStream_t = void*;
using std::min;

struct alignas(8) float2 {
  float x, y;
};

// Barriers take turns. ThreadSanitizer lets a thread that leaves a barrier know all that reached it so far: were there
// only one, a thread that wakes up late would be ordered after what others did since, and races would go unseen.
inline pthread_barrier_t barriers[2];
inline thread_local unsigned turn;
inline void barrier_of_block() { pthread_barrier_wait(&barriers[turn++ % 2]); }
#define __syncthreads barrier_of_block

// The number of the mistake that kernels make, if they make one.
inline const int mistake = std::getenv("MISTAKE") ? std::atoi(std::getenv("MISTAKE")) : 0;

inline std::vector<char> dynamic_shared;  // of the block that runs, to the byte

// In place of kernel<<<grid, threads, shared, stream>>>(args).
template <class Kernel>
void run_grid(int grid, int shared, const Kernel& kernel) {
  gridDim.x = grid;
  for (blockIdx.x = 0; blockIdx.x < gridDim.x; ++blockIdx.x) {
    if (threadIdx.x == 0) dynamic_shared = std::vector<char>(shared, 0x5A);
    barrier_of_block();
    kernel();
    barrier_of_block();
  }
}
