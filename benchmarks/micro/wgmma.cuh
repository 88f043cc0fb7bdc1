// wgmma m64nNk16 in bfloat16 for N of 32 and 64, with A in registers or in shared memory (PTX ISA, "wgmma").
#pragma once

#include "async.cuh"

namespace fusedlstm::micro {

// How an operand lies in shared memory, K contiguous. plain: matrices of 8 rows by 16 bytes, the two of a k16
// side by side. swizzled: rows of 128 bytes, whose 16-byte parts are exchanged by the row, as bulk copies of
// such rows leave them if they are stored so.
enum class Layout { plain, swizzled };

template <Layout kLayout>
__host__ __device__ constexpr int offset_in(int rows, int row, int k) {
  if (kLayout == Layout::plain)
    return k / 16 * rows * 32 + row / 8 * 256 + k / 8 % 2 * 128 + row % 8 * 16 + k % 8 * 2;
  return k / 64 * rows * 128 + row * 128 + (k / 8 % 8 ^ row % 8) * 16 + k % 8 * 2;
}

// Descriptor of an operand: its address, the distance of the two matrices of a k16 where there is no swizzle,
// and the distance of the next 8 rows, in units of 16 bytes.
template <Layout kLayout>
__device__ __forceinline__ uint64_t descriptor(const void* operand) {
  constexpr bool kPlain = kLayout == Layout::plain;
  constexpr uint64_t kNextK = (kPlain ? 128 : 16) >> 4, kNextRows = (kPlain ? 256 : 1024) >> 4;
  constexpr uint64_t kSwizzle = kPlain ? 0 : 1;
  return (shared_address(operand) & 0x3ffff) >> 4 | kNextK << 16 | kNextRows << 32 | kSwizzle << 62;
}
// How far the descriptor moves to k-block `k16`.
template <Layout kLayout>
__device__ constexpr uint64_t step_to(int rows, int k16) {
  return static_cast<uint64_t>(kLayout == Layout::plain ? offset_in<kLayout>(rows, 0, 16 * k16)
                                                        : k16 / 4 * rows * 128 + k16 % 4 * 32) >>
         4;
}

__device__ __forceinline__ void wgmma_fence() {
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}
__device__ __forceinline__ void wgmma_commit() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
__device__ __forceinline__ void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
}
// Keeps the compiler from moving or copying sums that products in the background add to.
template <int kCount>
__device__ __forceinline__ void keep_in_place(float (&sums)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) asm volatile("" : "+f"(sums[i])::"memory");
}

#define SUMS_16                                                                                   \
  "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7]), \
      "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]), "+f"(d[14]), "+f"(d[15])
#define SUMS_32                                                                                       \
  SUMS_16, "+f"(d[16]), "+f"(d[17]), "+f"(d[18]), "+f"(d[19]), "+f"(d[20]), "+f"(d[21]), "+f"(d[22]), \
      "+f"(d[23]), "+f"(d[24]), "+f"(d[25]), "+f"(d[26]), "+f"(d[27]), "+f"(d[28]), "+f"(d[29]),      \
      "+f"(d[30]), "+f"(d[31])
#define NAMES_16 "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15"
#define NAMES_32 NAMES_16 ", %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"

// d = a b, or d += a b if `accumulate`; a and b are descriptors.
template <int N>
__device__ __forceinline__ void wgmma(float (&d)[N / 2], uint64_t a, uint64_t b, int accumulate) {
  static_assert(N == 32 || N == 64);
  if constexpr (N == 32)
    asm volatile(
        "{\n .reg .pred p;\n setp.ne.b32 p, %18, 0;\n"
        " wgmma.mma_async.sync.aligned.m64n32k16.f32.bf16.bf16 {" NAMES_16 "}, %16, %17, p, 1, 1, 0, 0;\n}"
        : SUMS_16
        : "l"(a), "l"(b), "r"(accumulate));
  else
    asm volatile(
        "{\n .reg .pred p;\n setp.ne.b32 p, %34, 0;\n"
        " wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {" NAMES_32 "}, %32, %33, p, 1, 1, 0, 0;\n}"
        : SUMS_32
        : "l"(a), "l"(b), "r"(accumulate));
}
// The same with a in registers.
template <int N>
__device__ __forceinline__ void wgmma(float (&d)[N / 2], const uint32_t (&a)[4], uint64_t b, int accumulate) {
  static_assert(N == 32 || N == 64);
  if constexpr (N == 32)
    asm volatile(
        "{\n .reg .pred p;\n setp.ne.b32 p, %21, 0;\n"
        " wgmma.mma_async.sync.aligned.m64n32k16.f32.bf16.bf16 {" NAMES_16
        "}, {%16, %17, %18, %19}, %20, p, 1, 1, 0;\n}"
        : SUMS_16
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(accumulate));
  else
    asm volatile(
        "{\n .reg .pred p;\n setp.ne.b32 p, %37, 0;\n"
        " wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {" NAMES_32
        "}, {%32, %33, %34, %35}, %36, p, 1, 1, 0;\n}"
        : SUMS_32
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(accumulate));
}

#undef SUMS_16
#undef SUMS_32
#undef NAMES_16
#undef NAMES_32

}  // namespace fusedlstm::micro
