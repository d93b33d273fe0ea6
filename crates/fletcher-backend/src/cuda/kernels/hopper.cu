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
  const float *scale, *shift; // of the norm; the shift may be null
  void* normed;
  int rows;    // of W
  int k;       // columns of x and W
  int columns; // of y before gating: everything up to its stride
  int stride;  // of y
  float eps;
  Logistic gate;
  const float2* cos_sin; // by place and frequency
  int rotated;           // columns of y in front: those of queries and keys
};

// NORM is y = norm(x * W^T + bias + y), for as many columns as `TOGETHER` tiles have: that many blocks,
// a cluster, make one row of tiles, and tell each other their rows' means and squares; APART leaves
// the sums in y, and what the norm makes of them elsewhere. GATE makes a column of y of two: of W's
// rows, eight gates are in front of their eight values. ROTATE rotates the first columns by their rows'
// places, heads of 64.
enum Epilogue { STORE = 0, ACCUMULATE = 1, GELU = 2, NORM = 3, GATE = 4, ROTATE = 5, APART = 6 };
template <int EPILOGUE> constexpr bool NORMS = EPILOGUE == NORM || EPILOGUE == APART;

constexpr int TOGETHER = 6;

constexpr int M = 128, K = 64, STAGE_ROW = 144;

template <int N> struct Shape {
  static constexpr int STAGE_BYTES = (M + N) * K * 2;
  static constexpr int STAGES = N == 256 ? 4 : N == 192 ? 5 : N == 128 ? 6 : 8;
};

// 16 rows of y as they are read; then d += those, by way of shared memory.
template <class T, int N>
DEVICE void read_rows(uint4 (&held)[N / 16], const T* y, int row, int tokens, int stride, int column) {
  int lane = threadIdx.x % 32;
#pragma unroll
  for (int i = 0; i < N / 16; ++i) {
    int r = row + i % 4 * 4 + lane / 8;
    held[i] = make_uint4(0, 0, 0, 0);
    if (r < tokens) held[i] = *(const uint4*)(y + (u64)r * stride + column + i / 4 * 64 + lane % 8 * 8);
  }
}
template <class T, int N> DEVICE void add_rows(float (&d)[N / 2], const uint4 (&held)[N / 16], u32 stage) {
  int lane = threadIdx.x % 32;
#pragma unroll
  for (int piece = 0; piece < N / 64; ++piece) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      uint4 v = held[4 * piece + i];
      asm volatile("st.shared.v4.b32 [%0], {%1,%2,%3,%4};" ::"r"(stage + (i * 4 + lane / 8) * STAGE_ROW + lane % 8 * 16),
                   "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w) : "memory");
    }
    __syncwarp();
#pragma unroll
    for (int pair = 0; pair < 4; ++pair) {
      u32 w[4];
      ldmatrix(w, stage + (lane % 16) * STAGE_ROW + (pair * 2 + lane / 16) * 16);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        d[piece * 32 + pair * 8 + 2 * i] += Format<T>::low(w[i]);
        d[piece * 32 + pair * 8 + 2 * i + 1] += Format<T>::high(w[i]);
      }
    }
    __syncwarp();
  }
}

// Normalises rows of which each block of the cluster has N columns.
template <int N>
DEVICE void normalise(float (&d)[N / 2], float2 (&told)[TOGETHER][M], u32 all_told, u32 parity, int row, const float* scale,
                      const float* shift, float eps) {
  int lane = threadIdx.x % 32, t = lane % 4;
  u32 rank = blockIdx.x % TOGETHER;
  float mean[2], squares[2] = {};
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    float chains[4] = {};
#pragma unroll
    for (int j = 0; j < N / 8; ++j) {
      chains[j % 2] += d[4 * j + 2 * h];
      chains[2 + j % 2] += d[4 * j + 2 * h + 1];
    }
    mean[h] = quad_sum((chains[0] + chains[1]) + (chains[2] + chains[3])) * (1.f / N);
    float again[4] = {};
#pragma unroll
    for (int j = 0; j < N / 8; ++j)
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        float apart = d[4 * j + 2 * h + e] - mean[h];
        again[2 * e + j % 2] += apart * apart;
      }
    squares[h] = quad_sum((again[0] + again[1]) + (again[2] + again[3]));
  }
  // The four lanes that share the rows tell two blocks each, the last two of them nobody twice.
  for (u32 to = t; to < TOGETHER; to += 4) {
    u32 there = of_block(shared_address(&told[rank][row]), to);
#pragma unroll
    for (int h = 0; h < 2; ++h)
      asm volatile("st.shared::cluster.v2.f32 [%0], {%1, %2};" ::"r"(there + 64 * h), "f"(mean[h]), "f"(squares[h]) : "memory");
  }
  __syncwarp();
  if (lane < TOGETHER) barrier_arrive_there(of_block(all_told, lane));
  float2 by[N / 8], plus[N / 8]; // asked for before the wait
#pragma unroll
  for (int j = 0; j < N / 8; ++j) {
    by[j] = __ldg((const float2*)(scale + j * 8 + 2 * t));
    plus[j] = shift ? __ldg((const float2*)(shift + j * 8 + 2 * t)) : make_float2(0.f, 0.f);
  }
  barrier_wait_for_others(all_told, parity);
  float factor[2];
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    float2 of[TOGETHER];
    float sum = 0.f, all = 0.f;
#pragma unroll
    for (int i = 0; i < TOGETHER; ++i) {
      asm volatile("ld.shared.v2.f32 {%0, %1}, [%2];" : "=f"(of[i].x), "=f"(of[i].y)
                   : "r"(shared_address(&told[i][row + 8 * h])) : "memory");
      sum += of[i].x;
    }
    mean[h] = sum * (1.f / TOGETHER);
#pragma unroll
    for (int i = 0; i < TOGETHER; ++i) {
      float apart = of[i].x - mean[h];
      all += of[i].y + N * apart * apart;
    }
    factor[h] = rsqrtf(all * (1.f / (TOGETHER * N)) + eps);
    mean[h] *= -factor[h];
  }
#pragma unroll
  for (int j = 0; j < N / 8; ++j) {
    float2 s = by[j], b = plus[j];
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      d[4 * j + 2 * h] = fmaf(fmaf(d[4 * j + 2 * h], factor[h], mean[h]), s.x, b.x);
      d[4 * j + 2 * h + 1] = fmaf(fmaf(d[4 * j + 2 * h + 1], factor[h], mean[h]), s.y, b.y);
    }
  }
}

// Rotates a head of 64 columns of the thread's two rows, a column with the one 32 behind it.
DEVICE void rotate(float* d, const float2* cos_sin, const u32 (&places)[2]) {
  int t = threadIdx.x % 4;
#pragma unroll
  for (int h = 0; h < 2; ++h)
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      float4 by = __ldg((const float4*)(cos_sin + places[h] * 32 + 8 * j + 2 * t));
      rotate_pairs(d + 4 * j + 2 * h, d + 16 + 4 * j + 2 * h, by);
    }
}

template <class T, int N, int EPILOGUE, bool TURNS> DEVICE void hopper_linear(const HopperLinearArgs& p) {
  constexpr int STAGES = Shape<N>::STAGES, STAGE_BYTES = Shape<N>::STAGE_BYTES;
  extern __shared__ __align__(1024) unsigned char memory[];
  __shared__ __align__(8) u64 barriers[2 * STAGES];
  // Of each group's tile, and of the one before it.
  __shared__ float2 biases[EPILOGUE == GELU ? 2 : 1][2][N / 2];
  // Of this tile and of the one before it: every block's mean and sum of squares by row, and the
  // barrier that all warps of all blocks arrive at when they have told theirs. A barrier of its own
  // for each, since a warp may be through with a tile before all others have told theirs.
  __shared__ float2 told[NORMS<EPILOGUE> ? 2 : 1][TOGETHER][M];
  __shared__ __align__(8) u64 all_told[2];
  int thread = threadIdx.x, warp = thread / 32, lane = thread % 32;
  u32 ring = shared_address(memory), full = shared_address(barriers), empty = full + 8 * STAGES;
  if (thread == 0) {
    for (int i = 0; i < STAGES; ++i) {
      barrier_init(full + 8 * i, 1);
      barrier_init(empty + 8 * i, TURNS ? 4 : 8);
    }
    if (NORMS<EPILOGUE>)
      for (int i = 0; i < 2; ++i) barrier_init(shared_address(&all_told[i]), TOGETHER * 8);
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  }
  if (NORMS<EPILOGUE>) cluster_sync();
  else __syncthreads();
  release_next();
  int tokens = p.batch->tokens, steps = (p.k + K - 1) / K, across = (p.columns + N - 1) / N;
  int tiles = (tokens + M - 1) / M * across;
  // Steps are counted over all tiles of the block; each has its slot of the ring.
  auto slot_of = [](u32 count) { return count % STAGES; };
  auto phase_of = [](u32 count) { return count / STAGES & 1; };

  if (warp >= 8) {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 24;");
    if (warp == 8 && lane == 0) {
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
    }
  } else {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 240;");
    int group = warp / 4, t = lane % 4;
    u32 stage = ring + STAGES * STAGE_BYTES + warp * 16 * STAGE_ROW;
    constexpr int PARTS = TURNS ? 2 : 1; // of 64 rows each
    int stride = TURNS ? 2 * gridDim.x : gridDim.x;
    u32 count = TURNS ? group * steps : 0, turn = 0;
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
      // GELU's bias comes while the products are made.
      float2 mine = make_float2(0.f, 0.f);
      if (EPILOGUE == GELU && thread % 128 < N / 2) mine = __ldg((const float2*)(p.bias + n0) + thread % 128);
      take_turn();
      // The state is read while the products are made, and not before the first tile of x is there:
      // till then other kernels may write it.
      uint4 held[NORMS<EPILOGUE> ? N / 16 : 1];
      if constexpr (NORMS<EPILOGUE>) {
        barrier_wait(full + 8 * slot_of(count), phase_of(count));
        read_rows<T, N>(held, (const T*)p.y, tile / across * M + warp * 16, tokens, p.stride, n0);
      }
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
      u32 bias_at = 0;
      if (EPILOGUE == GELU) {
        if (thread % 128 < N / 2) biases[turn % 2][group][thread % 128] = mine;
        named_sync(3 + group, 128);
        bias_at = shared_address(&biases[turn % 2][group][t]);
        ++turn;
      }

      // Pieces of y pass through shared memory, so that neighbours are stored together.
      constexpr int PIECE = EPILOGUE == GATE ? 32 : 64, LANES = PIECE / 8, AT_ONCE = 32 / LANES;
      int first = n0 * PIECE / 64, end = p.columns * PIECE / 64;
      auto store_piece = [&](int part, int row, int piece, T* y) {
#pragma unroll
        for (int pair = 0; pair < PIECE / 16; ++pair) {
          u32 v[4], held[4] = {};
          u32 to = stage + (lane % 16) * STAGE_ROW + (pair * 2 + lane / 16) * 16;
          if (EPILOGUE == ACCUMULATE) ldmatrix(held, to);
#pragma unroll
          for (int j = 0; j < 2; ++j) {
            int index = EPILOGUE == GATE ? piece * 8 + pair * 4 + j * 2 : piece * 8 + pair * 2 + j;
            float2 bias = make_float2(0.f, 0.f);
            if (EPILOGUE == GELU)
              asm volatile("ld.shared.v2.f32 {%0, %1}, [%2];" : "=f"(bias.x), "=f"(bias.y) : "r"(bias_at + index * 32));
#pragma unroll
            for (int h = 0; h < 2; ++h) {
              float x = d[part][4 * index + 2 * h], y = d[part][4 * index + 2 * h + 1];
              if (EPILOGUE == GELU) {
                x = gelu(x + bias.x);
                y = gelu(y + bias.y);
              } else if (EPILOGUE == ACCUMULATE) {
                x += Format<T>::low(held[2 * j + h]);
                y += Format<T>::high(held[2 * j + h]);
              } else if (EPILOGUE == GATE) {
                x = logistic(x, p.gate) * d[part][4 * index + 4 + 2 * h];
                y = logistic(y, p.gate) * d[part][4 * index + 5 + 2 * h];
              }
              v[2 * j + h] = Format<T>::pack(x, y);
            }
          }
          asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1,%2,%3,%4};" ::"r"(to), "r"(v[0]), "r"(v[1]),
                       "r"(v[2]), "r"(v[3]) : "memory");
        }
        __syncwarp();
#pragma unroll
        for (int i = 0; i < 16 / AT_ONCE; ++i) {
          int r = i * AT_ONCE + lane / LANES, column = first + piece * PIECE + lane % LANES * 8;
          uint4 v;
          asm volatile("ld.shared.v4.b32 {%0,%1,%2,%3}, [%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                       : "r"(stage + r * STAGE_ROW + lane % LANES * 16) : "memory");
          if (row + r < tokens && column < end) *(uint4*)(y + (u64)(row + r) * p.stride + column) = v;
        }
        __syncwarp();
      };
      if constexpr (NORMS<EPILOGUE>) {
        add_rows<T, N>(d[0], held, stage);
        if (EPILOGUE == APART)
#pragma unroll
          for (int piece = 0; piece < N / 64; ++piece)
            store_piece(0, tile / across * M + warp * 16, piece, (T*)p.y);
        normalise<N>(d[0], told[turn % 2], shared_address(&all_told[turn % 2]), turn / 2 % 2, warp * 16 + lane / 4, p.scale + n0,
                     p.shift ? p.shift + n0 : nullptr, p.eps);
        ++turn;
      }
#pragma unroll
      for (int part = 0; part < PARTS; ++part) {
        int row = tile / across * M + (TURNS ? part : group) * 64 + warp % 4 * 16;
        u32 places[2] = {};
        if (EPILOGUE == ROTATE)
#pragma unroll
          for (int h = 0; h < 2; ++h)
            if (row + lane / 4 + 8 * h < tokens) places[h] = __ldg(::part(p.batch, p.batch->places) + row + lane / 4 + 8 * h);
#pragma unroll
        for (int piece = 0; piece < N / 64; ++piece) {
          if (EPILOGUE == ROTATE && n0 + piece * 64 < p.rotated) rotate(d[part] + 32 * piece, p.cos_sin, places);
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
          store_piece(part, row, piece, (T*)(EPILOGUE == APART ? p.normed : p.y));
        }
      }
    }
  }
  // A block's shared memory stays until the others have no more to write there.
  if (NORMS<EPILOGUE>) {
    __syncwarp();
    cluster_sync();
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
  ENTRY(T, name, N, GELU, gelu, TURNS, way)              \
  ENTRY(T, name, N, GATE, gate, TURNS, way)              \
  ENTRY(T, name, N, ROTATE, rotate, TURNS, way)
#define CLUSTER_ENTRY(T, name, N, EPILOGUE, epilogue)                                               \
  extern "C" __global__ void __launch_bounds__(384, 1) __cluster_dims__(TOGETHER, 1, 1)             \
      hopper_##epilogue##_shared##N##_##name(const __grid_constant__ HopperLinearArgs p) {          \
    hopper_linear<T, N, EPILOGUE, false>(p);                                                        \
  }
#define FORMAT(T, name)                     \
  CLUSTER_ENTRY(T, name, 64, NORM, norm)    \
  CLUSTER_ENTRY(T, name, 128, NORM, norm)   \
  CLUSTER_ENTRY(T, name, 64, APART, apart)  \
  CLUSTER_ENTRY(T, name, 128, APART, apart) \
  ENTRIES(T, name, 64, false, shared)  \
  ENTRIES(T, name, 128, false, shared) \
  ENTRIES(T, name, 192, false, shared) \
  ENTRIES(T, name, 256, false, shared) \
  ENTRIES(T, name, 128, true, turns)   \
  ENTRIES(T, name, 192, true, turns)
FORMAT(Half, f16)
FORMAT(Bf16, bf16)
#endif
