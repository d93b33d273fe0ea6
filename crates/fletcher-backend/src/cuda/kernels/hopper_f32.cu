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
// what comes there is 21 FLOP a byte at N = 128. A tile of y is put down in shared memory, from where the
// copy engine brings it to its rows while the next tile's products are made: the tiles of a round
// would otherwise be written at the same time, while no products are made.
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

template <int N> struct Shape {
  static constexpr int STAGE_BYTES = (M + 2 * N) * ROW_BYTES, STAGES = N == 128 ? 3 : 5;
  static constexpr int AT_ONCE = 128 / N; // stages in a turn
  // Bytes between rows of y: lanes that write two columns each meet no bank conflict.
  static constexpr int OUT_ROW = 4 * N + 32;
};

// 64xN += 64x8 times (Nx8)^T.
template <int N> DEVICE void warpgroup_mma_tf32(float (&d)[N / 2], const u32 (&a)[4], u64 b, int accumulate);
template <> DEVICE void warpgroup_mma_tf32<64>(float (&d)[32], const u32 (&a)[4], u64 b, int accumulate) {
  asm volatile(
      "{ .reg .pred p; setp.ne.b32 p, %37, 0; "
      "wgmma.mma_async.sync.aligned.m64n64k8.f32.tf32.tf32 {"
      "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
      "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, "
      "{%32, %33, %34, %35}, %36, p, 1, 1; }"
      :
        "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7]),
        "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]), "+f"(d[14]), "+f"(d[15]),
        "+f"(d[16]), "+f"(d[17]), "+f"(d[18]), "+f"(d[19]), "+f"(d[20]), "+f"(d[21]), "+f"(d[22]), "+f"(d[23]),
        "+f"(d[24]), "+f"(d[25]), "+f"(d[26]), "+f"(d[27]), "+f"(d[28]), "+f"(d[29]), "+f"(d[30]), "+f"(d[31])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(accumulate));
}
template <> DEVICE void warpgroup_mma_tf32<128>(float (&d)[64], const u32 (&a)[4], u64 b, int accumulate) {
  asm volatile(
      "{ .reg .pred p; setp.ne.b32 p, %69, 0; "
      "wgmma.mma_async.sync.aligned.m64n128k8.f32.tf32.tf32 {"
      "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
      "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
      "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
      "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}, "
      "{%64, %65, %66, %67}, %68, p, 1, 1; }"
      :
        "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7]),
        "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]), "+f"(d[14]), "+f"(d[15]),
        "+f"(d[16]), "+f"(d[17]), "+f"(d[18]), "+f"(d[19]), "+f"(d[20]), "+f"(d[21]), "+f"(d[22]), "+f"(d[23]),
        "+f"(d[24]), "+f"(d[25]), "+f"(d[26]), "+f"(d[27]), "+f"(d[28]), "+f"(d[29]), "+f"(d[30]), "+f"(d[31]),
        "+f"(d[32]), "+f"(d[33]), "+f"(d[34]), "+f"(d[35]), "+f"(d[36]), "+f"(d[37]), "+f"(d[38]), "+f"(d[39]),
        "+f"(d[40]), "+f"(d[41]), "+f"(d[42]), "+f"(d[43]), "+f"(d[44]), "+f"(d[45]), "+f"(d[46]), "+f"(d[47]),
        "+f"(d[48]), "+f"(d[49]), "+f"(d[50]), "+f"(d[51]), "+f"(d[52]), "+f"(d[53]), "+f"(d[54]), "+f"(d[55]),
        "+f"(d[56]), "+f"(d[57]), "+f"(d[58]), "+f"(d[59]), "+f"(d[60]), "+f"(d[61]), "+f"(d[62]), "+f"(d[63])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(accumulate));
}

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

// Where it stands, and not only where it is needed.
DEVICE float2 load_bias(const float* from) {
  float2 v;
  asm volatile("ld.global.nc.v2.f32 {%0,%1}, [%2];" : "=f"(v.x), "=f"(v.y) : "l"(from));
  return v;
}
DEVICE float4 load_four(u32 at) {
  float4 v;
  asm volatile("ld.shared.v4.f32 {%0,%1,%2,%3}, [%4];" : "=f"(v.x), "=f"(v.y), "=f"(v.z), "=f"(v.w) : "r"(at) : "memory");
  return v;
}
DEVICE void store_four(u32 at, float4 v) {
  asm volatile("st.shared.v4.f32 [%0], {%1,%2,%3,%4};" ::"r"(at), "f"(v.x), "f"(v.y), "f"(v.z), "f"(v.w) : "memory");
}

// The warp's 16 rows of y in shared memory, N columns of sums: activations in place, or gates by values
// in front of them. The kind is known when the kernel runs, so that there is one place for it.
template <int N, bool GATED> DEVICE void activate_rows(u32 rows, int activation) {
  constexpr int LANES = GATED ? N / 8 : N / 4, ROW = Shape<N>::OUT_ROW; // lanes of a row, with four results each
  int lane = lane_now(), mine = lane % LANES;
  __syncwarp();
#pragma unroll 1
  for (int r = lane / LANES; r < 16; r += 32 / LANES) {
    u32 row = rows + r * ROW, from = row + (GATED ? mine / 2 * 64 + mine % 2 * 16 : mine * 16);
    float4 v = load_four(from), by = GATED ? load_four(from + 32) : make_float4(1.f, 1.f, 1.f, 1.f);
    v.x = activate(activation, v.x) * by.x;
    v.y = activate(activation, v.y) * by.y;
    v.z = activate(activation, v.z) * by.z;
    v.w = activate(activation, v.w) * by.w;
    __syncwarp();
    store_four(row + mine * 16, v);
  }
}

template <int N, int EPILOGUE> DEVICE void hopper_linear(const HopperF32Args& p) {
  using S = Shape<N>;
  constexpr int STAGES = S::STAGES, STAGE_BYTES = S::STAGE_BYTES;
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
  // Whole turns: behind the last column there are zeros.
  int tokens = p.batch->tokens, steps = (p.k + K * S::AT_ONCE - 1) / (K * S::AT_ONCE) * S::AT_ONCE, across = (p.columns + N - 1) / N;
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
    u32 rows = ring + STAGES * STAGE_BYTES + warp * 16 * S::OUT_ROW;
    u32 mine = (warp * 16 + g) * ROW_BYTES + ((2 * t ^ g) * 16); // the lane's eight columns, in a stage
    // The first turn. Not by a branch: everything behind it would be taken for what threads may differ
    // in, and kept out of the uniform registers.
    asm volatile("{ .reg .pred p; setp.eq.s32 p, %0, 1; @p bar.arrive 1, 256; }" ::"r"(group) : "memory");
    u32 slot = 0, phase = 0;
    // A turn's stages.
    float sums[S::AT_ONCE][N / 2];
    auto multiply = [&] {
      Operands a[S::AT_ONCE];
      u32 at[S::AT_ONCE], empties[S::AT_ONCE];
#pragma unroll
      for (int i = 0; i < S::AT_ONCE; ++i) {
        at[i] = ring + slot * STAGE_BYTES;
        empties[i] = empty + 8 * slot;
        barrier_wait(full + 8 * slot, phase);
        load_operands(a[i], at[i] + mine);
        advance(slot, phase);
      }
      asm volatile("bar.sync %0, 256;" ::"r"(1 + group) : "memory");
      warpgroup_arrive();
#pragma unroll
      for (int i = 0; i < S::AT_ONCE; ++i) {
        u64 high = descriptor_swizzled(at[i] + M * ROW_BYTES), low = descriptor_swizzled(at[i] + (M + N) * ROW_BYTES);
#pragma unroll
        for (int kk = 0; kk < 4; ++kk) {
          warpgroup_mma_tf32<N>(sums[i], a[i].low[kk], high + 2 * kk, kk > 0);
          warpgroup_mma_tf32<N>(sums[i], a[i].high[kk], low + 2 * kk, 1);
        }
#pragma unroll
        for (int kk = 0; kk < 4; ++kk) warpgroup_mma_tf32<N>(sums[i], a[i].high[kk], high + 2 * kk, 1);
      }
      warpgroup_commit();
      asm volatile("bar.arrive %0, 256;" ::"r"(2 - group) : "memory"); // the other group's turn
      warpgroup_wait<0>();
#pragma unroll
      for (int i = 0; i < S::AT_ONCE; ++i)
        if (lane == 0) barrier_arrive(empties[i]);
    };
    float d[N / 2];
    auto add = [&](int first) {
#pragma unroll
      for (int i = first; i < S::AT_ONCE; ++i)
#pragma unroll
        for (int j = 0; j < N / 2; ++j) d[j] += sums[i][j];
    };
    for (int tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
      // Sums begin with the bias, and with what y holds: both are read while the first products are
      // made, y not before the first tile of x is there: till then other kernels may write it.
      int n0 = tile % across * N, row = tile / across * M + warp * 16;
      float2 bias[N / 8];
#pragma unroll
      for (int j = 0; j < N / 8; ++j) bias[j] = load_bias(p.bias + n0 + j * 8 + 2 * t);
      if (EPILOGUE == ACCUMULATE) {
        barrier_wait(full + 8 * slot, phase);
#pragma unroll
        for (int j = 0; j < N / 8; ++j)
#pragma unroll
          for (int h = 0; h < 2; ++h) {
            float2 held = make_float2(0.f, 0.f);
            if (row + g + 8 * h < tokens && n0 + j * 8 < p.columns)
              held = *(const float2*)(p.y + (u64)(row + g + 8 * h) * p.stride + n0 + j * 8 + 2 * t);
            d[4 * j + 2 * h] = held.x;
            d[4 * j + 2 * h + 1] = held.y;
          }
      }
      multiply();
#pragma unroll
      for (int j = 0; j < N / 2; ++j) {
        float from = j % 2 ? bias[j / 4].y : bias[j / 4].x;
        d[j] = (EPILOGUE == ACCUMULATE ? d[j] + from : from) + sums[0][j];
      }
      add(1);
#pragma unroll 1
      for (int step = S::AT_ONCE; step < steps; step += S::AT_ONCE) {
        multiply();
        add(0);
      }

      // The lane's row has left, or there was none.
      if (lane < 16) asm volatile("cp.async.bulk.wait_group.read 0;" ::: "memory");
      __syncwarp();
#pragma unroll
      for (int j = 0; j < N / 8; ++j)
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          float x = d[4 * j + 2 * h], y = d[4 * j + 2 * h + 1];
          if (EPILOGUE == GELU) x = gelu_erf_exact(x), y = gelu_erf_exact(y);
          asm volatile("st.shared.v2.f32 [%0], {%1, %2};" ::"r"(rows + (g + 8 * h) * S::OUT_ROW + j * 32 + t * 8), "f"(x), "f"(y)
                       : "memory");
        }
      if (EPILOGUE == ACTIVATE || EPILOGUE == GATE) activate_rows<N, EPILOGUE == GATE>(rows, p.activation);
      publish();
      __syncwarp();
      if (lane < 16 && row + lane < tokens) {
        constexpr int HALF = EPILOGUE == GATE ? 2 : 1;
        float* to = p.y + (u64)(row + lane) * p.stride + n0 / HALF;
        int bytes = min(N, p.columns - n0) / HALF * 4;
        asm volatile("cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], %2;" ::"l"(to), "r"(rows + lane * S::OUT_ROW),
                     "r"(bytes) : "memory");
        asm volatile("cp.async.bulk.commit_group;" ::: "memory");
      }
    }
    if (lane < 16) asm volatile("cp.async.bulk.wait_group 0;" ::: "memory");
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
