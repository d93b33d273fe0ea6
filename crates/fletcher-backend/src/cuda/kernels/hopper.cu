// The linear layer for Hopper: y = epilogue(x * W^T + bias) with warpgroup products and bulk copies.
//
// A persistent block makes tiles of 128 rows and N columns of y. One thread of the third warpgroup
// keeps a ring of stages filled: 128 x 64 of x and N x 64 of W each, swizzled by the copy engine. The
// other two either share a tile, 64 rows each, which suits batches of a tile or less for every
// multiprocessor; or they take turns at whole tiles, so that one's epilogue runs beside the other's
// products: with as few as six steps to a tile, the epilogue is half of a tile's time. L2 traffic is
// 85 FLOP a byte at N = 256, 64 at 128.
#include "common.cuh"
#if __CUDA_ARCH__ == 900
#include "warpgroup.cuh"

struct HopperLinearArgs {
  TensorMap x, w;
  const float* bias; // zeros behind the rows up to a multiple of 768
  void* y;
  const Batch* batch;
  int rows;    // of W
  int k;       // columns of x and W
  int columns; // of y: everything up to its stride
  int stride;  // of y
};

enum Epilogue { STORE = 0, ACCUMULATE = 1, GELU = 2 };

constexpr int M = 128, K = 64, STAGE_ROW = 144;

template <int N> struct Shape {
  static constexpr int STAGE_BYTES = (M + N) * K * 2;
  static constexpr int STAGES = N == 256 ? 4 : N == 192 ? 5 : N == 128 ? 6 : 8;
};

template <class T, int N, int EPILOGUE, bool TURNS> DEVICE void hopper_linear(const HopperLinearArgs& p) {
  constexpr int STAGES = Shape<N>::STAGES, STAGE_BYTES = Shape<N>::STAGE_BYTES;
  extern __shared__ __align__(1024) unsigned char memory[];
  __shared__ __align__(8) u64 barriers[2 * STAGES];
  int thread = threadIdx.x, warp = thread / 32, lane = thread % 32;
  u32 ring = shared_address(memory), full = shared_address(barriers), empty = full + 8 * STAGES;
  if (thread == 0) {
    for (int i = 0; i < STAGES; ++i) {
      barrier_init(full + 8 * i, 1);
      barrier_init(empty + 8 * i, TURNS ? 4 : 8);
    }
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  }
  __syncthreads();
  release_next();
  int tokens = p.batch->tokens, steps = (p.k + K - 1) / K, across = (p.columns + N - 1) / N;
  int tiles = (tokens + M - 1) / M * across;
  // Steps are counted over all tiles of the block; each has its slot of the ring.
  auto slot_of = [](u32 count) { return count % STAGES; };
  auto phase_of = [](u32 count) { return count / STAGES & 1; };

  if (warp >= 8) {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 24;");
    if (warp > 8 || lane > 0) return;
    u32 count = 0;
    auto fetch_weights = [&](int tile, int step, u32 slot) {
      expect_bytes(full + 8 * slot, STAGE_BYTES);
      fetch_tile(ring + slot * STAGE_BYTES + M * K * 2, &p.w, step * K, tile % across * N, full + 8 * slot);
    };
    // No other kernel writes the weights: the first of them do not wait. The other threads touch
    // nothing of other kernels' before they have tiles of x.
    int ahead = blockIdx.x < tiles ? min(STAGES, steps) : 0;
    for (int step = 0; step < ahead; ++step) fetch_weights(blockIdx.x, step, step);
    wait_for_previous();
    for (int tile = blockIdx.x; tile < tiles; tile += gridDim.x)
      for (int step = 0; step < steps; ++step, ++count) {
        u32 slot = slot_of(count);
        if (count >= ahead) {
          barrier_wait(empty + 8 * slot, phase_of(count) ^ 1);
          fetch_weights(tile, step, slot);
        }
        fetch_tile(ring + slot * STAGE_BYTES, &p.x, step * K, tile / across * M, full + 8 * slot);
      }
  } else {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 240;");
    int group = warp / 4, t = lane % 4;
    u32 stage = ring + STAGES * STAGE_BYTES + warp * 16 * STAGE_ROW;
    constexpr int PARTS = TURNS ? 2 : 1; // of 64 rows each
    int stride = TURNS ? 2 * gridDim.x : gridDim.x;
    u32 count = TURNS ? group * steps : 0;
    // A group begins a tile's products when the other has begun all of its own: a slot's barrier
    // tells only its last two phases apart.
    auto take_turn = [&] {
      if (TURNS) asm volatile("bar.sync %0, 256;" ::"r"(1 + group) : "memory");
    };
    auto give_turn = [&] {
      if (TURNS) asm volatile("bar.arrive %0, 256;" ::"r"(2 - group) : "memory");
    };
    if (group == 1) give_turn();
    for (int tile = blockIdx.x + (TURNS ? group * gridDim.x : 0); tile < tiles; tile += stride) {
      // Sums begin with the bias, so that nothing of the last tile's stays alive; those that GELU
      // takes begin with zeros, because its polynomials leave no registers otherwise.
      float d[PARTS][N / 2];
      int n0 = tile % across * N;
#pragma unroll
      for (int j = 0; j < N / 8; ++j) {
        float2 bias = make_float2(0.f, 0.f);
        if (EPILOGUE != GELU) bias = __ldg((const float2*)(p.bias + n0 + j * 8 + 2 * t));
#pragma unroll
        for (int part = 0; part < PARTS; ++part) {
          d[part][4 * j] = d[part][4 * j + 2] = bias.x;
          d[part][4 * j + 1] = d[part][4 * j + 3] = bias.y;
        }
      }
      take_turn();
      for (int step = 0; step < steps; ++step, ++count) {
        u32 slot = slot_of(count), at = ring + slot * STAGE_BYTES;
        barrier_wait(full + 8 * slot, phase_of(count));
        u64 a = descriptor_swizzled(at + (TURNS ? 0 : group * 64 * K * 2)), b = descriptor_swizzled(at + M * K * 2);
        warpgroup_arrive();
#pragma unroll
        for (int kk = 0; kk < 4; ++kk)
#pragma unroll
          for (int part = 0; part < PARTS; ++part)
            warpgroup_mma_shared<T, N>(d[part], a + part * (64 * K * 2 / 16) + 2 * kk, b + 2 * kk, 1);
        warpgroup_commit();
        warpgroup_wait<1>();
        if (step > 0 && lane == 0) barrier_arrive(empty + 8 * slot_of(count - 1));
      }
      give_turn();
      warpgroup_wait<0>();
      if (lane == 0) barrier_arrive(empty + 8 * slot_of(count - 1));
      if (TURNS) count += steps; // the other group's tile

#pragma unroll
      for (int part = 0; part < PARTS; ++part) {
        int row = tile / across * M + (TURNS ? part : group) * 64 + warp % 4 * 16;
#pragma unroll
        for (int piece = 0; piece < N / 64; ++piece) {
          if (EPILOGUE == ACCUMULATE) { // what the rows hold takes the way of the sums, backwards
#pragma unroll
            for (int i = 0; i < 4; ++i) {
              int r = i * 4 + lane / 8, column = n0 + piece * 64 + lane % 8 * 8;
              uint4 v = make_uint4(0, 0, 0, 0);
              if (row + r < tokens && column < p.columns)
                v = *(const uint4*)((const T*)p.y + (u64)(row + r) * p.stride + column);
              asm volatile("st.shared.v4.b32 [%0], {%1,%2,%3,%4};" ::"r"(stage + r * STAGE_ROW + lane % 8 * 16), "r"(v.x),
                           "r"(v.y), "r"(v.z), "r"(v.w) : "memory");
            }
            __syncwarp();
          }
#pragma unroll
          for (int pair = 0; pair < 4; ++pair) {
            u32 v[4], held[4] = {};
            u32 to = stage + (lane % 16) * STAGE_ROW + (pair * 2 + lane / 16) * 16;
            if (EPILOGUE == ACCUMULATE) ldmatrix(held, to);
#pragma unroll
            for (int j = 0; j < 2; ++j) {
              int index = piece * 8 + pair * 2 + j;
              float2 bias = make_float2(0.f, 0.f);
              if (EPILOGUE == GELU) bias = __ldg((const float2*)(p.bias + n0 + index * 8 + 2 * t));
#pragma unroll
              for (int h = 0; h < 2; ++h) {
                float x = d[part][4 * index + 2 * h], y = d[part][4 * index + 2 * h + 1];
                if (EPILOGUE == GELU) {
                  x = gelu(x + bias.x);
                  y = gelu(y + bias.y);
                } else if (EPILOGUE == ACCUMULATE) {
                  x += Format<T>::low(held[2 * j + h]);
                  y += Format<T>::high(held[2 * j + h]);
                }
                v[2 * j + h] = Format<T>::pack(x, y);
              }
            }
            asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1,%2,%3,%4};" ::"r"(to), "r"(v[0]), "r"(v[1]),
                         "r"(v[2]), "r"(v[3]) : "memory");
          }
          __syncwarp();
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            int r = i * 4 + lane / 8, column = n0 + piece * 64 + lane % 8 * 8;
            uint4 v;
            asm volatile("ld.shared.v4.b32 {%0,%1,%2,%3}, [%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                         : "r"(stage + r * STAGE_ROW + lane % 8 * 16) : "memory");
            if (row + r < tokens && column < p.columns) *(uint4*)((T*)p.y + (u64)(row + r) * p.stride + column) = v;
          }
          __syncwarp();
        }
      }
    }
  }
}

#define ENTRY(T, name, N, EPILOGUE, epilogue, TURNS, way)                                           \
  extern "C" __global__ void __launch_bounds__(384, 1)                                              \
      hopper_##epilogue##_##way##N##_##name(const __grid_constant__ HopperLinearArgs p) {           \
    hopper_linear<T, N, EPILOGUE, TURNS>(p);                                                        \
  }
#define ENTRIES(T, name, N, TURNS, way)                  \
  ENTRY(T, name, N, STORE, store, TURNS, way)            \
  ENTRY(T, name, N, ACCUMULATE, accumulate, TURNS, way)  \
  ENTRY(T, name, N, GELU, gelu, TURNS, way)
#define FORMAT(T, name)                \
  ENTRIES(T, name, 64, false, shared)  \
  ENTRIES(T, name, 128, false, shared) \
  ENTRIES(T, name, 192, false, shared) \
  ENTRIES(T, name, 256, false, shared) \
  ENTRIES(T, name, 128, true, turns)   \
  ENTRIES(T, name, 192, true, turns)
FORMAT(Half, f16)
FORMAT(Bf16, bf16)
#endif
