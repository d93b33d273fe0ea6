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
#include "common.cuh"
#if __CUDA_ARCH__ == 900
#include "warpgroup.cuh"
#define HOPPER 1
#else
#define HOPPER 0
#endif

constexpr int HIDDEN = 128, HEADS = 2, CHUNK_BYTES = 16384, BLOCK_BYTES = 32768;

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

// Offsets of a layer's parameters; scales and biases, zeros where the model has none.
constexpr int QKV_BIAS = 0, OUT_BIAS = 384, NORM1 = 512, DOWN_BIAS = 768, NORM2 = 896, UP_BIAS = 1152;

// Where the ring of weight chunks stands for one reader or writer.
struct Ring {
  u32 memory, full, empty;
  int stages, slot;
  u32 phase;
  DEVICE void next() {
    if (++slot == stages) {
      slot = 0;
      phase ^= 1;
    }
  }
};

// d (+)= a * b^T for this warp's 16 rows; b in shared memory, 16-byte columns `leading` bytes apart.
template <class T, int N, int STEPS>
DEVICE void multiply(float (&d)[N / 2], const u32 (&a)[STEPS][4], u32 b, u32 leading, bool accumulate) {
#if HOPPER
  warpgroup_arrive();
#pragma unroll
  for (int k = 0; k < STEPS; ++k)
    warpgroup_mma<T, N>(d, a[k], descriptor(b + 2 * k * leading, leading), accumulate || k > 0);
  warpgroup_commit();
  warpgroup_wait<0>();
#else
  int lane = threadIdx.x % 32;
  if (!accumulate) {
#pragma unroll
    for (int i = 0; i < N / 2; ++i) d[i] = 0.f;
  }
  u32 at = b + lane / 8 % 2 * leading + (lane % 8 + lane / 16 * 8) * 16;
#pragma unroll
  for (int k = 0; k < STEPS; ++k)
#pragma unroll
    for (int j = 0; j < N / 16; ++j) {
      u32 f[4];
      ldmatrix(f, at + 2 * k * leading + j * 256);
      float(&c0)[4] = *(float(*)[4]) & d[8 * j];
      float(&c1)[4] = *(float(*)[4]) & d[8 * j + 4];
      mma<T>(c0, a[k], f[0], f[1]);
      mma<T>(c1, a[k], f[2], f[3]);
    }
#endif
}

// The same with the next chunk of weights, which is given back afterwards.
template <class T, int N, int STEPS>
DEVICE void multiply_chunk(Ring& ring, float (&d)[N / 2], const u32 (&a)[STEPS][4], bool accumulate) {
  barrier_wait(ring.full + 8 * ring.slot, ring.phase);
  multiply<T, N, STEPS>(d, a, ring.memory + ring.slot * CHUNK_BYTES, N * 16, accumulate);
  __syncwarp();
  if (threadIdx.x % 32 == 0) barrier_arrive(ring.empty + 8 * ring.slot);
  ring.next();
}

// Sums as the next product's operand.
template <class T, int N> DEVICE void as_operand(u32 (&a)[N / 16][4], const float (&d)[N / 2]) {
#pragma unroll
  for (int k = 0; k < N / 16; ++k)
#pragma unroll
    for (int i = 0; i < 4; ++i) a[k][i] = Format<T>::pack(d[8 * k + 2 * i], d[8 * k + 2 * i + 1]);
}

// d += parameters, by column.
template <int N> DEVICE void add_bias(float (&d)[N / 2], const float* bias) {
  int t = threadIdx.x % 4;
#pragma unroll
  for (int j = 0; j < N / 8; ++j) {
    float2 b = __ldg((const float2*)(bias + 8 * j + 2 * t));
    d[4 * j] += b.x, d[4 * j + 1] += b.y, d[4 * j + 2] += b.x, d[4 * j + 3] += b.y;
  }
}

// LayerNorm of this thread's two rows; scale, then bias 128 floats behind it.
DEVICE void normalise(float (&x)[64], const float* parameters, float eps) {
  int t = threadIdx.x % 4;
  float mean[2] = {}, factor[2] = {};
#pragma unroll
  for (int i = 0; i < 64; ++i) mean[i / 2 % 2] += x[i];
#pragma unroll
  for (int h = 0; h < 2; ++h) mean[h] = quad_sum(mean[h]) * (1.f / HIDDEN);
#pragma unroll
  for (int i = 0; i < 64; ++i) {
    x[i] -= mean[i / 2 % 2];
    factor[i / 2 % 2] += x[i] * x[i];
  }
#pragma unroll
  for (int h = 0; h < 2; ++h) factor[h] = rsqrtf(quad_sum(factor[h]) * (1.f / HIDDEN) + eps);
#pragma unroll
  for (int j = 0; j < 16; ++j) {
    float2 scale = __ldg((const float2*)(parameters + 8 * j + 2 * t));
    float2 bias = __ldg((const float2*)(parameters + HIDDEN + 8 * j + 2 * t));
#pragma unroll
    for (int i = 0; i < 4; ++i)
      x[4 * j + i] = x[4 * j + i] * factor[i / 2] * (i % 2 ? scale.y : scale.x) + (i % 2 ? bias.y : bias.x);
  }
}

// x = norm(x + bias + what the residual stream held); the stream then holds x.
template <class T>
DEVICE void residual_norm(float (&x)[64], u32 (&state)[8][4], const float* bias, const float* norm, float eps) {
  add_bias<128>(x, bias);
#pragma unroll
  for (int k = 0; k < 8; ++k)
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      x[8 * k + 2 * i] += Format<T>::low(state[k][i]);
      x[8 * k + 2 * i + 1] += Format<T>::high(state[k][i]);
    }
  normalise(x, norm, eps);
  as_operand<T, 128>(state, x);
}

// Eight-by-eight blocks of sums into shared memory, one row's eight columns to 16 bytes, or one
// column's eight rows if transposed.
template <bool TRANSPOSED> DEVICE void store_blocks(u32 address, const u32 (&a)[4]) {
#if __CUDA_ARCH__ >= 900
  if (TRANSPOSED)
    asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1,%2,%3,%4};" ::"r"(address), "r"(a[0]),
                 "r"(a[1]), "r"(a[2]), "r"(a[3]) : "memory");
  else
    asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1,%2,%3,%4};" ::"r"(address), "r"(a[0]), "r"(a[1]),
                 "r"(a[2]), "r"(a[3]) : "memory");
#else
  // Lane l holds the addresses of row l%8 of block l/8, as for stmatrix: fetch that of each block.
  int lane = threadIdx.x % 32;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    u32 v = a[i];
    if (TRANSPOSED) asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(v) : "r"(v));
    u32 row = __shfl_sync(0xffffffffu, address, 8 * i + lane / 4);
    asm volatile("st.shared.b32 [%0], %1;" ::"r"(row + lane % 4 * 4), "r"(v) : "memory");
  }
#endif
}

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

template <class T> DEVICE void embed(float (&x)[64], const FusedArgs& p, u64 token0, u64 token1) {
  int t = threadIdx.x % 4;
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    u64 token = h ? token1 : token0;
    const T* word = (const T*)p.word + (u64)(u32)token * HIDDEN + 2 * t;
    const T* place = (const T*)p.position + (u64)(u16)(token >> 32) * HIDDEN + 2 * t;
    const T* type = (const T*)p.token_type + 2 * t;
#pragma unroll
    for (int j = 0; j < 16; ++j) {
      float a, b, c, d;
      load2(word + 8 * j, a, b);
      load2(place + 8 * j, c, d);
      a += c, b += d;
      if (p.token_type) {
        load2(type + 8 * j, c, d);
        a += c, b += d;
      }
      x[4 * j + 2 * h] = a, x[4 * j + 2 * h + 1] = b;
    }
  }
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

// A Hopper multiprocessor gives each of its four schedulers a quarter of the registers, so that one
// further warp costs as much as four. The warps that only fetch give theirs to those that compute.
template <int GROUPS> DEVICE void give_registers() {
#if HOPPER
  asm volatile("setmaxnreg.dec.sync.aligned.u32 24;");
#endif
}
template <int GROUPS> DEVICE void take_registers() {
#if HOPPER
  if (GROUPS == 2) asm volatile("setmaxnreg.inc.sync.aligned.u32 240;");
  else asm volatile("setmaxnreg.inc.sync.aligned.u32 232;");
#endif
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
      u32 context[8][4];
      {
        u32 query[2][4][4];
        constexpr float SCALE = 0.125f * 1.4426950408889634f; // 1 / sqrt(64), and the softmax in base 2
#pragma unroll
        for (int head = 0; head < HEADS; ++head) {
          float d[32];
          multiply_chunk<T, 64, 8>(ring, d, state, false);
          add_bias<64>(d, parameters + QKV_BIAS + 64 * head);
#pragma unroll
          for (int i = 0; i < 32; ++i) d[i] *= SCALE;
          as_operand<T, 64>(query[head], d);
        }
        // The states (pooling) or the previous layer's keys and values have been read by now: every
        // reader's barrier lies behind its last read.
        u32 block = kv + group * BLOCK_BYTES;
        int row = warp % 4 * 16; // of this warp in the block
#pragma unroll
        for (int head = 0; head < HEADS; ++head) {
          float d[32];
          u32 a[4][4];
          multiply_chunk<T, 64, 8>(ring, d, state, false);
          add_bias<64>(d, parameters + QKV_BIAS + 128 + 64 * head);
          as_operand<T, 64>(a, d);
          // Keys: [16 chunks of dims][64 keys][8 dims].
#pragma unroll
          for (int k = 0; k < 4; ++k) {
            int chunk = head * 8 + 2 * k + lane / 16, key = row + lane % 16;
            store_blocks<false>(block + chunk * 1024 + key * 16, a[k]);
          }
        }
#pragma unroll
        for (int head = 0; head < HEADS; ++head) {
          float d[32];
          u32 a[4][4];
          multiply_chunk<T, 64, 8>(ring, d, state, false);
          add_bias<64>(d, parameters + QKV_BIAS + 256 + 64 * head);
          as_operand<T, 64>(a, d);
          // Values: [8 chunks of keys][128 dims][8 keys].
#pragma unroll
          for (int k = 0; k < 4; ++k) {
            int chunk = row / 8 + lane / 8 % 2, dim = head * 64 + k * 16 + lane / 16 * 8 + lane % 8;
            store_blocks<true>(block + 16384 + chunk * 2048 + dim * 16, a[k]);
          }
        }
        publish();
        sync();

#pragma unroll
        for (int head = 0; head < HEADS; ++head) {
          float out[32], top[2] = {-1e30f, -1e30f}, sum[2] = {0.f, 0.f};
#pragma unroll
          for (int i = 0; i < 32; ++i) out[i] = 0.f;
          for (int b = block_low; b < block_high; ++b) {
            float s[32];
            u32 weights[4][4];
            u32 keys = kv + b * BLOCK_BYTES;
            multiply<T, 64, 4>(s, query[head], keys + head * 8192, 1024, false);
#pragma unroll
            for (int h = 0; h < 2; ++h) {
              float most = top[h];
#pragma unroll
              for (int j = 0; j < 8; ++j)
#pragma unroll
                for (int e = 0; e < 2; ++e) {
                  int key = b * 64 + 8 * j + 2 * t + e;
                  float& v = s[4 * j + 2 * h + e];
                  v = key >= low[h] && key < high[h] ? v : -2e30f;
                  most = fmaxf(most, v);
                }
              most = quad_max(most);
              float shrink = exp2_fast(top[h] - most), total = 0.f;
              top[h] = most;
#pragma unroll
              for (int j = 0; j < 8; ++j)
#pragma unroll
                for (int e = 0; e < 2; ++e) {
                  float& v = s[4 * j + 2 * h + e];
                  v = exp2_fast(v - most); // the mask lies below every `most`: exactly 0
                  total += v;
                  out[4 * j + 2 * h + e] *= shrink;
                }
              sum[h] = sum[h] * shrink + total;
            }
            as_operand<T, 64>(weights, s);
            multiply<T, 64, 4>(out, weights, keys + 16384 + head * 1024, 2048, true);
          }
          float factor[2] = {1.f / quad_sum(sum[0]), 1.f / quad_sum(sum[1])};
#pragma unroll
          for (int i = 0; i < 32; ++i) out[i] *= factor[i / 2 % 2];
          u32 a[4][4];
          as_operand<T, 64>(a, out);
#pragma unroll
          for (int k = 0; k < 4; ++k)
#pragma unroll
            for (int i = 0; i < 4; ++i) context[head * 4 + k][i] = a[k][i];
        }
        sync();
      }
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        u32 a[4][4];
#pragma unroll
        for (int k = 0; k < 4; ++k)
#pragma unroll
          for (int i = 0; i < 4; ++i) a[k][i] = context[half * 4 + k][i];
        multiply_chunk<T, 128, 4>(ring, x, a, half > 0);
      }
      residual_norm<T>(x, state, parameters + OUT_BIAS, parameters + NORM1, p.eps);

#pragma unroll 1
      for (int c = 0; c < p.inner / 64; ++c) {
        float d[32];
        u32 a[4][4];
        multiply_chunk<T, 64, 8>(ring, d, state, false);
        add_bias<64>(d, parameters + UP_BIAS + 64 * c);
#pragma unroll
        for (int i = 0; i < 32; ++i) d[i] = gelu(d[i]);
        as_operand<T, 64>(a, d);
        multiply_chunk<T, 128, 4>(ring, x, a, c > 0);
      }
      residual_norm<T>(x, state, parameters + DOWN_BIAS, parameters + NORM2, p.eps);
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
