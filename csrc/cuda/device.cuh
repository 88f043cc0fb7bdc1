// All that the kernels take from the hardware, one small function each, for nvcc. A build that runs the
// kernels on a host names the header with the host twins of these functions.
#pragma once

#ifndef __CUDACC__
#ifndef FUSEDLSTM_EMULATED_DEVICE
#error \
    "CUDA kernels need nvcc, or FUSEDLSTM_EMULATED_DEVICE: the header with host twins of this one's functions"
#endif
#include FUSEDLSTM_EMULATED_DEVICE
#else

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cassert>
#include <cstdint>

namespace fusedlstm::cuda {

using Half = __half;
using BFloat16 = __nv_bfloat16;

// Grids and blocks are one-dimensional.
__device__ __forceinline__ unsigned thread_index() {
  return threadIdx.x;
}
__device__ __forceinline__ unsigned block_index() {
  return blockIdx.x;
}
__device__ __forceinline__ unsigned block_size() {
  return blockDim.x;
}
__device__ __forceinline__ unsigned grid_size() {
  return gridDim.x;
}

// The block's dynamic shared memory, as many bytes as the launch gave it.
template <class Storage>
__device__ __forceinline__ Storage& shared_memory() {
  static_assert(alignof(Storage) <= 16);
  extern __shared__ __align__(16) unsigned char fusedlstm_shared_memory[];
  return *reinterpret_cast<Storage*>(fusedlstm_shared_memory);
}

__device__ __forceinline__ void block_barrier() {
  __syncthreads();
}
__device__ __forceinline__ void warp_barrier() {
  __syncwarp();
}

// The value of another lane, of `lane` or of the own one xor `mask`, both below 32; every lane takes part.
template <class T>
__device__ __forceinline__ T shuffle(T value, int lane) {
  return __shfl_sync(0xffffffffu, value, lane);
}
template <class T>
__device__ __forceinline__ T shuffle_xor(T value, int mask) {
  return __shfl_xor_sync(0xffffffffu, value, mask);
}

// d += a b on the tensor cores, PTX ISA "mma": a is 16 x K in row order, b is K x 8 in column order, K = 16
// for 16-bit types and 8 for TF32.
__device__ __forceinline__ void mma_half(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
__device__ __forceinline__ void mma_bfloat16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
__device__ __forceinline__ void mma_tf32(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// To the 10 bits of a mantissa that TF32 has, to nearest: the tensor cores cut off the others.
__device__ __forceinline__ float round_to_tf32(float value) {
  uint32_t out;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(out) : "f"(value));
  return __uint_as_float(out);
}

// Two floats, each to the nearest value of a 16-bit type. Any NaN becomes 0x7fff (PTX ISA "cvt").
__device__ __forceinline__ uint32_t pack_half(float low, float high) {
  uint32_t out;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(out) : "f"(high), "f"(low));
  return out;
}
__device__ __forceinline__ uint32_t pack_bfloat16(float low, float high) {
  uint32_t out;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(out) : "f"(high), "f"(low));
  return out;
}
__device__ __forceinline__ uint32_t bits_of(float value) {
  return __float_as_uint(value);
}

// 2^x and 1/x by the hardware's own instructions, each to 2 units in the last place (PTX ISA "ex2", "rcp").
__device__ __forceinline__ float exp2_fast(float x) {
  float out;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(out) : "f"(x));
  return out;
}
__device__ __forceinline__ float reciprocal_fast(float x) {
  float out;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(out) : "f"(x));
  return out;
}

// Ends the launch with an error and a message.
__device__ __forceinline__ void trap_on_timeout() {
  __assert_fail("fusedlstm: timeout: a block has polled 2^26 times for data of another block", __FILE__,
                __LINE__, __func__);
}

// Accesses to global memory that blocks of one grid share. Polling takes relaxed loads, and one with acquire
// after the last: a load with acquire drops the L1 cache. A 16-byte access is not atomic as a whole.
__device__ __forceinline__ uint32_t load_relaxed(const uint32_t* address) {
  uint32_t value;
  asm volatile("ld.relaxed.gpu.global.u32 %0, [%1];" : "=r"(value) : "l"(address) : "memory");
  return value;
}
__device__ __forceinline__ uint4 load_relaxed(const uint4* address) {
  uint4 value;
  asm volatile("ld.relaxed.gpu.global.v4.u32 {%0,%1,%2,%3}, [%4];"
               : "=r"(value.x), "=r"(value.y), "=r"(value.z), "=r"(value.w)
               : "l"(address)
               : "memory");
  return value;
}
// The same where `condition` holds, else `value` stays: without a branch, whose two sides would need
// registers.
__device__ __forceinline__ void load_relaxed_if(bool condition, const uint4* address, uint4& value) {
  asm volatile("{ .reg .pred p; setp.ne.s32 p, %5, 0; @p ld.relaxed.gpu.global.v4.u32 {%0,%1,%2,%3}, [%4]; }"
               : "+r"(value.x), "+r"(value.y), "+r"(value.z), "+r"(value.w)
               : "l"(address), "r"(static_cast<int>(condition))
               : "memory");
}
__device__ __forceinline__ uint32_t load_acquire(const uint32_t* address) {
  uint32_t value;
  asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(value) : "l"(address) : "memory");
  return value;
}
__device__ __forceinline__ void store_relaxed(uint32_t* address, uint32_t value) {
  asm volatile("st.relaxed.gpu.global.u32 [%0], %1;" ::"l"(address), "r"(value) : "memory");
}
__device__ __forceinline__ void store_relaxed(uint4* address, uint4 value) {
  asm volatile("st.relaxed.gpu.global.v4.u32 [%0], {%1,%2,%3,%4};" ::"l"(address), "r"(value.x), "r"(value.y),
               "r"(value.z), "r"(value.w)
               : "memory");
}
__device__ __forceinline__ void store_release(uint32_t* address, uint32_t value) {
  asm volatile("st.release.gpu.global.u32 [%0], %1;" ::"l"(address), "r"(value) : "memory");
}
// Orders what this thread has seen before what it stores later.
__device__ __forceinline__ void fence() {
  asm volatile("fence.acq_rel.gpu;" ::: "memory");
}

// Copies of 16 bytes from global to shared memory in the background. A wait returns when at most `Pending` of
// the groups this thread committed are on their way; other threads need a barrier after it.
__device__ __forceinline__ void copy_async(void* shared, const void* global) {
  const auto address = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(address), "l"(global) : "memory");
}
__device__ __forceinline__ void copy_async_commit() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}
template <int Pending>
__device__ __forceinline__ void copy_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(Pending) : "memory");
}

}  // namespace fusedlstm::cuda

#endif
