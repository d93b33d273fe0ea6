// A small encoder (hidden 128, two heads of 64) as one kernel.
//
// A block keeps a tile of whole sequences, 64 token rows to each of its warpgroups, in registers and
// shared memory from the token ids to the pooled vectors. Each thread holds two rows' worth of a
// product's sums in the layout in which the tensor cores take them back as the next operand, so the
// feed-forward network's inner state never leaves the registers; only keys and values go through
// shared memory. The weights stream from the L2 cache in chunks of 16 KB that one further warp
// requests ahead of use; all warpgroups of the block share each chunk.
//
// The two numbers, for 64-token sequences: 54.5 MFLOP a sequence, so that 4 M/s are 218 TFLOP/s, 28 %
// of the 780 that an H200's matrix product reaches; and 786 KB of weights per tile of 128 rows, so
// that 4 M/s are 1.6 TB/s from the L2 cache.
//
// Shared memory for W warpgroups: W x 32 KB of keys and values (reused for the states at the end),
// and 16 KB chunks of weights beside them: 64 + 8 x 16 = 192 of Hopper's 227 KB for W = 2, and
// 32 + 4 x 16 = 96 KB for W = 1, of which two blocks share a multiprocessor. Three warpgroups leave
// each thread 160 registers, which is too few, and were no faster.
#include "tile.cuh"

struct FusedArgs {
  const u64* tokens;   // id | position << 32 | first row << 48 | row behind the last << 56, rows of the tile
  const u32* tiles;    // per tile and one more: first token; first sequence | crossing << 31
  const u32* offsets;  // first token of each sequence, and the number of tokens
  float* vectors;      // sequences x 128, or null
  void* hidden;        // tokens x 128, or null
  const void* word;
  const void* position;
  const void* token_type;
  const unsigned char* chunks; // layer by layer, in the order of use
  const float* parameters;     // embedding norm, then layer by layer; see the offsets below
  int tile_count, layers, inner, mode, skip, stages;
  float eps;
};

template <class T, int GROUPS> DEVICE void produce(const FusedArgs& p, Ring ring) {
  int lane = threadIdx.x % 32, per_layer = 8 + 2 * (p.inner / 64);
#if __CUDA_ARCH__ >= 900
  if (lane != 0) return;
#endif
  ring.phase = 1; // all slots are free at first
  for (int tile = blockIdx.x; tile < p.tile_count; tile += gridDim.x)
    for (int chunk = 0; chunk < p.layers * per_layer; ++chunk) {
      const unsigned char* from = p.chunks + (u64)chunk * CHUNK_BYTES;
      u32 full = ring.full + 8 * ring.slot, to = ring.memory + ring.slot * CHUNK_BYTES;
      barrier_wait(ring.empty + 8 * ring.slot, ring.phase);
#if __CUDA_ARCH__ >= 900
      asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(full), "r"(CHUNK_BYTES) : "memory");
      asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(to),
                   "l"(from), "r"(CHUNK_BYTES), "r"(full) : "memory");
#else
#pragma unroll 8
      for (int at = lane * 16; at < CHUNK_BYTES; at += 512) copy_async(to + at, from + at, true);
      asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" ::"r"(full) : "memory");
#endif
      ring.next();
    }
#if __CUDA_ARCH__ < 900
  asm volatile("cp.async.wait_all;" ::: "memory");
#endif
}

enum Pooling { CLS = 0, MAX = 1, MEAN = 2, MEAN_SQRT = 3, WEIGHTED = 4, LAST = 5 };

// Column `c` of the states in shared memory, rows [first, last) of the tile.
DEVICE float pooled(const float* states, int c, int first, int last, int mode, int skip) {
  auto at = [&](int row) { return states[row * HIDDEN + (c ^ (row & 7) << 3)]; };
  int length = last - first, start = first + (skip < length ? skip : 0);
  if (mode == CLS) return at(start);
  if (mode == LAST) return at(last - 1);
  float count = last - start, value = 0.f;
  if (mode == MAX) {
    value = at(start);
    for (int row = start + 1; row < last; ++row) {
      float x = at(row);
      value = x > value || x != x ? x : value; // keeps NaN
    }
    return value;
  }
  if (mode == WEIGHTED) {
    for (int row = start; row < last; ++row) value += at(row) * (row - first + 1);
    return value / (0.5f * count * (start - first + 1 + length));
  }
#pragma unroll 8
  for (int row = start; row < last; ++row) value += at(row);
  return value / (mode == MEAN ? count : sqrtf(count));
}

template <class T, int GROUPS>
DEVICE void consume(const FusedArgs& p, Ring ring, unsigned char* memory) {
  int thread = threadIdx.x, warp = thread / 32, lane = thread % 32, g = lane / 4, t = lane % 4;
  int group = warp / 4;
  u32 kv = shared_address(memory);
  float* states = (float*)memory;
  int row0 = group * 64 + warp % 4 * 16 + g; // and eight rows further

  for (int tile = blockIdx.x; tile < p.tile_count; tile += gridDim.x) {
    u32 first = p.tiles[2 * tile], count = p.tiles[2 * tile + 2] - first;
    u32 sequence0 = p.tiles[2 * tile + 1], sequence1 = p.tiles[2 * tile + 3] & 0x7fffffffu;
    bool crossing = sequence0 >> 31;
    sequence0 &= 0x7fffffffu;
    // A row behind the tile's last token sees only itself; nobody reads what becomes of it.
    auto token = [&](u32 row) {
      return row < count ? p.tokens[first + row] : (u64)row << 48 | (u64)(row + 1) << 56;
    };
    u64 token0 = token(row0), token1 = token(row0 + 8);
    int low[2] = {(int)(token0 >> 48 & 0xff), (int)(token1 >> 48 & 0xff)};
    int high[2] = {(int)(token0 >> 56), (int)(token1 >> 56)};
    int block_low = group, block_high = group + 1;
    if (crossing) {
      block_low = (int)(token(group * 64) >> 48 & 0xff) / 64;
      block_high = ((int)(token(group * 64 + 63) >> 56) + 63) / 64;
    }
    auto sync = [&] {
      if (crossing) named_sync(1, GROUPS * 128);
      else named_sync(2 + group, 128);
    };

    float x[64];
    u32 state[8][4];
    embed<T>(x, p, token0, token1);
    normalise(x, p.parameters, p.eps);
    as_operand<T, 128>(state, x);
    const float* parameters = p.parameters + 2 * HIDDEN;

    for (int layer = 0; layer < p.layers; ++layer) {
      u32 context[HEADS][4][4], query[HEADS][4][4];
      project_queries<T>(ring, query, state, parameters + QKV_BIAS);
      // The states (pooling) or the previous layer's keys and values have been read by now: every
      // reader's barrier lies behind its last read.
      project_keys_values<T>(ring, kv + group * BLOCK_BYTES, warp % 4 * 16, state, parameters + QKV_BIAS);
      publish();
      sync();
#pragma unroll
      for (int head = 0; head < HEADS; ++head) {
        Attention attention;
        attention.begin();
        for (int b = block_low; b < block_high; ++b)
          attention.pass<T>(query[head], kv + b * BLOCK_BYTES + head * 16384, b * 64, low, high, false);
        attention.end<T>(context[head]);
      }
      sync();
      finish_layer<T>(ring, x, state, context, parameters, p.inner, p.eps);
      parameters += UP_BIAS + p.inner;
    }

    if (p.hidden) {
#pragma unroll
      for (int h = 0; h < 2; ++h)
        if (row0 + 8 * h < count) {
          T* to = (T*)p.hidden + (u64)(first + row0 + 8 * h) * HIDDEN + 2 * t;
#pragma unroll
          for (int j = 0; j < 16; ++j) store2(to + 8 * j, x[4 * j + 2 * h], x[4 * j + 2 * h + 1]);
        }
    }
    if (p.vectors) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        int row = row0 + 8 * h;
#pragma unroll
        for (int j = 0; j < 16; ++j)
          *(float2*)(states + row * HIDDEN + ((8 * j + 2 * t) ^ (row & 7) << 3)) =
              make_float2(x[4 * j + 2 * h], x[4 * j + 2 * h + 1]);
      }
      sync();
      for (u32 s = sequence0; s < sequence1; ++s) {
        int begin = p.offsets[s] - first, end = p.offsets[s + 1] - first;
        if (begin / 64 != group) continue;
        int c = thread % 128;
        p.vectors[(u64)s * HIDDEN + c] = pooled(states, c, begin, end, p.mode, p.skip);
      }
      sync();
    }
  }
}

template <class T, int GROUPS> DEVICE void fused(const FusedArgs& p) {
  extern __shared__ __align__(1024) unsigned char memory[];
  __shared__ __align__(8) u64 barriers[32];
  int thread = threadIdx.x, warp = thread / 32;
  Ring ring = {shared_address(memory) + GROUPS * BLOCK_BYTES, shared_address(barriers), shared_address(barriers + 16),
               p.stages, 0, 0};
  if (thread == 0) {
    for (int i = 0; i < p.stages; ++i) {
      barrier_init(ring.full + 8 * i, __CUDA_ARCH__ >= 900 ? 1 : 32);
      barrier_init(ring.empty + 8 * i, 4 * GROUPS);
    }
#if __CUDA_ARCH__ >= 900
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
#endif
  }
  __syncthreads();
  if (warp >= 4 * GROUPS) {
    give_registers<GROUPS>();
    if (warp == 4 * GROUPS) produce<T, GROUPS>(p, ring);
  } else {
    take_registers<GROUPS>();
    consume<T, GROUPS>(p, ring, memory);
  }
}

// One further warp fetches; on Hopper it comes with three idle ones, because registers change hands
// by whole warpgroups. Two of Hopper's blocks of one group share a multiprocessor.
#define FUSED(T, name, GROUPS)                                                                              \
  extern "C" __global__ void __launch_bounds__(GROUPS * 128 + (HOPPER ? 128 : 32), HOPPER && GROUPS == 1 ? 2 : 1) \
      fused_##GROUPS##_##name(FusedArgs p) {                                                                \
    fused<T, GROUPS>(p);                                                                                    \
  }
FUSED(Half, f16, 1)
FUSED(Bf16, bf16, 1)
#if HOPPER
FUSED(Half, f16, 2)
FUSED(Bf16, bf16, 2)
#endif

// Weights into the order of use: rows [n0, n0 + n) and columns [k0, k0 + k) of a matrix as
// [k / 8 chunks][n rows][8 columns]. Sixteen bytes a thread.
struct ArrangeArgs {
  const uint4* from;
  uint4* to;
  int stride, n0, k0, n, k; // the stride in columns
};
extern "C" __global__ void arrange(ArrangeArgs p) {
  int at = blockIdx.x * blockDim.x + threadIdx.x;
  if (at >= p.n * p.k / 8) return;
  int chunk = at / p.n, row = at % p.n;
  p.to[at] = p.from[((u64)(p.n0 + row) * p.stride + p.k0) / 8 + chunk];
}
