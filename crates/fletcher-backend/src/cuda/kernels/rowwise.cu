// Linear layer, residual sum, LayerNorm, and the next linear layer, as one kernel for Hopper:
//
//   hidden = norm(x * A^T + a + hidden)      out = act(hidden * B^T + b)
//
// for states 384 wide, where a block holds whole rows. With it a post-norm layer is three kernels:
// attention; its output weights with the feed-forward network's first; the second with the next
// layer's queries, keys and values. For states 768 wide, where whole rows take a pair of blocks,
// only the first half: the pair exchanges each row's mean and squares. Pre-norm layers are
//
//   hidden = x * A^T + a + hidden      out = norm(hidden)
//
// by the same kernels without a second layer.
//
// A block has 128 rows, 64 to each of its two computing warpgroups, whose threads hold two rows'
// worth of 384 columns of sums. The third warpgroup's first thread fills a ring of tiles of 128 rows
// by 64 columns, of operands and weights in their order of use. Shared memory's bandwidth is what
// limits products that take both operands from there, so that the second takes the normalised rows
// from registers, where the norm leaves them in the very layout of an operand; it makes 128 columns
// at a time, the warpgroups in turn.
#include "common.cuh"
#if __CUDA_ARCH__ == 900
#include "rows.cuh"

struct RowwiseArgs {
  TensorMap x, state, first, second; // tiles of 128 rows; of `first`, of 192
  const float *first_bias, *scale, *shift, *second_bias; // the shift is null for none
  void* hidden; // read through `state`
  void* out;
  const Batch* batch;
  int k;       // columns of x, a multiple of 64
  int columns; // of out, a multiple of 128 up to 2048; 0 for no second layer
  float eps;
};

// What follows the norm: a second layer, or none. APART leaves the sums in `hidden` and what the norm
// makes of them in `out`.
enum Second { NOTHING = 0, STORE = 1, GELU = 2, APART = 3 };
template <int SECOND> constexpr bool CHAINED = SECOND == STORE || SECOND == GELU;

// Biases and the norm's parameters lie behind the ring, where they are at hand when they are needed:
// the first layer's bias, and at these places the rest.
constexpr int SCALE = 384, SHIFT = 768, SECOND_BIAS = 1152;

// A step of the first product takes four slots that lie one behind the other: one for a tile of x,
// three for two halves of the weights' rows, which come and go by the second's and the third's
// barriers. The second product's turns need twice `BLOCKS`, those that are read and those that come.
constexpr int STEP = 4, SLOTS = 12, HALF_BYTES = HALF * 128;

struct Ring {
  u32 memory, full, empty, slot, phase;
  DEVICE void advance(u32 count) {
    slot += count;
    if (slot == SLOTS) {
      slot = 0;
      phase ^= 1;
    }
  }
  DEVICE u32 at(u32 ahead = 0) const { return memory + (slot + ahead) * TILE_BYTES; }
  // The reader's side: waits for a tile; gives it back when all lanes are done with it.
  DEVICE void wait(u32 ahead = 0) const { barrier_wait(full + 8 * (slot + ahead), phase); }
  DEVICE void give_back(u32 first) const {
    if (threadIdx.x % 32 == 0) barrier_arrive(empty + 8 * first);
  }
  DEVICE void give_back_step(u32 first) const {
    u32 lane = threadIdx.x % 32;
    if (lane < STEP) barrier_arrive(empty + 8 * (first + lane));
  }
  // The writer's.
  DEVICE void claim(u32 ahead = 0) const { barrier_wait(empty + 8 * (slot + ahead), phase ^ 1); }
  DEVICE void fetch(const TensorMap* map, int column, int row, u32 go_on = 1) {
    claim();
    expect_bytes(full + 8 * slot, TILE_BYTES);
    fetch_tile(at(), map, column, row, full + 8 * slot);
    advance(go_on);
  }
};

// Tiles that nobody fills, behind all of a block's rows: the next ones' steps begin at a
// multiple of `STEP`.
DEVICE int unused_slots(const RowwiseArgs& p) { return (p.columns / 128 + 1) % 2 * (BLOCKS % STEP); }

// Pairs of blocks have halves of the weights each, and are faster in step.
template <int PAIR> DEVICE int first_of(int count) { return PAIR == 1 ? first_of_four(count) : 0; }

template <int PAIR> DEVICE void produce(const RowwiseArgs& p, Ring ring, int first, int count, int tiles, int column0) {
  int steps = p.k / 64, chunks = p.columns / 128;
  auto fetch_half = [&](int k, int half) {
    u32 full = ring.full + 8 * (ring.slot + 1 + half);
    expect_bytes(full, HALF_BYTES);
    fetch_tile(ring.at(1) + half * HALF_BYTES, &p.first, k * 64, column0 + half * HALF, full);
  };
  // Weights are nobody else's to write: the first of them are asked for at once.
  int early = first < tiles ? min(steps, SLOTS / STEP) : 0;
  for (int step = 0, k = first_of<PAIR>(steps); step < early; ++step, k = next_of(k, steps), ring.slot += STEP) {
    fetch_half(k, 0);
    fetch_half(k, 1);
  }
  ring.slot = 0;
  wait_for_previous();
  for (int tile = first; tile < tiles; tile += count) {
    for (int step = 0, k = first_of<PAIR>(steps); step < steps; ++step, --early, k = next_of(k, steps)) {
      // The last slot has no barrier's wait of its own: it is there before what readers do wait for, so
      // that they cannot give it back first.
      ring.claim(STEP - 1);
      barrier_arrive(ring.full + 8 * (ring.slot + STEP - 1));
      ring.fetch(&p.x, k * 64, tile * ROWS, 0);
      for (int half = 0; half < 2 && early <= 0; ++half) {
        ring.claim(1 + half); // a half lies in two slots, or one and a half
        ring.claim(2 + half);
        fetch_half(k, half);
      }
      ring.advance(STEP);
    }
    for (int block = 0; block < BLOCKS; ++block) ring.fetch(&p.state, column0 + block * 64, tile * ROWS);
    for (int i = 0, n = first_of<PAIR>(chunks); i < chunks; ++i, n = next_of(n, chunks))
      for (int block = 0; block < BLOCKS; ++block) ring.fetch(&p.second, block * 64, n * 128);
    for (int i = unused_slots(p); i > 0; --i) {
      ring.claim();
      barrier_arrive(ring.full + 8 * ring.slot);
      ring.advance(1);
    }
  }
}

// d += what three tiles of the state hold.
template <class T> DEVICE void add_residual(float (&d)[HALF / 2], Ring& ring, int row) {
  auto add = [&](auto add_one) {
    ring.wait();
    add_one(ring.at());
    __syncwarp();
    ring.give_back(ring.slot);
    ring.advance(1);
  };
  add([&](u32 tile) { add_tile<T, 0>(d, tile, row); });
  add([&](u32 tile) { add_tile<T, 1>(d, tile, row); });
  add([&](u32 tile) { add_tile<T, 2>(d, tile, row); });
}

// Half of the rows' sums as they are.
template <class T> DEVICE void store_half(const float (&d)[HALF / 2], const Rows<T>& rows, int column) {
#pragma unroll
  for (int group = 0; group < HALF / 32; ++group) {
    u32 w[2][4];
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      int at = 16 * group + 4 * (i / 2) + 2 * (i % 2);
      w[i % 2][i / 2] = Format<T>::pack(d[at], d[at + 1]);
    }
    rows.store(w, column + 32 * group);
  }
}

template <class T, int SECOND> DEVICE void store_sums(const float (&d)[64], u32 bias, const Rows<T>& rows) {
  bias += lane_now() % 4 * 8;
#pragma unroll
  for (int group = 0; group < 4; ++group) {
    u32 w[2][4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      int j = 4 * group + i;
      float2 b = pair_at(bias, j);
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        float x = d[4 * j + 2 * h] + b.x, y = d[4 * j + 2 * h + 1] + b.y;
        if (SECOND == GELU) x = gelu(x), y = gelu(y);
        w[h][i] = Format<T>::pack(x, y);
      }
    }
    rows.store(w, 32 * group);
  }
}

template <class T, int SECOND, int PAIR>
DEVICE void consume(const RowwiseArgs& p, Ring ring, u32 parameters, u32 exchange, u32 exchanged, int first, int count,
                    int tiles, int column0) {
  // Every lane's warp is the first one's: said so that what follows from it is known to be uniform.
  int warp = __shfl_sync(0xffffffffu, threadIdx.x / 32, 0), lane = threadIdx.x % 32, group = warp / 4;
  int tokens = p.batch->tokens, row = warp * 16; // of this warp in the block
  u32 turn = 0;
  // Of the second product's: one warpgroup's epilogue runs beside the other's products, because a
  // warp that has begun a product issues nothing until the tensor cores have taken it.
  auto take_turn = [&] { named_sync(3 + group, 256); };
  auto give_turn = [&] { asm volatile("bar.arrive %0, 256;" ::"r"(4 - group) : "memory"); };
  if (CHAINED<SECOND> && group == 1) give_turn();

  for (int tile = first; tile < tiles; tile += count, turn ^= 1) {
    float d0[HALF / 2], d1[HALF / 2];
    u32 held = 0;
    begin_with<HALF>(d0, parameters);
    begin_with<HALF>(d1, parameters + 4 * HALF);
#pragma unroll 1
    for (int k = 0; k < p.k; k += 64) {
      ring.wait();
      ring.wait(1);
      u64 a = descriptor_swizzled(ring.at() + group * 64 * 128), b = descriptor_swizzled(ring.at() + TILE_BYTES);
      multiply<T>(d0, a, b);
      warpgroup_wait<1>();
      if (k > 0) ring.give_back_step(held);
      ring.wait(2);
      multiply<T>(d1, a, b + HALF_BYTES / 16);
      held = ring.slot;
      ring.advance(STEP);
    }
    warpgroup_wait<0>();
    ring.give_back_step(held);

    float mean[2] = {}, factor[2] = {};
    add_residual<T>(d0, ring, row);
    add_up(mean, d0);
    add_residual<T>(d1, ring, row);
    add_up(mean, d1);
    mean[0] = quad_sum(mean[0]) * (1.f / WIDTH);
    mean[1] = quad_sum(mean[1]) * (1.f / WIDTH);
    add_squares(factor, d0, mean);
    add_squares(factor, d1, mean);
    factor[0] = quad_sum(factor[0]);
    factor[1] = quad_sum(factor[1]);
    if (PAIR == 2) {
      u32 mine = exchange + (turn * ROWS + row + lane / 4) * 8, other_rank = blockIdx.x % 2 ^ 1;
      u32 there = of_block(mine, other_rank);
      if (lane % 4 == 0) {
        asm volatile("st.shared::cluster.v2.f32 [%0], {%1, %2};" ::"r"(there), "f"(mean[0]), "f"(factor[0]) : "memory");
        asm volatile("st.shared::cluster.v2.f32 [%0], {%1, %2};" ::"r"(there + 64), "f"(mean[1]), "f"(factor[1]) : "memory");
      }
      __syncwarp();
      if (lane == 0) barrier_arrive_there(of_block(exchanged, other_rank));
      barrier_wait_for_others(exchanged, turn);
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        float other, squares;
        asm volatile("ld.shared.v2.f32 {%0, %1}, [%2];" : "=f"(other), "=f"(squares) : "r"(mine + 64 * h) : "memory");
        float apart = other - mean[h];
        mean[h] += 0.5f * apart;
        factor[h] += squares + apart * apart * (WIDTH / 2);
      }
    }
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      factor[h] = rsqrtf(factor[h] * (1.f / (PAIR * WIDTH)) + p.eps);
      mean[h] *= -factor[h];
    }
    if (SECOND == APART) {
      Rows<T> rows(p.hidden, tile * ROWS + row, tokens, PAIR * WIDTH, column0);
      store_half<T>(d0, rows, 0);
      store_half<T>(d1, rows, HALF);
    }
    u32 normed[WIDTH / 4];
    normalise<T, 0>(normed, d0, factor, mean, parameters + 4 * SCALE, parameters + 4 * SHIFT);
    normalise<T, 1>(normed, d1, factor, mean, parameters + 4 * SCALE, parameters + 4 * SHIFT);
    auto store_hidden = [&] {
      store_rows(normed, Rows<T>(SECOND == APART ? p.out : p.hidden, tile * ROWS + row, tokens, PAIR * WIDTH, column0));
    };
    if (!CHAINED<SECOND>) {
      store_hidden();
    } else {
#pragma unroll 1
      for (int i = 0, chunks = p.columns / 128, n = first_of<PAIR>(chunks); i < chunks; ++i, n = next_of(n, chunks)) {
        float d[64];
        take_turn();
        warpgroup_arrive();
#pragma unroll
        for (int block = 0; block < BLOCKS; ++block) {
          ring.wait();
          u64 b = descriptor_swizzled(ring.at());
#pragma unroll
          for (int k = 0; k < 4; ++k) {
            int at = 16 * block + 4 * k;
            u32 a[4] = {normed[at], normed[at + 1], normed[at + 2], normed[at + 3]};
            warpgroup_mma<T, 128>(d, a, b + 2 * k, block + k > 0);
          }
          warpgroup_commit();
          if (block > 0) {
            warpgroup_wait<1>();
            ring.give_back(held);
          }
          held = ring.slot;
          ring.advance(1);
        }
        give_turn();
        warpgroup_wait<0>();
        ring.give_back(held);
        if (i == 0) store_hidden();
        store_sums<T, SECOND>(d, parameters + 4 * (SECOND_BIAS + n * 128),
                              Rows<T>(p.out, tile * ROWS + row, tokens, p.columns, n * 128));
      }
    }
    for (int i = unused_slots(p); i > 0; --i) {
      ring.wait();
      ring.give_back(ring.slot);
      ring.advance(1);
    }
  }
}

template <class T, int SECOND, int PAIR> DEVICE void rowwise(const RowwiseArgs& p) {
  extern __shared__ __align__(1024) unsigned char memory[];
  __shared__ __align__(8) u64 barriers[2 * SLOTS + 1];
  __shared__ float2 exchange[PAIR == 2 ? 2 * ROWS : 1];
  u32 tiles_at = shared_address(memory), full = shared_address(barriers), empty = full + 8 * SLOTS;
  u32 exchanged = empty + 8 * SLOTS;
  u32 parameters = tiles_at + SLOTS * TILE_BYTES;
  int column0 = blockIdx.x % PAIR * WIDTH;
  float* values = (float*)(memory + SLOTS * TILE_BYTES);
  for (int i = threadIdx.x; i < WIDTH; i += blockDim.x) {
    values[i] = p.first_bias[column0 + i];
    values[SCALE + i] = p.scale[column0 + i];
    values[SHIFT + i] = p.shift ? p.shift[column0 + i] : 0.f;
  }
  if (CHAINED<SECOND>)
    for (int i = threadIdx.x; i < p.columns; i += blockDim.x) values[SECOND_BIAS + i] = p.second_bias[i];
  if (threadIdx.x == 0) {
    for (int i = 0; i < SLOTS; ++i) {
      barrier_init(full + 8 * i, 1);
      barrier_init(empty + 8 * i, 8);
    }
    barrier_init(exchanged, 8);
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  }
  if (PAIR == 2) cluster_sync();
  else __syncthreads();
  release_next();
  Ring ring = {tiles_at, full, empty, 0, 0};
  int tiles = (p.batch->tokens + ROWS - 1) / ROWS;
  int first = blockIdx.x / PAIR, count = gridDim.x / PAIR;
  if (threadIdx.x >= 256) {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 24;");
    if (threadIdx.x == 256) {
      produce<PAIR>(p, ring, first, count, tiles, column0);
    }
  } else {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 240;");
    consume<T, SECOND, PAIR>(p, ring, parameters, shared_address(exchange), exchanged, first, count, tiles, column0);
  }
  // A block's shared memory stays until its peer has no more to write there.
  if (PAIR == 2) {
    __syncwarp();
    cluster_sync();
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
  ENTRY(T, name, APART, apart, 1, )   \
  ENTRY(T, name, NOTHING, norm, 2, __cluster_dims__(2, 1, 1)) \
  ENTRY(T, name, APART, apart, 2, __cluster_dims__(2, 1, 1))
FORMAT(Half, f16)
FORMAT(Bf16, bf16)
#endif
