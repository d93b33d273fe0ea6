// Tensor-core products of a warpgroup (Hopper, sm_90a): d += a * b^T with a in registers, b in shared
// memory and d in registers, asynchronously. The register layouts are those of mma.sync, so that a
// product's sums become the next product's operand without leaving the thread.
#pragma once
#include "common.cuh"

// The thread's lane, asked for anew each time: what follows from it is cheaper to compute again than
// to keep beside the sums.
DEVICE u32 lane_now() {
  u32 lane;
  asm volatile("mov.u32 %0, %%laneid;" : "=r"(lane));
  return lane;
}

DEVICE void warpgroup_arrive() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
DEVICE void warpgroup_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int N> DEVICE void warpgroup_wait() { asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(N) : "memory"); }

// Describes rows of 16 bytes, eight rows to a contiguous core matrix: `leading` bytes lead to the
// next 16 bytes of each row, 128 bytes to the next eight rows.
DEVICE u64 descriptor(u32 address, u32 leading) {
  return (u64)((address & 0x3ffff) >> 4) | (u64)(leading >> 4) << 16 | (u64)(128 >> 4) << 32;
}

// Describes rows of 128 bytes as the copy engine's 128-byte swizzle lays them, 1024-byte aligned.
DEVICE u64 descriptor_swizzled(u32 address) {
  return (u64)((address & 0x3ffff) >> 4) | (u64)1 << 16 | (u64)(1024 >> 4) << 32 | (u64)1 << 62;
}

// What the products' instructions say of so many sums a thread: their names, and the sums.
#define NAMES_16 \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15"
#define NAMES_32 NAMES_16 \
  ", %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define NAMES_64 NAMES_32 \
  ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47" \
  ", %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define NAMES_96 NAMES_64 \
  ", %64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79" \
  ", %80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95"
#define NAMES_128 NAMES_96 \
  ", %96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111" \
  ", %112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127"
#define SUMS_8(d, i) \
  "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), "+f"(d[i + 6]), "+f"(d[i + 7])
#define SUMS_16_AT(d, i) SUMS_8(d, i), SUMS_8(d, i + 8)
#define SUMS_32_AT(d, i) SUMS_16_AT(d, i), SUMS_16_AT(d, i + 16)
#define SUMS_16(d) SUMS_16_AT(d, 0)
#define SUMS_32(d) SUMS_32_AT(d, 0)
#define SUMS_64(d) SUMS_32(d), SUMS_32_AT(d, 32)
#define SUMS_96(d) SUMS_64(d), SUMS_32_AT(d, 64)
#define SUMS_128(d) SUMS_96(d), SUMS_32_AT(d, 96)
// The instruction: `a`, `b` and `p` are the names of its operands and of whether it adds to the sums,
// which follow those of the sums.
#define PRODUCT(N, K, FORMAT, SUMS, a, b, p, LAYOUT) \
  "{ .reg .pred p; setp.ne.b32 p, " p ", 0; wgmma.mma_async.sync.aligned.m64n" #N "k" #K ".f32." FORMAT "." \
  FORMAT " {" NAMES_##SUMS "}, " a ", " b ", p, 1, 1" LAYOUT "; }"
// With the first operand in registers, and with both in shared memory.
#define FROM_REGISTERS(NAME, T, FORMAT, N, SUMS, a, b, p, LAYOUT) \
  template <> DEVICE void NAME<T, N>(float (&d)[N / 2], const u32 (&x)[4], u64 y, int accumulate) { \
    asm volatile(PRODUCT(N, 16, FORMAT, SUMS, a, b, p, LAYOUT) \
                 : SUMS_##SUMS(d) : "r"(x[0]), "r"(x[1]), "r"(x[2]), "r"(x[3]), "l"(y), "r"(accumulate)); \
  }
#define FROM_SHARED(T, FORMAT, N, SUMS, a, b, p) \
  template <> DEVICE void warpgroup_mma_shared<T, N>(float (&d)[N / 2], u64 x, u64 y, int accumulate) { \
    asm volatile(PRODUCT(N, 16, FORMAT, SUMS, a, b, p, ", 0, 0") : SUMS_##SUMS(d) : "l"(x), "l"(y), "r"(accumulate)); \
  }

// 64xN += 64x16 times (Nx16)^T.
template <class T, int N> DEVICE void warpgroup_mma(float (&d)[N / 2], const u32 (&a)[4], u64 b, int accumulate);
// The same with both operands in shared memory.
template <class T, int N> DEVICE void warpgroup_mma_shared(float (&d)[N / 2], u64 a, u64 b, int accumulate);
// With a swizzled second operand that lies across: rows of 128 bytes, of which N elements count, for
// each of the 16 that are summed over.
template <class T, int N> DEVICE void warpgroup_mma_across(float (&d)[N / 2], const u32 (&a)[4], u64 b, int accumulate);
#define PRODUCTS(T, name) \
  FROM_REGISTERS(warpgroup_mma, T, name, 64, 32, "{%32, %33, %34, %35}", "%36", "%37", ", 0") \
  FROM_REGISTERS(warpgroup_mma, T, name, 128, 64, "{%64, %65, %66, %67}", "%68", "%69", ", 0") \
  FROM_REGISTERS(warpgroup_mma, T, name, 192, 96, "{%96, %97, %98, %99}", "%100", "%101", ", 0") \
  FROM_REGISTERS(warpgroup_mma_across, T, name, 32, 16, "{%16, %17, %18, %19}", "%20", "%21", ", 1") \
  FROM_REGISTERS(warpgroup_mma_across, T, name, 64, 32, "{%32, %33, %34, %35}", "%36", "%37", ", 1") \
  FROM_SHARED(T, name, 64, 32, "%32", "%33", "%34") \
  FROM_SHARED(T, name, 128, 64, "%64", "%65", "%66") \
  FROM_SHARED(T, name, 192, 96, "%96", "%97", "%98") \
  FROM_SHARED(T, name, 256, 128, "%128", "%129", "%130")
PRODUCTS(Half, "f16")
PRODUCTS(Bf16, "bf16")

// Rotates two neighbouring columns against those half a head behind them, by their (cos, sin).
DEVICE void rotate_pairs(float* d, float* behind, float4 by) {
  float cosine[2] = {by.x, by.z}, sine[2] = {by.y, by.w};
#pragma unroll
  for (int e = 0; e < 2; ++e) {
    float &a = d[e], &b = behind[e], low = a;
    a = low * cosine[e] - b * sine[e];
    b = b * cosine[e] + low * sine[e];
  }
}

// Of a cluster of blocks: the same place in another's shared memory, a barrier there, the wait at one
// that others arrive at, and a barrier of all threads.
DEVICE u32 of_block(u32 address, u32 rank) {
  u32 there;
  asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(address), "r"(rank));
  return there;
}
DEVICE void barrier_arrive_there(u32 there) {
  asm volatile("mbarrier.arrive.release.cluster.shared::cluster.b64 _, [%0];" ::"r"(there) : "memory");
}
DEVICE void barrier_wait_for_others(u32 at, u32 parity) {
  asm volatile(
      "{ .reg .pred p;\n"
      "AGAIN: mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 p, [%0], %1;\n"
      "@p bra DONE;\n bra AGAIN;\n DONE: }" ::"r"(at), "r"(parity) : "memory");
}
DEVICE void cluster_sync() {
  asm volatile("barrier.cluster.arrive.release.aligned; barrier.cluster.wait.acquire.aligned;" ::: "memory");
}

// Tiles of a matrix by the copy engine: 64 columns of the tensor map's rows, swizzled, from a column
// and a row on. The barrier counts the bytes.
struct alignas(64) TensorMap {
  u64 words[16];
};
DEVICE void fetch_tile(u32 to, const TensorMap* map, int column, int row, u32 full) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4}], [%2];" ::"r"(
          to),
      "l"(map), "r"(full), "r"(column), "r"(row) : "memory");
}
DEVICE void expect_bytes(u32 full, u32 bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(full), "r"(bytes) : "memory");
}
