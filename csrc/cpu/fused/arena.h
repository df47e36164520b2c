// The memory of a thread for the activations of a network.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace smoothfast {
namespace fused {

// Zeros, until somebody writes there; halos stay so.
class Arena {
 public:
  // That of a program: kept while the same one asks.
  char* of(const void* program, int64_t bytes) {
    if (program_ == program) return memory_.get();
    constexpr int64_t kHugePage = 2 << 20;
    const int64_t whole = (bytes + kHugePage - 1) / kHugePage * kHugePage;
    memory_.reset(static_cast<char*>(std::aligned_alloc(kHugePage, whole)));
    if (!memory_) throw std::bad_alloc();
#if defined(__linux__)
    madvise(memory_.get(), whole, MADV_HUGEPAGE);
#endif
    std::memset(memory_.get(), 0, whole);
    program_ = program;
    return memory_.get();
  }

 private:
  struct Freed {
    void operator()(void* memory) const { std::free(memory); }
  };

  const void* program_ = nullptr;
  std::unique_ptr<char, Freed> memory_;
};

}  // namespace fused
}  // namespace smoothfast
