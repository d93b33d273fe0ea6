// The linear layer in f32 for Hopper: y = epilogue(x * W^T + bias) with warpgroup products in TF32 and
// bulk copies.
//
// A factor is the sum of two TF32 numbers, and three products of such halves have an f32 product's
// accuracy. The weights' halves are two matrices, made when they were loaded; x comes to shared
// memory as it is, and each thread splits what it holds of it, as the first operand, in registers.
// The tensor cores round towards zero whenever they add to a sum. So they sum 32 columns at a time,
// from nothing, the products with a low half first: of twelve roundings, eight are of sums 2,000 times
// smaller. These sums are added up outside.
//
// A persistent block makes tiles of y of 128 rows and N columns. One thread of the third warpgroup
// keeps a ring of stages filled: 32 columns of x and of both halves of W. The other two warpgroups have
// 64 rows each and take turns at the tensor cores: while one's products are made, the other adds up
// its last sums and splits its next part of x. The products read 64 bytes a cycle of shared memory, and
// what comes there is 21 FLOP a byte at N = 128.
#include "common.cuh"
#if __CUDA_ARCH__ == 900
#include "warpgroup.cuh"

struct HopperF32Args {
  TensorMap x, w;    // w: columns, rows, halves
  const float* bias; // zeros behind the rows up to a multiple of 128
  float* y;
  const Batch* batch;
  int k;       // columns of x and W
  int columns; // of y before gating: everything up to its stride
  int stride;  // of y
  int activation;
};

// GATE makes a column of y of two: of W's rows, eight gates are in front of their eight values.
enum Epilogue { STORE = 0, ACCUMULATE = 1, GELU = 2, ACTIVATE = 3, GATE = 4 };

constexpr int M = 128, K = 32, ROW_BYTES = 4 * K;
// Bytes between rows of a piece of y: neither lanes that write two columns each nor lanes that read
// four meet a bank conflict.
constexpr int PIECE_ROW = 160;

template <int N> struct Shape {
  static constexpr int STAGE_BYTES = (M + 2 * N) * ROW_BYTES, STAGES = 196608 / STAGE_BYTES;
};

// 64xN += 64x8 times (Nx8)^T.
template <int N> DEVICE void warpgroup_mma_tf32(float (&d)[N / 2], const u32 (&a)[4], u64 b, int accumulate);
#define PRODUCT_TF32(N, SUMS, a, b, p)                                                                        \
  template <> DEVICE void warpgroup_mma_tf32<N>(float (&d)[N / 2], const u32 (&x)[4], u64 y, int accumulate) { \
    asm volatile(PRODUCT(N, 8, "tf32", SUMS, a, b, p, "")                                                     \
                 : SUMS_##SUMS(d) : "r"(x[0]), "r"(x[1]), "r"(x[2]), "r"(x[3]), "l"(y), "r"(accumulate));      \
  }
PRODUCT_TF32(64, 32, "{%32, %33, %34, %35}", "%36", "%37")
PRODUCT_TF32(128, 64, "{%64, %65, %66, %67}", "%68", "%69")

// Columns of x and both halves of N rows of W, by the copy engine.
DEVICE void fetch_halves(u32 to, const TensorMap* map, int column, int row, u32 full) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5}], [%2];" ::"r"(
          to),
      "l"(map), "r"(full), "r"(column), "r"(row), "r"(0) : "memory");
}

// 64 rows and 32 columns of x as operands of four products. Their order of columns is the thread's
// own eight neighbours, two for each product; W's columns were put into the same order.
struct Operands {
  u32 high[4][4], low[4][4];
};
DEVICE void load_operands(Operands& a, u32 at) {
#pragma unroll
  for (int h = 0; h < 2; ++h)
#pragma unroll
    for (int c = 0; c < 2; ++c) {
      float v[4];
      asm volatile("ld.shared.v4.f32 {%0,%1,%2,%3}, [%4];" : "=f"(v[0]), "=f"(v[1]), "=f"(v[2]), "=f"(v[3])
                   : "r"((at ^ c * 16) + h * 8 * ROW_BYTES) : "memory");
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        int kk = 2 * c + e / 2, i = e % 2 * 2 + h;
        split_tf32(v[e], a.high[kk][i], a.low[kk][i]);
      }
    }
}

// Four neighbouring sums, or four gates and their values, as the epilogue says.
template <int EPILOGUE> DEVICE float4 finish(float4 v, float4 other, int activation) {
  auto one = [&](float x, float y) {
    if (EPILOGUE == ACCUMULATE) return x + y;
    if (EPILOGUE == GELU) return gelu_erf_exact(x);
    if (EPILOGUE == ACTIVATE) return activate(activation, x);
    if (EPILOGUE == GATE) return activate(activation, x) * y;
    return x;
  };
  return make_float4(one(v.x, other.x), one(v.y, other.y), one(v.z, other.z), one(v.w, other.w));
}

DEVICE float4 plus(float4 a, float4 b) { return make_float4(a.x + b.x, a.y + b.y, a.z + b.z, a.w + b.w); }
DEVICE float4 load_piece(u32 at) {
  float4 v;
  asm volatile("ld.shared.v4.f32 {%0,%1,%2,%3}, [%4];" : "=f"(v.x), "=f"(v.y), "=f"(v.z), "=f"(v.w) : "r"(at) : "memory");
  return v;
}
// 16 rows of sums by N columns, from `row` and `n0` on, through the warp's piece of shared memory, so
// that neighbours are finished and stored together.
template <int N, int EPILOGUE>
DEVICE void store_rows(const HopperF32Args& p, const float (&d)[N / 2], u32 piece, int row, int n0, int tokens) {
  constexpr bool GATED = EPILOGUE == GATE;
  constexpr int LANES = GATED ? 4 : 8, AT_ONCE = 32 / LANES; // lanes of a row of a piece, rows at once
  int lane = lane_now(), g = lane / 4, t = lane % 4;
  // The lane's four of a piece's sums, and of y's columns.
  int mine = GATED ? lane % 4 / 2 * 16 + lane % 2 * 4 : lane % 8 * 4, r = lane / LANES;
  int column = (GATED ? n0 / 2 : n0) + lane % LANES * 4, end = GATED ? p.columns / 2 : p.columns;
  float* to[16 / AT_ONCE];
#pragma unroll
  for (int i = 0; i < 16 / AT_ONCE; ++i) to[i] = p.y + (u64)(row + r + i * AT_ONCE) * p.stride + column;
#pragma unroll
  for (int at = 0; at < N; at += 32) {
    int step = GATED ? at / 2 : at;
    bool inside = column + step < end;
    float4 bias = __ldg((const float4*)(p.bias + n0 + at + mine)), other = make_float4(0.f, 0.f, 0.f, 0.f);
    float4 held[EPILOGUE == ACCUMULATE ? 4 : 1];
    if (EPILOGUE == ACCUMULATE) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        held[i] = other;
        if (inside && row + r + i * AT_ONCE < tokens) held[i] = *(const float4*)(to[i] + step);
      }
    }
    if (GATED) other = __ldg((const float4*)(p.bias + n0 + at + mine + 8));
    __syncwarp(); // the last piece has been read
#pragma unroll
    for (int j = 0; j < 4; ++j)
#pragma unroll
      for (int h = 0; h < 2; ++h)
        asm volatile("st.shared.v2.f32 [%0], {%1, %2};" ::"r"(piece + (g + 8 * h) * PIECE_ROW + j * 32 + t * 8),
                     "f"(d[at / 2 + 4 * j + 2 * h]), "f"(d[at / 2 + 4 * j + 2 * h + 1]) : "memory");
    __syncwarp();
#pragma unroll
    for (int i = 0; i < 16 / AT_ONCE; ++i) {
      u32 from = piece + (r + i * AT_ONCE) * PIECE_ROW + mine * 4;
      float4 v = plus(load_piece(from), bias);
      float4 second = GATED ? plus(load_piece(from + 32), other) : held[EPILOGUE == ACCUMULATE ? i : 0];
      v = finish<EPILOGUE>(v, second, p.activation);
      if (inside && row + r + i * AT_ONCE < tokens) *(float4*)(to[i] + step) = v;
    }
  }
}

template <int N, int EPILOGUE> DEVICE void hopper_linear(const HopperF32Args& p) {
  constexpr int STAGES = Shape<N>::STAGES, STAGE_BYTES = Shape<N>::STAGE_BYTES;
  extern __shared__ __align__(1024) unsigned char memory[];
  __shared__ __align__(8) u64 barriers[2 * STAGES];
  int thread = threadIdx.x, warp = thread / 32, lane = thread % 32;
  u32 ring = shared_address(memory), full = shared_address(barriers), empty = full + 8 * STAGES;
  if (thread == 0) {
    for (int i = 0; i < STAGES; ++i) {
      barrier_init(full + 8 * i, 1);
      barrier_init(empty + 8 * i, 8);
    }
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  }
  __syncthreads();
  release_next();
  int tokens = p.batch->tokens, steps = (p.k + K - 1) / K, across = (p.columns + N - 1) / N;
  int tiles = (tokens + M - 1) / M * across;
  // A stage has its slot of the ring.
  auto advance = [](u32& slot, u32& phase) {
    if (++slot == STAGES) slot = 0, phase ^= 1;
  };

  if (warp >= 8) {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 24;");
    if (warp == 8 && lane == 0) {
      u32 slot = 0, phase = 1;
      auto fetch_weights = [&](int tile, int step, u32 slot) {
        expect_bytes(full + 8 * slot, STAGE_BYTES);
        fetch_halves(ring + slot * STAGE_BYTES + M * ROW_BYTES, &p.w, step * K, tile % across * N, full + 8 * slot);
      };
      // No other kernel writes the weights: the first of them do not wait. The other threads touch
      // nothing of other kernels' before they have tiles of x.
      int ahead = blockIdx.x < tiles ? min(STAGES, steps) : 0;
      for (int step = 0; step < ahead; ++step) fetch_weights(blockIdx.x, step, step);
      wait_for_previous();
      for (int tile = blockIdx.x; tile < tiles; tile += gridDim.x)
        for (int step = 0; step < steps; ++step) {
          if (ahead > 0) --ahead;
          else {
            barrier_wait(empty + 8 * slot, phase);
            fetch_weights(tile, step, slot);
          }
          fetch_tile(ring + slot * STAGE_BYTES, &p.x, step * K, tile / across * M, full + 8 * slot);
          advance(slot, phase);
        }
    }
  } else {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 240;");
    int group = warp / 4, g = lane / 4, t = lane % 4;
    u32 piece = ring + STAGES * STAGE_BYTES + warp * 16 * PIECE_ROW;
    u32 mine = (warp * 16 + g) * ROW_BYTES + ((2 * t ^ g) * 16); // the lane's eight columns, in a stage
    auto take_turn = [&] { asm volatile("bar.sync %0, 256;" ::"r"(1 + group) : "memory"); };
    auto give_turn = [&] { asm volatile("bar.arrive %0, 256;" ::"r"(2 - group) : "memory"); };
    // The first turn. Not by a branch: everything behind it would be taken for what threads may differ
    // in, and kept out of the uniform registers.
    asm volatile("{ .reg .pred p; setp.eq.s32 p, %0, 1; @p bar.arrive 1, 256; }" ::"r"(group) : "memory");
    u32 slot = 0, phase = 0;
    for (int tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
      float d[N / 2] = {}, sums[N / 2];
#pragma unroll 1
      for (int step = 0; step < steps; ++step) {
        u32 at = ring + slot * STAGE_BYTES;
        u64 high = descriptor_swizzled(at + M * ROW_BYTES), low = descriptor_swizzled(at + (M + N) * ROW_BYTES);
        Operands a;
        barrier_wait(full + 8 * slot, phase);
        load_operands(a, at + mine);
        take_turn();
        warpgroup_arrive();
#pragma unroll
        for (int kk = 0; kk < 4; ++kk) {
          warpgroup_mma_tf32<N>(sums, a.low[kk], high + 2 * kk, kk > 0);
          warpgroup_mma_tf32<N>(sums, a.high[kk], low + 2 * kk, 1);
        }
#pragma unroll
        for (int kk = 0; kk < 4; ++kk) warpgroup_mma_tf32<N>(sums, a.high[kk], high + 2 * kk, 1);
        warpgroup_commit();
        give_turn();
        warpgroup_wait<0>();
        if (lane == 0) barrier_arrive(empty + 8 * slot);
        advance(slot, phase);
#pragma unroll
        for (int i = 0; i < N / 2; ++i) d[i] += sums[i];
      }
      store_rows<N, EPILOGUE>(p, d, piece, tile / across * M + warp * 16, tile % across * N, tokens);
    }
  }
}

#define ENTRY(N, EPILOGUE, name)                                                               \
  extern "C" __global__ void __launch_bounds__(384, 1)                                         \
      hopper_f32_##name##_##N(const __grid_constant__ HopperF32Args p) {                       \
    hopper_linear<N, EPILOGUE>(p);                                                             \
  }
#define ENTRIES(N)                    \
  ENTRY(N, STORE, store)              \
  ENTRY(N, ACCUMULATE, accumulate)    \
  ENTRY(N, GELU, gelu)                \
  ENTRY(N, ACTIVATE, activate)        \
  ENTRY(N, GATE, gate)
ENTRIES(64)
ENTRIES(128)
#endif
