// The small encoder (hidden 128, two heads of 64) on Hopper for sequences of any length, as one
// kernel per layer and one in front of them.
//
// Tiles are 128 neighbouring rows of the batch, whatever sequences these belong to, so that nothing
// is lost to the packing. Keys and values go through global memory, which at this size is the L2
// cache, in the layout in which the tensor cores take them: a block of 64 rows is a chunk of 16 KB
// for each head, which arrives in the same ring as the weights. Queries are made where they are
// used. Between two kernels there are thus, for each row, 512 bytes of keys and values, which every
// tile of the row's sequence reads, and 256 bytes of the residual state in the order in which one
// thread writes and the same thread of the next kernel reads them.
//
// A tile of one layer costs 22 chunks of weights and two for each block of 64 rows that its
// sequences have: 3 KB and, for a sequence of 512 tokens, 2 KB a row from the L2 cache.
//
// Shared memory: 64 KB in which the two warpgroups lay out keys and values on their way out, and 8
// chunks.
#include "tile.cuh"

constexpr int GROUPS = 2, TILE_ROWS = 64 * GROUPS;

struct LayersArgs {
  const Batch* batch;
  const void* word;
  const void* position;
  const void* token_type;
  const unsigned char* chunks; // as `FusedArgs` has them
  const float* parameters;
  unsigned char* states;                 // rows x 128; in order only after the last layer
  const unsigned char* from[HEADS];      // keys and values of this layer, blocks of 64 rows
  unsigned char* to[HEADS];              // and of the next one
  int layer, layers, inner, stages, tokens; // the layer is -1 for the kernel in front
  float eps;
};

// Which rows of the batch a row sees. One behind the last token sees only itself; nobody reads what
// becomes of it.
struct Span {
  int low, high;
  DEVICE Span(const LayersArgs& p, int row) : low(row), high(row + 1) {
    if (row < p.tokens) low -= part(p.batch, p.batch->places)[row], high = part(p.batch, p.batch->ends)[row];
  }
};
// The blocks of 64 rows that hold all that neighbouring rows see.
struct Blocks {
  int begin, end;
  DEVICE Blocks(const LayersArgs& p, int first, int count)
      : begin(Span(p, first).low / 64), end((Span(p, first + count - 1).high + 63) / 64) {}
};

template <bool FRONT> DEVICE void produce(const LayersArgs& p, Ring ring) {
  if (threadIdx.x % 32 != 0) return;
  ring.phase = 1; // all slots are free at first
  auto fetch = [&](const unsigned char* from) {
    u32 full = ring.full + 8 * ring.slot, to = ring.memory + ring.slot * CHUNK_BYTES;
    barrier_wait(ring.empty + 8 * ring.slot, ring.phase);
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(full), "r"(CHUNK_BYTES) : "memory");
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(to),
                 "l"(from), "r"(CHUNK_BYTES), "r"(full) : "memory");
    ring.next();
  };
  int per_layer = 8 + 2 * (p.inner / 64);
  auto weights = [&](int layer, int first, int last) {
    for (int chunk = first; chunk < last; ++chunk) fetch(p.chunks + (u64)(layer * per_layer + chunk) * CHUNK_BYTES);
  };
  for (int tile = blockIdx.x; tile * TILE_ROWS < p.tokens; tile += gridDim.x) {
    if (!FRONT) {
      weights(p.layer, 0, 2);
      wait_for_previous();
      Blocks all(p, tile * TILE_ROWS, TILE_ROWS);
#pragma unroll
      for (int head = 0; head < HEADS; ++head)
        for (int b = all.begin; b < all.end; ++b) fetch(p.from[head] + (u64)b * CHUNK_BYTES);
      weights(p.layer, 6, per_layer);
    }
    if (p.layer + 1 < p.layers) weights(p.layer + 1, 2, 6);
  }
}

// This thread's part of the states of a block of 64 rows.
DEVICE uint4* part_of_states(const LayersArgs& p, int block) {
  return (uint4*)(p.states + (u64)block * CHUNK_BYTES) + threadIdx.x / 32 % 4 * 256 + threadIdx.x % 32;
}

// The states as rows, 16 bytes a store.
DEVICE void store_rows(const LayersArgs& p, int row, const u32 (&state)[8][4]) {
#pragma unroll
  for (int h = 0; h < 2; ++h)
#pragma unroll
    for (int k = 0; k < 8; k += 2) {
      u32 w[4] = {state[k][h], state[k][2 + h], state[k + 1][h], state[k + 1][2 + h]};
      quad_transpose(w);
      unsigned char* to = p.states + (u64)(row + 8 * h) * (2 * HIDDEN) + k * 32 + threadIdx.x % 4 * 16;
      *(uint4*)to = make_uint4(w[0], w[1], w[2], w[3]);
    }
}

template <class T, bool FRONT> DEVICE void consume(const LayersArgs& p, Ring ring, unsigned char* memory) {
  int warp = threadIdx.x / 32, lane = threadIdx.x % 32, group = warp / 4;
  bool sender = threadIdx.x % 128 == 0;
  u32 outgoing = shared_address(memory) + group * BLOCK_BYTES;
  const float* parameters = p.parameters + 2 * HIDDEN + (u64)(FRONT ? 0 : p.layer) * (UP_BIAS + p.inner);
  wait_for_previous();

  for (int tile = blockIdx.x; tile * TILE_ROWS < p.tokens; tile += gridDim.x) {
    int block = tile * GROUPS + group, row0 = block * 64 + warp % 4 * 16 + lane / 4; // and eight rows further
    u32 state[8][4];
    if (FRONT) {
      auto token = [&](int row) {
        if (row >= p.tokens) return (u64)0;
        return (u64)part(p.batch, p.batch->positions)[row] << 32 | part(p.batch, p.batch->ids)[row];
      };
      float x[64];
      embed<T>(x, p, token(row0), token(row0 + 8));
      normalise(x, p.parameters, p.eps);
      as_operand<T, 128>(state, x);
    } else {
      const uint4* stored = part_of_states(p, block);
#pragma unroll
      for (int k = 0; k < 8; ++k) {
        uint4 v = stored[32 * k];
        state[k][0] = v.x, state[k][1] = v.y, state[k][2] = v.z, state[k][3] = v.w;
      }
      Span upper(p, row0), lower(p, row0 + 8);
      int low[2] = {upper.low, lower.low}, high[2] = {upper.high, lower.high};
      Blocks all(p, tile * TILE_ROWS, TILE_ROWS), own(p, block * 64, 64);
      u32 context[HEADS][4][4], query[HEADS][4][4];
      project_queries<T>(ring, query, state, parameters + QKV_BIAS);
#pragma unroll
      for (int head = 0; head < HEADS; ++head) {
        Attention attention;
        attention.begin();
#pragma unroll 1
        for (int b = all.begin; b < all.end; ++b) {
          barrier_wait(ring.full + 8 * ring.slot, ring.phase);
          if (b >= own.begin && b < own.end) {
            bool seen = b * 64 >= max(low[0], low[1]) && b * 64 + 64 <= min(high[0], high[1]);
            bool whole = __all_sync(0xffffffffu, seen);
            attention.pass<T>(query[head], ring.memory + ring.slot * CHUNK_BYTES, b * 64, low, high, whole);
          }
          __syncwarp();
          if (lane == 0) barrier_arrive(ring.empty + 8 * ring.slot);
          ring.next();
        }
        attention.end<T>(context[head]);
      }
      float x[64];
      finish_layer<T>(ring, x, state, context, parameters, p.inner, p.eps);
      if (p.layer + 1 == p.layers) {
        store_rows(p, row0, state);
        continue;
      }
    }
    uint4* stored = part_of_states(p, block);
#pragma unroll
    for (int k = 0; k < 8; ++k) stored[32 * k] = make_uint4(state[k][0], state[k][1], state[k][2], state[k][3]);
    // What the last tile sent has left shared memory before this one's is written.
    if (sender) asm volatile("cp.async.bulk.wait_group.read 0;" ::: "memory");
    named_sync(2 + group, 128);
    const float* next = parameters + (FRONT ? 0 : UP_BIAS + p.inner);
    project_keys_values<T>(ring, outgoing, warp % 4 * 16, state, next + QKV_BIAS);
    publish();
    named_sync(2 + group, 128);
    if (sender) {
#pragma unroll
      for (int head = 0; head < HEADS; ++head)
        asm volatile("cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], %2;" ::"l"(p.to[head] + (u64)block * CHUNK_BYTES),
                     "r"(outgoing + head * CHUNK_BYTES), "r"(CHUNK_BYTES) : "memory");
      asm volatile("cp.async.bulk.commit_group;" ::: "memory");
    }
  }
  if (sender) asm volatile("cp.async.bulk.wait_group 0;" ::: "memory");
}

template <class T, bool FRONT> DEVICE void layers(const LayersArgs& p) {
  extern __shared__ __align__(1024) unsigned char memory[];
  __shared__ __align__(8) u64 barriers[32];
  int warp = threadIdx.x / 32;
  Ring ring = {shared_address(memory) + GROUPS * BLOCK_BYTES, shared_address(barriers), shared_address(barriers + 16),
               p.stages, 0, 0};
  if (threadIdx.x == 0) {
    for (int i = 0; i < p.stages; ++i) {
      barrier_init(ring.full + 8 * i, 1);
      barrier_init(ring.empty + 8 * i, 4 * GROUPS);
    }
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  }
  __syncthreads();
  release_next();
  if (warp >= 4 * GROUPS) {
    give_registers<GROUPS>();
    if (warp == 4 * GROUPS) produce<FRONT>(p, ring);
  } else {
    take_registers<GROUPS>();
    consume<T, FRONT>(p, ring, memory);
  }
}

#define LAYERS(T, name)                                                                                  \
  extern "C" __global__ void __launch_bounds__(384, 1) layers_front_##name(__grid_constant__ const LayersArgs p) { \
    layers<T, true>(p);                                                                                  \
  }                                                                                                      \
  extern "C" __global__ void __launch_bounds__(384, 1) layers_one_##name(__grid_constant__ const LayersArgs p) {   \
    layers<T, false>(p);                                                                                 \
  }
LAYERS(Half, f16)
LAYERS(Bf16, bf16)
