// Runs kernels as it is told on its input. A case is the kernel, its grid, its buffers and its arguments, which begin
// with the addresses of those buffers; the answer is what the buffers hold afterwards.
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <vector>

#include "cuda/attack_step.h"
#include "cuda/noisy_replicas.h"
#include "cuda/perturb_weights.h"
#include "cuda/replica_sum.h"
#include "cuda/tally.h"

namespace {

using namespace smoothfast;

constexpr unsigned kSeconds = 60;  // for a case, so that what waits forever ends
constexpr size_t kAlignment = 256;

struct Head {
  char kernel[64];  // what its mangled name contains
  int64_t grid, shared;
  int64_t buffers, rest;  // `rest`: bytes of the arguments that follow the addresses
};

struct Extent {
  int64_t bytes;   // 0: the address is null
  int64_t offset;  // of the address from an aligned one
};

struct Buffer {
  Extent extent;
  std::unique_ptr<char, decltype(&std::free)> memory{nullptr, std::free};  // ends where the buffer does
  char* begin() const { return memory ? memory.get() + extent.offset : nullptr; }
};

void read(void* to, size_t bytes) {
  if (std::fread(to, 1, bytes, stdin) != bytes) std::abort();
}

Buffer read_buffer() {
  Buffer buffer;
  read(&buffer.extent, sizeof buffer.extent);
  if (buffer.extent.bytes == 0) return buffer;
  void* memory;
  if (posix_memalign(&memory, kAlignment, buffer.extent.offset + buffer.extent.bytes) != 0) std::abort();
  buffer.memory.reset(static_cast<char*>(memory));
  read(buffer.begin(), buffer.extent.bytes);
  return buffer;
}

struct Case {
  Head head;
  std::vector<Buffer> buffers;
  std::vector<char> arguments;

  bool take() {  // false where there is none any more
    if (std::fread(&head, 1, sizeof head, stdin) != sizeof head) return false;
    buffers.clear();
    arguments.resize(head.buffers * sizeof(char*) + head.rest);
    for (int64_t i = 0; i < head.buffers; ++i) {
      buffers.push_back(read_buffer());
      const char* address = buffers.back().begin();
      std::memcpy(&arguments[i * sizeof address], &address, sizeof address);
    }
    read(&arguments[head.buffers * sizeof(char*)], head.rest);
    return true;
  }

  void answer() const {
    for (const Buffer& buffer : buffers)
      if (buffer.memory) std::fwrite(buffer.begin(), 1, buffer.extent.bytes, stdout);
    std::fflush(stdout);
  }

  template <class Args>
  Args as() const {
    Args args;
    if (arguments.size() != sizeof args) std::abort();
    std::memcpy(&args, arguments.data(), sizeof args);
    return args;
  }

  bool is(const char* mark) const { return std::strstr(head.kernel, mark) != nullptr; }

  Dtype dtype() const { return is("bfloat16") ? Dtype::bf16 : is("half") ? Dtype::f16 : Dtype::f32; }

  void run() const {
    const Launch launch = {0, static_cast<int32_t>(head.grid), static_cast<int32_t>(head.shared)};
    if (is("noisy_replicas")) {
      noisy_replicas(as<ReplicaArgs>(), launch, is("LatticeLaw"), is("fEEv"), dtype(), nullptr);
    } else if (is("tally")) {
      const Dtype logits = is("FormatIlL")   ? Dtype::f64
                           : is("FormatIiL") ? Dtype::f32
                           : is("Ls32640")   ? Dtype::bf16
                                             : Dtype::f16;
      const Voting voting = is("Prediction") ? Voting::prediction
                            : is("Weighted") ? Voting::weighted
                            : is("Soft")     ? Voting::soft
                                             : Voting::logit;
      tally(as<TallyArgs>(), launch, logits, voting, nullptr);
    } else if (is("replica_sum")) {
      const auto args = as<SumArgs>();
      const auto width = static_cast<int32_t>(args.channels * args.plane / args.runs);
      replica_sum(args, {launch, width}, dtype(), nullptr);
    } else if (is("perturb_weights")) {
      perturb_weights(as<PerturbArgs>(), launch, dtype(), nullptr);
    } else {
      attack_step(as<AttackArgs>(), launch, is("l2"), nullptr);
    }
  }
};

Case current;
bool going = true;

void serve() {
  while (going) {
    __syncthreads();
    if (threadIdx.x == 0) {
      alarm(kSeconds);
      going = current.take();
    }
    __syncthreads();
    if (going) current.run();
    __syncthreads();
    if (threadIdx.x == 0 && going) current.answer();
  }
}

}  // namespace

int main() {
  for (pthread_barrier_t& barrier : barriers) pthread_barrier_init(&barrier, nullptr, kThreads);
  launch(1, kThreads, serve);
}
