// Linear layer, residual sum, LayerNorm, and the next linear layer, as one kernel for Hopper:
//
//   hidden = norm(x * A^T + a + hidden)      out = act(hidden * B^T + b)
//
// for states 384 wide, where a block holds whole rows. With it a post-norm layer is three kernels:
// attention; its output weights with the feed-forward network's first; the second with the next
// layer's queries, keys and values. For states 768 wide, where whole rows take a pair of blocks,
// only the first half: the pair exchanges each row's mean and squares.
//
// A block has 128 rows, 64 to each of its two computing warpgroups, whose threads hold two rows'
// worth of 3 x 128 columns of sums. The third warpgroup's first thread fills a ring of tiles of 128
// rows by 64 columns, of operands and weights in their order of use. The second product takes
// the normalised rows from shared memory, 128 columns at a time, the warpgroups in turn.
#include "common.cuh"
#if __CUDA_ARCH__ == 900
#include "warpgroup.cuh"

struct RowwiseArgs {
  TensorMap x, state, first, second; // tiles of 128 rows
  const float *first_bias, *scale, *shift, *second_bias;
  void* hidden; // read through `state`
  void* out;
  const Batch* batch;
  int k;       // columns of x, a multiple of 64
  int columns; // of out, a multiple of 128 up to 2048; 0 for no second layer
  float eps;
};

enum Second { NOTHING = 0, STORE = 1, GELU = 2 };

// Biases and the norm's parameters lie behind the ring, where they are at hand when they are needed:
// the first layer's bias, and at these places the rest.
constexpr int SCALE = 384, SHIFT = 768, SECOND_BIAS = 1152;

constexpr int ROWS = 128, TILE_BYTES = ROWS * 128, WIDTH = 384, BLOCKS = WIDTH / 64;

template <int SECOND> struct Shape {
  // Without a second product nobody needs the rows in shared memory.
  static constexpr int STAGES = SECOND ? 7 : 13, RING = SECOND ? BLOCKS * TILE_BYTES : 0;
};

template <int STAGES> struct Ring {
  u32 memory, full, empty, slot, phase;
  DEVICE void next() {
    if (++slot == STAGES) {
      slot = 0;
      phase ^= 1;
    }
  }
  // The reader's side: waits for the next tile; gives one back when all lanes are done with it.
  DEVICE u32 wait() const {
    barrier_wait(full + 8 * slot, phase);
    return memory + slot * TILE_BYTES;
  }
  DEVICE void give_back(u32 which) const {
    if (threadIdx.x % 32 == 0) barrier_arrive(empty + 8 * which);
  }
  // The writer's.
  DEVICE void fetch(const TensorMap* map, int column, int row) {
    barrier_wait(empty + 8 * slot, phase ^ 1);
    expect_bytes(full + 8 * slot, TILE_BYTES);
    fetch_tile(memory + slot * TILE_BYTES, map, column, row, full + 8 * slot);
    next();
  }
};

template <int STAGES> DEVICE void produce(const RowwiseArgs& p, Ring<STAGES> ring, int first, int count, int tiles, int column0) {
  for (int tile = first; tile < tiles; tile += count) {
    for (int k = 0; k < p.k; k += 64) {
      ring.fetch(&p.x, k, tile * ROWS);
      for (int part = 0; part < 3; ++part) ring.fetch(&p.first, k, column0 + part * 128);
    }
    for (int block = 0; block < BLOCKS; ++block) ring.fetch(&p.state, column0 + block * 64, tile * ROWS);
    for (int n = 0; n < p.columns; n += 128)
      for (int block = 0; block < BLOCKS; ++block) ring.fetch(&p.second, block * 64, n);
  }
}

// d += 64 rows of an operand times a tile of weights.
template <class T> DEVICE void multiply(float (&d)[64], u64 a, u32 weights) {
  u64 b = descriptor_swizzled(weights);
  warpgroup_arrive();
#pragma unroll
  for (int k = 0; k < 4; ++k) warpgroup_mma_shared<T, 128>(d, a + 2 * k, b + 2 * k, 1);
  warpgroup_commit();
}

DEVICE float2 pair_at(u32 values, int j) {
  float2 v;
  asm volatile("ld.shared.v2.f32 {%0, %1}, [%2];" : "=f"(v.x), "=f"(v.y) : "r"(values + 32 * j + threadIdx.x % 4 * 8));
  return v;
}

// Sums begin with the bias.
DEVICE void begin_with(float (&d)[64], u32 bias) {
#pragma unroll
  for (int j = 0; j < 16; ++j) {
    float2 b = pair_at(bias, j);
    d[4 * j] = d[4 * j + 2] = b.x;
    d[4 * j + 1] = d[4 * j + 3] = b.y;
  }
}

// d += what two tiles of the state hold.
template <class T, class R> DEVICE void add_residual(float (&d)[64], R& ring, int row) {
  int lane = threadIdx.x % 32;
  row += lane % 16;
#pragma unroll
  for (int block = 0; block < 2; ++block) {
    u32 tile = ring.wait();
#pragma unroll
    for (int pair = 0; pair < 4; ++pair) {
      u32 held[4];
      ldmatrix(held, tile + row * 128 + (((pair * 2 + lane / 16) ^ (row & 7)) << 4));
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        int at = block * 32 + pair * 8 + i * 2;
        d[at] += Format<T>::low(held[i]);
        d[at + 1] += Format<T>::high(held[i]);
      }
    }
    __syncwarp();
    ring.give_back(ring.slot);
    ring.next();
  }
}

// Four chains of sums a row: one would take longer than all else.
DEVICE void add_chains(float (&sums)[2], const float (&chains)[8]) {
  sums[0] += (chains[0] + chains[1]) + (chains[4] + chains[5]);
  sums[1] += (chains[2] + chains[3]) + (chains[6] + chains[7]);
}
DEVICE void add_up(float (&sums)[2], const float (&d)[64]) {
  float chains[8] = {};
#pragma unroll
  for (int i = 0; i < 64; ++i) chains[i % 8] += d[i];
  add_chains(sums, chains);
}
DEVICE void centre(float (&squares)[2], float (&d)[64], const float (&mean)[2]) {
  float chains[8] = {};
#pragma unroll
  for (int i = 0; i < 64; ++i) {
    d[i] -= mean[i / 2 % 2];
    chains[i % 8] += d[i] * d[i];
  }
  add_chains(squares, chains);
}
DEVICE void scale_and_shift(float (&d)[64], const float (&rest)[2], const float (&factor)[2], u32 parameters) {
#pragma unroll
  for (int j = 0; j < 16; ++j) {
    float2 s = pair_at(parameters + 4 * SCALE, j), b = pair_at(parameters + 4 * SHIFT, j);
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      d[4 * j + 2 * h] = (d[4 * j + 2 * h] - rest[h]) * factor[h] * s.x + b.x;
      d[4 * j + 2 * h + 1] = (d[4 * j + 2 * h + 1] - rest[h]) * factor[h] * s.y + b.y;
    }
  }
}

// 128 columns of sums become two tiles of the operand.
template <class T> DEVICE void store_operand(const float (&d)[64], u32 tile, int row) {
  int lane = threadIdx.x % 32;
  row += lane % 16;
#pragma unroll
  for (int pair = 0; pair < 8; ++pair) {
    u32 v[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) v[i] = Format<T>::pack(d[pair * 8 + i * 2], d[pair * 8 + i * 2 + 1]);
    asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1,%2,%3,%4};" ::"r"(
                     tile + pair / 4 * TILE_BYTES + row * 128 + (((pair % 4 * 2 + lane / 16) ^ (row & 7)) << 4)),
                 "r"(v[0]), "r"(v[1]), "r"(v[2]), "r"(v[3]) : "memory");
  }
}

// Where a thread stores: its row's first element and how many of the warp's rows there are.
template <class T> struct Rows {
  T* to;
  int stride, count;
};

// 32 columns of sums to memory. The four lanes that share rows exchange their pairs, so that each
// has eight neighbours of one row to store.
template <class T, int SECOND, int GROUP>
DEVICE void store_columns(const float (&d)[64], Rows<T> rows, int column) {
  int t = threadIdx.x % 4, row = threadIdx.x % 32 / 4;
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    u32 w[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      int j = 4 * GROUP + i;
      float x = d[4 * j + 2 * h], y = d[4 * j + 2 * h + 1];
      if (SECOND == GELU) x = gelu(x), y = gelu(y);
      w[i] = Format<T>::pack(x, y);
    }
    quad_transpose(w);
    if (row + 8 * h < rows.count)
      *(uint4*)(rows.to + (u64)(row + 8 * h) * rows.stride + column + 32 * GROUP + 8 * t) =
          make_uint4(w[0], w[1], w[2], w[3]);
  }
}
template <class T, int SECOND> DEVICE void store_all(const float (&d)[64], Rows<T> rows, int column) {
  store_columns<T, SECOND, 0>(d, rows, column);
  store_columns<T, SECOND, 1>(d, rows, column);
  store_columns<T, SECOND, 2>(d, rows, column);
  store_columns<T, SECOND, 3>(d, rows, column);
}

// The warp's rows of the operand to memory.
template <class T> DEVICE void copy_rows(Rows<T> rows, u32 state, int row) {
  int lane = threadIdx.x % 32;
#pragma unroll 4
  for (int i = 0; i < 16 * WIDTH / 8; i += 32) {
    int at = i + lane, r = at / (WIDTH / 8), chunk = at % (WIDTH / 8);
    uint4 v;
    asm volatile("ld.shared.v4.b32 {%0,%1,%2,%3}, [%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "r"(state + chunk / 8 * TILE_BYTES + (row + r) * 128 + ((chunk % 8 ^ (r & 7)) << 4)) : "memory");
    if (r < rows.count) *(uint4*)(rows.to + (u64)r * rows.stride + chunk * 8) = v;
  }
}

// The other block of the pair: its shared memory, and a barrier there.
DEVICE u32 of_peer(u32 address, u32 rank) {
  u32 there;
  asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(address), "r"(rank ^ 1));
  return there;
}

template <class T, int SECOND, int PAIR, class R>
DEVICE void consume(const RowwiseArgs& p, R ring, u32 state, u32 parameters, u32 exchange, u32 exchanged, int first, int count, int tiles,
                    int column0) {
  // Every lane's warp is the first one's: said so that what follows from it is known to be uniform.
  int warp = __shfl_sync(0xffffffffu, threadIdx.x / 32, 0), lane = threadIdx.x % 32, group = warp / 4;
  int tokens = p.batch->tokens, row = warp * 16; // of this warp in the block
  u64 operand = descriptor_swizzled(state + group * 64 * 128);
  u32 turn = 0;
  // Of the second product's: one warpgroup's epilogue runs beside the other's products, because a
  // warp that has begun a product issues nothing until the tensor cores have taken it.
  auto take_turn = [&] { named_sync(3 + group, 256); };
  auto give_turn = [&] { asm volatile("bar.arrive %0, 256;" ::"r"(4 - group) : "memory"); };
  if (SECOND && group == 1) give_turn();

  for (int tile = first; tile < tiles; tile += count, turn ^= 1) {
    float d0[64], d1[64], d2[64];
    int rows = tokens - tile * ROWS - row; // that this warp has
    u32 held_x = 0, held = 0;
    begin_with(d0, parameters);
    begin_with(d1, parameters + 4 * 128);
    begin_with(d2, parameters + 4 * 256);
#pragma unroll 1
    for (int k = 0; k < p.k; k += 64) {
      u64 a = descriptor_swizzled(ring.wait() + group * 64 * 128);
      u32 slot_x = ring.slot;
      ring.next();
      multiply<T>(d0, a, ring.wait());
      warpgroup_wait<1>();
      if (k > 0) {
        ring.give_back(held);
        ring.give_back(held_x);
      }
      held_x = slot_x;
      held = ring.slot;
      ring.next();
      multiply<T>(d1, a, ring.wait());
      warpgroup_wait<1>();
      ring.give_back(held);
      held = ring.slot;
      ring.next();
      multiply<T>(d2, a, ring.wait());
      warpgroup_wait<1>();
      ring.give_back(held);
      held = ring.slot;
      ring.next();
    }
    warpgroup_wait<0>();
    ring.give_back(held);
    ring.give_back(held_x);

    float mean[2] = {}, factor[2] = {};
    add_residual<T>(d0, ring, row);
    add_up(mean, d0);
    add_residual<T>(d1, ring, row);
    add_up(mean, d1);
    add_residual<T>(d2, ring, row);
    add_up(mean, d2);
    mean[0] = quad_sum(mean[0]) * (1.f / WIDTH);
    mean[1] = quad_sum(mean[1]) * (1.f / WIDTH);
    centre(factor, d0, mean);
    centre(factor, d1, mean);
    centre(factor, d2, mean);
    factor[0] = quad_sum(factor[0]);
    factor[1] = quad_sum(factor[1]);
    float rest[2] = {0.f, 0.f}; // of the mean, behind what `centre` took
    if (PAIR == 2) {
      u32 mine = exchange + (turn * ROWS + row + lane / 4) * 8, rank = blockIdx.x % 2, there = of_peer(mine, rank);
      if (lane % 4 == 0) {
        asm volatile("st.shared::cluster.v2.f32 [%0], {%1, %2};" ::"r"(there), "f"(mean[0]), "f"(factor[0]) : "memory");
        asm volatile("st.shared::cluster.v2.f32 [%0], {%1, %2};" ::"r"(there + 64), "f"(mean[1]), "f"(factor[1]) : "memory");
      }
      __syncwarp();
      if (lane == 0)
        asm volatile("fence.acq_rel.cluster; mbarrier.arrive.release.cluster.shared::cluster.b64 _, [%0];" ::"r"(
                         of_peer(exchanged, rank)) : "memory");
      asm volatile(
          "{ .reg .pred p;\n"
          "AGAIN: mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 p, [%0], %1;\n"
          "@p bra DONE;\n bra AGAIN;\n DONE: }" ::"r"(exchanged), "r"(turn) : "memory");
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        float other, squares;
        asm volatile("ld.shared.v2.f32 {%0, %1}, [%2];" : "=f"(other), "=f"(squares) : "r"(mine + 64 * h) : "memory");
        float apart = other - mean[h];
        rest[h] = 0.5f * apart;
        factor[h] += squares + apart * apart * (WIDTH / 2);
      }
    }
#pragma unroll
    for (int h = 0; h < 2; ++h) factor[h] = 1.f / sqrtf(factor[h] * (1.f / (PAIR * WIDTH)) + p.eps);
    Rows<T> hidden = {(T*)p.hidden + (u64)(tile * ROWS + row) * (PAIR * WIDTH), PAIR * WIDTH, rows};
    scale_and_shift(d0, rest, factor, parameters);
    scale_and_shift(d1, rest, factor, parameters + 4 * 128);
    scale_and_shift(d2, rest, factor, parameters + 4 * 256);
    if (!SECOND) {
      store_all<T, NOTHING>(d0, hidden, column0);
      store_all<T, NOTHING>(d1, hidden, column0 + 128);
      store_all<T, NOTHING>(d2, hidden, column0 + 256);
    } else {
      store_operand<T>(d0, state, row);
      store_operand<T>(d1, state + 2 * TILE_BYTES, row);
      store_operand<T>(d2, state + 4 * TILE_BYTES, row);
      __syncwarp();
      copy_rows(hidden, state, row);
    }

    if (SECOND) {
      publish();
      named_sync(1 + group, 128); // the warpgroup's rows are complete
      Rows<T> out = {(T*)p.out + (u64)(tile * ROWS + row) * p.columns, p.columns, rows};
#pragma unroll 1
      for (int n = 0; n < p.columns; n += 128) {
        begin_with(d0, parameters + 4 * (SECOND_BIAS + n));
        take_turn();
#pragma unroll
        for (int block = 0; block < BLOCKS; ++block) {
          multiply<T>(d0, operand + block * (TILE_BYTES / 16), ring.wait());
          if (block > 0) {
            warpgroup_wait<1>();
            ring.give_back(held);
          }
          held = ring.slot;
          ring.next();
        }
        give_turn();
        warpgroup_wait<0>();
        ring.give_back(held);
        store_all<T, SECOND>(d0, out, n);
      }
      named_sync(1 + group, 128); // nobody reads the rows any more
    }
  }
}

template <class T, int SECOND, int PAIR> DEVICE void rowwise(const RowwiseArgs& p) {
  constexpr int STAGES = Shape<SECOND>::STAGES;
  extern __shared__ __align__(1024) unsigned char memory[];
  __shared__ __align__(8) u64 barriers[2 * STAGES + 1];
  __shared__ float2 exchange[PAIR == 2 ? 2 * ROWS : 1];
  u32 state = shared_address(memory), full = shared_address(barriers), empty = full + 8 * STAGES;
  u32 exchanged = empty + 8 * STAGES;
  u32 parameters = state + Shape<SECOND>::RING + STAGES * TILE_BYTES;
  int column0 = blockIdx.x % PAIR * WIDTH;
  float* values = (float*)(memory + (parameters - state));
  for (int i = threadIdx.x; i < WIDTH; i += blockDim.x) {
    values[i] = p.first_bias[column0 + i];
    values[SCALE + i] = p.scale[column0 + i];
    values[SHIFT + i] = p.shift[column0 + i];
  }
  if (SECOND)
    for (int i = threadIdx.x; i < p.columns; i += blockDim.x) values[SECOND_BIAS + i] = p.second_bias[i];
  if (threadIdx.x == 0) {
    for (int i = 0; i < STAGES; ++i) {
      barrier_init(full + 8 * i, 1);
      barrier_init(empty + 8 * i, 8);
    }
    barrier_init(exchanged, 8);
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  }
  auto pair_sync = [] {
    asm volatile("barrier.cluster.arrive.release.aligned; barrier.cluster.wait.acquire.aligned;" ::: "memory");
  };
  if (PAIR == 2) pair_sync();
  else __syncthreads();
  release_next();
  Ring<STAGES> ring = {state + Shape<SECOND>::RING, full, empty, 0, 0};
  int tiles = (p.batch->tokens + ROWS - 1) / ROWS;
  int first = blockIdx.x / PAIR, count = gridDim.x / PAIR;
  if (threadIdx.x >= 256) {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 24;");
    if (threadIdx.x == 256) {
      wait_for_previous();
      produce(p, ring, first, count, tiles, column0);
    }
  } else {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 240;");
    consume<T, SECOND, PAIR>(p, ring, state, parameters, shared_address(exchange), exchanged, first, count, tiles, column0);
  }
  // A block's shared memory stays until its peer has no more to write there.
  if (PAIR == 2) {
    __syncwarp();
    pair_sync();
  }
}

#define ENTRY(T, name, SECOND, second, PAIR, pair)                                                  \
  extern "C" __global__ void __launch_bounds__(384, 1) pair                                         \
      rowwise_##second##PAIR##_##name(const __grid_constant__ RowwiseArgs p) {                      \
    rowwise<T, SECOND, PAIR>(p);                                                                    \
  }
#define FORMAT(T, name)               \
  ENTRY(T, name, NOTHING, norm, 1, )  \
  ENTRY(T, name, STORE, store, 1, )   \
  ENTRY(T, name, GELU, gelu, 1, )     \
  ENTRY(T, name, NOTHING, norm, 2, __cluster_dims__(2, 1, 1))
FORMAT(Half, f16)
FORMAT(Bf16, bf16)
#endif
