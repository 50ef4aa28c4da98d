// What the machine can do: the roof that the other kernels are measured against.
#include <algorithm>

#include "simd.h"

namespace moe_opt {

// Sum of n 64-byte lines, read by all threads as evenly as possible, several streams each.
inline u32x16 read_lines(const uint32_t* x, int64_t n) {
  constexpr int streams = 4;
  const int64_t each = n / streams;
  u32x16 acc[streams] = {};
  for (int64_t i = 0; i < each; ++i)
    for (int s = 0; s < streams; ++s) acc[s] ^= load_as<u32x16>(x + (s * each + i) * 16);
  return acc[0] ^ acc[1] ^ acc[2] ^ acc[3];
}

}  // namespace moe_opt

// Reads `bytes` bytes; the result is kept where the compiler cannot drop it.
extern "C" void moe_opt_read(const void* x, int64_t bytes) {
  [[maybe_unused]] static volatile uint32_t sink;
  using namespace moe_opt;
  constexpr int64_t block = 1 << 14;  // lines
  const int64_t lines = bytes / 64;
  uint32_t result = 0;
#pragma omp parallel for schedule(static) reduction(^ : result)
  for (int64_t first = 0; first < lines; first += block)
    result ^= read_lines((const uint32_t*)x + first * 16, std::min(block, lines - first))[0];
  sink = result;
}
