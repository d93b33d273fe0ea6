// A tile of token rows of the small encoder (hidden 128, two heads of 64): 64 rows to a warpgroup.
//
// Each thread holds two rows' worth of a product's sums in the layout in which the tensor cores take
// them back as the next operand, so the feed-forward network's inner state never leaves the
// registers. What all rows share (weights, keys and values) arrives in a ring of chunks of 16 KB,
// filled by a warp that does nothing else; all warpgroups of the block share each chunk.
#pragma once
#include "common.cuh"
#if __CUDA_ARCH__ == 900
#include "warpgroup.cuh"
#define HOPPER 1
#else
#define HOPPER 0
#endif

constexpr int HIDDEN = 128, HEADS = 2, CHUNK_BYTES = 16384, BLOCK_BYTES = 32768;

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

// Sums of the embeddings of two tokens: id | position << 32. Tables of `p` may be null but for the first.
template <class T, class Args> DEVICE void embed(float (&x)[64], const Args& p, u64 token0, u64 token1) {
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

// The queries of both heads, scaled for a softmax in base 2.
template <class T>
DEVICE void project_queries(Ring& ring, u32 (&query)[HEADS][4][4], const u32 (&state)[8][4], const float* bias) {
  constexpr float SCALE = 0.125f * 1.4426950408889634f; // 1 / sqrt(64), and the softmax in base 2
#pragma unroll
  for (int head = 0; head < HEADS; ++head) {
    float d[32];
    multiply_chunk<T, 64, 8>(ring, d, state, false);
    add_bias<64>(d, bias + 64 * head);
#pragma unroll
    for (int i = 0; i < 32; ++i) d[i] *= SCALE;
    as_operand<T, 64>(query[head], d);
  }
}

// Keys and values of this warp's rows, the first of which is `row`, into a block of 64 rows. A head
// takes 16 KB of it: keys as [8 chunks of dims][64 keys][8 dims], then values as [8 chunks of
// keys][64 dims][8 keys]. A value that the format does not hold would reach other sequences' rows,
// since a weight of zero does not undo it: so that only its own sequence has no result, zeros take its
// place, and what is no number the place of its row's keys.
template <class T> DEVICE void project_keys_values(Ring& ring, u32 block, int row, const u32 (&state)[8][4], const float* bias) {
  int lane = threadIdx.x % 32;
#pragma unroll
  for (int head = 0; head < HEADS; ++head) {
    float d[32];
    u32 a[4][4];
    multiply_chunk<T, 64, 8>(ring, d, state, false);
    add_bias<64>(d, bias + 128 + 64 * head);
    as_operand<T, 64>(a, d);
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      int chunk = 2 * k + lane / 16, key = row + lane % 16;
      store_blocks<false>(block + head * 16384 + chunk * 1024 + key * 16, a[k]);
    }
  }
#pragma unroll
  for (int head = 0; head < HEADS; ++head) {
    float d[32];
    u32 a[4][4];
    multiply_chunk<T, 64, 8>(ring, d, state, false);
    add_bias<64>(d, bias + 256 + 64 * head);
    as_operand<T, 64>(a, d);
    u32 wrong[2] = {}; // by row: zeros unless a value is no finite number
#pragma unroll
    for (int k = 0; k < 4; ++k)
#pragma unroll
      for (int i = 0; i < 4; ++i) wrong[i % 2] = Format<T>::plus_zero_times(wrong[i % 2], a[k][i]);
    if (__any_sync(0xffffffffu, wrong[0] | wrong[1])) {
      __syncwarp(); // its other lanes have laid these keys
#pragma unroll
      for (int h = 0; h < 2; ++h)
        if (wrong[h]) {
#pragma unroll
          for (int k = 0; k < 4; ++k) a[k][h] = a[k][2 + h] = 0;
          u32 key = block + head * 16384 + (row + lane / 4 + 8 * h) * 16;
          asm volatile("st.shared.v4.b32 [%0], {%1, %1, %1, %1};" ::"r"(key), "r"(0x7fff7fff) : "memory");
        }
    }
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      int chunk = row / 8 + lane / 8 % 2, dim = k * 16 + lane / 16 * 8 + lane % 8;
      store_blocks<true>(block + head * 16384 + 8192 + chunk * 1024 + dim * 16, a[k]);
    }
  }
}

// One head's attention of this thread's two rows, with the softmax kept up to date.
struct Attention {
  float out[32], top[2], sum[2];
  DEVICE void begin() {
#pragma unroll
    for (int i = 0; i < 32; ++i) out[i] = 0.f;
#pragma unroll
    for (int h = 0; h < 2; ++h) top[h] = -1e30f, sum[h] = 0.f;
  }
  // Passes 64 keys and values, the first of which is row `first`; rows see those in [low, high),
  // which is all of them if `whole`.
  template <class T>
  DEVICE void pass(const u32 (&query)[4][4], u32 keys, int first, const int (&low)[2], const int (&high)[2], bool whole) {
    int t = threadIdx.x % 4;
    float s[32];
    u32 weights[4][4];
    multiply<T, 64, 4>(s, query, keys, 1024, false);
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      float most = top[h];
      auto find_most = [&](auto seen) {
#pragma unroll
        for (int j = 0; j < 8; ++j)
#pragma unroll
          for (int e = 0; e < 2; ++e) {
            float& v = s[4 * j + 2 * h + e];
            v = seen(first + 8 * j + 2 * t + e) ? v : -2e30f;
            most = fmaxf(most, v);
          }
      };
      if (whole) find_most([](int) { return true; });
      else find_most([&](int key) { return key >= low[h] && key < high[h]; });
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
    multiply<T, 64, 4>(out, weights, keys + 8192, 1024, true);
  }
  // The result as half of the next product's operand.
  template <class T> DEVICE void end(u32 (&context)[4][4]) {
    float factor[2] = {1.f / quad_sum(sum[0]), 1.f / quad_sum(sum[1])};
#pragma unroll
    for (int i = 0; i < 32; ++i) out[i] *= factor[i / 2 % 2];
    as_operand<T, 64>(context, out);
  }
};

// What follows attention in a layer; leaves the layer's states in x and, rounded, in `state`.
template <class T>
DEVICE void finish_layer(Ring& ring, float (&x)[64], u32 (&state)[8][4], const u32 (&context)[HEADS][4][4],
                         const float* parameters, int inner, float eps) {
#pragma unroll
  for (int half = 0; half < 2; ++half) multiply_chunk<T, 128, 4>(ring, x, context[half], half > 0);
  residual_norm<T>(x, state, parameters + OUT_BIAS, parameters + NORM1, eps);
#pragma unroll 1
  for (int c = 0; c < inner / 64; ++c) {
    float d[32];
    u32 a[4][4];
    multiply_chunk<T, 64, 8>(ring, d, state, false);
    add_bias<64>(d, parameters + UP_BIAS + 64 * c);
#pragma unroll
    for (int i = 0; i < 32; ++i) d[i] = gelu(d[i]);
    as_operand<T, 64>(a, d);
    multiply_chunk<T, 128, 4>(ring, x, a, c > 0);
  }
  residual_norm<T>(x, state, parameters + DOWN_BIAS, parameters + NORM2, eps);
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
