// Attention over packed sequences, for every card since compute capability 8.0.
#pragma once
#include "common.cuh"

struct AttentionArgs {
  const void* qkv;
  void* context;
  const float* relative; // heads x (2 * positions - 1), or null
  const Batch* batch;
  int heads, head_dim, stride, context_stride;
  int window; // negative for none
  int positions;
  float scale;
};

// The two products of attention over 64 keys by the tensor cores, for 16 queries of a warp: queries,
// keys and values in shared memory, `ROW` bytes from one to the next.
//
// In 16 bits.
template <class T, int DIM> struct Products {
  static constexpr int ROW = DIM * 2 + 16; // the extra 16 bytes keep fragment loads free of bank conflicts
  static DEVICE void scores(float (&s)[8][4], u32 qs, u32 ks, int keys) {
    int lane = threadIdx.x % 32;
#pragma unroll
    for (int kk = 0; kk < DIM / 16; ++kk) {
      u32 a[4];
      ldmatrix(a, qs + (lane % 16) * ROW + (2 * kk + lane / 16) * 16);
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        if (j == 2 && keys <= 32) break;
        u32 b[4];
        ldmatrix(b, ks + (j * 16 + lane % 8 + lane / 16 * 8) * ROW + (2 * kk + lane / 8 % 2) * 16);
        mma<T>(s[2 * j], a, b[0], b[1]);
        mma<T>(s[2 * j + 1], a, b[2], b[3]);
      }
    }
  }
  static DEVICE void weigh(float (&out)[DIM / 8][4], const float (&s)[8][4], u32 vs, int keys) {
    int lane = threadIdx.x % 32;
#pragma unroll
    for (int kk = 0; kk < 4; ++kk) {
      if (kk == 2 && keys <= 32) break;
      u32 a[4] = {Format<T>::pack(s[2 * kk][0], s[2 * kk][1]), Format<T>::pack(s[2 * kk][2], s[2 * kk][3]),
                  Format<T>::pack(s[2 * kk + 1][0], s[2 * kk + 1][1]),
                  Format<T>::pack(s[2 * kk + 1][2], s[2 * kk + 1][3])};
#pragma unroll
      for (int j = 0; j < DIM / 16; ++j) {
        u32 b[4];
        ldmatrix_transposed(b, vs + (kk * 16 + lane % 16) * ROW + (2 * j + lane / 16) * 16);
        mma<T>(out[2 * j], a, b[0], b[1]);
        mma<T>(out[2 * j + 1], a, b[2], b[3]);
      }
    }
  }
  // Writes a row that the quad has, `h` of the fragments' two.
  static DEVICE void store(T* to, const float (&out)[DIM / 8][4], int h, float factor, bool inside, int width) {
    int t = threadIdx.x % 4;
#pragma unroll
    for (int j = 0; j < DIM / 8; j += 4) {
      u32 w[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) w[i] = Format<T>::pack(out[j + i][2 * h] * factor, out[j + i][2 * h + 1] * factor);
      if (width % 8 == 0) {
        quad_transpose(w);
        int d = (j + t) * 8;
        if (inside && d < width) *(uint4*)(to + d) = make_uint4(w[0], w[1], w[2], w[3]);
      } else {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          int d = (j + i) * 8 + 2 * t;
          if (inside && d < width) store1(to + d, Format<T>::low(w[i]));
          if (inside && d + 1 < width) store1(to + d + 1, Format<T>::high(w[i]));
        }
      }
    }
  }
};

DEVICE void load_shared(float (&v)[4], u32 at) {
  asm volatile("ld.shared.v4.f32 {%0,%1,%2,%3}, [%4];" : "=f"(v[0]), "=f"(v[1]), "=f"(v[2]), "=f"(v[3]) : "r"(at) : "memory");
}

// In f32, by three products of TF32 halves. What a product sums over may stand in any order, if it is
// the same in both operands, and so may the columns that it makes: each lane takes neighbours from
// shared memory, 16 bytes at a time. The tensor cores round towards zero whenever they add to a sum,
// so that few products are summed there, those with a low half apart; the sums are added up outside.
template <int DIM> struct Products<float, DIM> {
  static constexpr int ROW = DIM * 4 + 16;
  // Of 32 columns a lane has eight neighbours, two for each product.
  static DEVICE void scores(float (&s)[8][4], u32 qs, u32 ks, int keys) {
    int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    u32 mine = g * ROW + t * 32;
#pragma unroll
    for (int d = 0; d < DIM * 4; d += 128) {
      u32 ah[4][4], al[4][4];
#pragma unroll
      for (int h = 0; h < 2; ++h)
#pragma unroll
        for (int c = 0; c < 2; ++c) {
          float v[4];
          load_shared(v, qs + mine + h * 8 * ROW + d + c * 16);
#pragma unroll
          for (int e = 0; e < 4; ++e) split_tf32(v[e], ah[2 * c + e / 2][e % 2 * 2 + h], al[2 * c + e / 2][e % 2 * 2 + h]);
        }
#pragma unroll
      for (int j = 0; j < 8; ++j) {
        if (j == 4 && keys <= 32) break;
        float high[4] = {}, low[4] = {};
#pragma unroll
        for (int c = 0; c < 2; ++c) {
          u32 bh[4], bl[4];
          float v[4];
          load_shared(v, ks + mine + j * 8 * ROW + d + c * 16);
#pragma unroll
          for (int e = 0; e < 4; ++e) split_tf32(v[e], bh[e], bl[e]);
#pragma unroll
          for (int kk = 0; kk < 2; ++kk) {
            mma_tf32(low, al[2 * c + kk], bh[2 * kk], bh[2 * kk + 1]);
            mma_tf32(high, ah[2 * c + kk], bh[2 * kk], bh[2 * kk + 1]);
            mma_tf32(low, ah[2 * c + kk], bl[2 * kk], bl[2 * kk + 1]);
          }
        }
#pragma unroll
        for (int i = 0; i < 4; ++i) s[j][i] += high[i] + low[i];
      }
    }
  }
  // A lane's sums of two neighbouring keys are its part of the next operand; of 32 columns of the
  // values it takes four neighbours, one for each product.
  static DEVICE void weigh(float (&out)[DIM / 8][4], const float (&s)[8][4], u32 vs, int keys) {
    int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
#pragma unroll
    for (int d = 0; d < DIM / 8; d += 4) {
      float high[4][4] = {}, low[4][4] = {};
#pragma unroll
      for (int kk = 0; kk < 8; ++kk) {
        if (kk == 4 && keys <= 32) break;
        u32 ah[4], al[4], bh[2][4], bl[2][4];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          float v = s[kk][i % 2 * 2 + i / 2];
          asm volatile("" : "+f"(v)); // split anew for each 32 columns: there are no registers to keep all
          split_tf32(v, ah[i], al[i]);
        }
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          float v[4];
          load_shared(v, vs + (kk * 8 + 2 * t + i) * ROW + d * 32 + g * 16);
#pragma unroll
          for (int e = 0; e < 4; ++e) split_tf32(v[e], bh[i][e], bl[i][e]);
        }
#pragma unroll
        for (int j = 0; j < 4; ++j) mma_tf32(low[j], al, bh[0][j], bh[1][j]);
#pragma unroll
        for (int j = 0; j < 4; ++j) mma_tf32(high[j], ah, bh[0][j], bh[1][j]);
#pragma unroll
        for (int j = 0; j < 4; ++j) mma_tf32(low[j], ah, bl[0][j], bl[1][j]);
      }
#pragma unroll
      for (int j = 0; j < 4; ++j)
#pragma unroll
        for (int i = 0; i < 4; ++i) out[d + j][i] += high[j][i] + low[j][i];
    }
  }
  // So it has eight neighbours of 32 columns of the result.
  static DEVICE void store(float* to, const float (&out)[DIM / 8][4], int h, float factor, bool inside, int width) {
    int first = threadIdx.x % 4 * 8;
#pragma unroll
    for (int j = 0; j < DIM / 8; j += 4)
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        int d = j * 8 + first + e * 4;
        if (width % 4 == 0) {
          float4 v = make_float4(out[j][2 * h + e] * factor, out[j + 1][2 * h + e] * factor, out[j + 2][2 * h + e] * factor,
                                 out[j + 3][2 * h + e] * factor);
          if (inside && d < width) *(float4*)(to + d) = v;
        } else {
#pragma unroll
          for (int i = 0; i < 4; ++i)
            if (inside && d + i < width) to[d + i] = out[j + i][2 * h + e] * factor;
        }
      }
  }
};

// 64 queries of one head pass their keys, 64 at a time, with the softmax kept up to date (Dao 2023),
// so that memory does not grow with the sequence. A block goes from one such piece of work to the
// next, and fetches the next keys, be they of this piece or of the next, while it works on these, if
// shared memory has room for both (of the smallest cards, 99 KB).
template <class T, int DIM> DEVICE void attention_tiled(const AttentionArgs& p) {
  using Product = Products<T, DIM>;
  constexpr int EACH = 16 / sizeof(T), ROW = Product::ROW; // elements in 16 bytes
  constexpr int PARTS = DIM / EACH, TILE_BYTES = 64 * ROW, STAGES = DIM * sizeof(T) >= 256 ? 1 : 2;
  extern __shared__ __align__(128) unsigned char memory[];
  const uint4* items = (const uint4*)part(p.batch, p.batch->work);
  int thread = threadIdx.x, warp = thread / 32, lane = thread % 32, g = lane / 4, t = lane % 4;
  u32 base = shared_address(memory);
  int width = p.heads * p.head_dim, count = p.batch->items;
  bool whole = p.head_dim % EACH == 0, plain = p.window < 0 && !p.relative;
  // From one work of this block to its next: items by heads.
  int items_on = gridDim.x / p.heads, heads_on = gridDim.x % p.heads;

  // Which keys of which work.
  struct Step {
    int item, head, length, q0, k0, high, odd;
    u32 start;
  };
  // The item that follows is read while the one before it is worked on.
  auto advance = [&](int& item, int& head) {
    item += items_on;
    head += heads_on;
    if (head >= p.heads) {
      head -= p.heads;
      item += 1;
    }
  };
  // Each lane has one of its four words: what is the same in all lanes the compiler would move to the
  // uniform registers as soon as it is read, and wait for it there.
  auto read = [&](int item) { return item < count ? __ldg((const u32*)(items + item) + lane % 4) : 0u; };
  auto begin = [&](Step& s, u32 word) {
    s.start = __shfl_sync(0xffffffffu, word, 0);
    s.length = __shfl_sync(0xffffffffu, word, 1);
    s.q0 = __shfl_sync(0xffffffffu, word, 2);
    int low = p.window < 0 ? 0 : max(0, s.q0 - p.window);
    s.high = p.window < 0 ? s.length : min(s.length, min(s.q0 + 64, s.length) + p.window);
    s.k0 = low / 64 * 64;
  };
  // Rows of queries (0), keys (1) or values (2): a thread brings 16 bytes of every `AT_ONCE`th row.
  constexpr int AT_ONCE = 128 / PARTS;
  int r = thread / PARTS, c = thread % PARTS * EACH;
  u32 place = r * ROW + c * sizeof(T);
  auto load = [&](u32 to, const Step& s, int which, int first) {
    const T* from = (const T*)p.qkv + (u64)(s.start + first + r) * p.stride + which * width + s.head * p.head_dim + c;
    if (whole) {
      int left = c < p.head_dim ? s.length - first - r : 0;
#pragma unroll
      for (int i = 0; i < 64 / AT_ONCE; ++i) {
        bool valid = i * AT_ONCE < left;
        copy_async(to + place + i * AT_ONCE * ROW, valid ? from + (u64)i * AT_ONCE * p.stride : (const T*)p.qkv, valid);
      }
      return;
    }
#pragma unroll 1
    for (int i = 0; i < 64 / AT_ONCE; ++i) {
      bool inside = first + r + i * AT_ONCE < s.length;
      const T* source = from + (u64)i * AT_ONCE * p.stride;
      u32 v[4];
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        if constexpr (sizeof(T) == 4) {
          v[j] = inside && c + j < p.head_dim ? __float_as_uint(source[j]) : 0u;
        } else {
          int d = c + 2 * j;
          float a = inside && d < p.head_dim ? load1(source + 2 * j) : 0.f;
          float b = inside && d + 1 < p.head_dim ? load1(source + 2 * j + 1) : 0.f;
          v[j] = Format<T>::pack(a, b);
        }
      }
      asm volatile("st.shared.v4.b32 [%0], {%1,%2,%3,%4};" ::"r"(to + place + i * AT_ONCE * ROW), "r"(v[0]), "r"(v[1]),
                   "r"(v[2]), "r"(v[3]) : "memory");
    }
  };
  // A stage has queries, keys and values; the queries are loaded with a work's first keys.
  auto queries = [&](const Step& s) { return base + (2 * STAGES + (STAGES == 2 ? s.odd : 0)) * TILE_BYTES; };
  auto fetch = [&](int stage, const Step& s, bool fresh) {
    u32 to = base + stage * 2 * TILE_BYTES;
    if (s.item < count) {
      load(to, s, 1, s.k0);
      load(to + TILE_BYTES, s, 2, s.k0);
      if (fresh) load(queries(s), s, 0, s.q0);
    }
    copy_commit();
  };

  Step now = {}, next;
  now.item = blockIdx.x / p.heads;
  now.head = blockIdx.x % p.heads;
  begin(now, read(now.item));
  int item_after = now.item, head_after = now.head;
  advance(item_after, head_after);
  u32 after = read(item_after);
  bool fresh = true; // these are the work's first keys
  float out[DIM / 8][4], top[2], sum[2];
  if (STAGES == 2) fetch(0, now, true);
  for (int stage = 0; now.item < count; now = next, stage ^= STAGES - 1) {
    next = now;
    next.k0 += 64;
    bool last = next.k0 >= now.high;
    if (last) {
      next.item = item_after;
      next.head = head_after;
      next.odd ^= 1;
      begin(next, after);
      advance(item_after, head_after);
      after = read(item_after);
    }
    if (STAGES == 2) {
      fetch(stage ^ 1, next, last);
      copy_wait<1>();
    } else {
      fetch(0, now, fresh);
      copy_wait<0>();
    }
    __syncthreads();
    u32 ks = base + stage * 2 * TILE_BYTES, vs = ks + TILE_BYTES;
    u32 qs = queries(now);
    int query[2] = {now.q0 + warp * 16 + g, now.q0 + warp * 16 + g + 8}, keys = now.length - now.k0;
    if (fresh) {
#pragma unroll
      for (int j = 0; j < DIM / 8; ++j) out[j][0] = out[j][1] = out[j][2] = out[j][3] = 0.f;
      top[0] = top[1] = -1e30f;
      sum[0] = sum[1] = 0.f;
    }
    if (now.q0 + warp * 16 < now.length) {
      float s[8][4] = {};
      Product::scores(s, qs + warp * 16 * ROW, ks, keys);
      constexpr float LOG2E = 1.4426950408889634f;
      float scale = p.scale * LOG2E;
      if (!plain || keys < 64) { // with biases, and the mask where a key is not seen
        const float* relative = p.relative ? p.relative + (u64)now.head * (2 * p.positions - 1) + p.positions - 1 : nullptr;
#pragma unroll
        for (int h = 0; h < 2; ++h)
#pragma unroll
          for (int j = 0; j < 8; ++j)
#pragma unroll
            for (int e = 0; e < 2; ++e) {
              int key = now.k0 + j * 8 + 2 * t + e;
              float& v = s[j][2 * h + e];
              bool seen = key < now.length && (p.window < 0 || abs(key - query[h]) <= p.window);
              v *= scale;
              if (relative && seen && query[h] < now.length) v += LOG2E * relative[key - query[h]];
              if (!seen) v = -1e30f;
            }
        scale = 1.f;
      }
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        float most = s[0][2 * h];
#pragma unroll
        for (int j = 0; j < 8; ++j)
#pragma unroll
          for (int e = 0; e < 2; ++e) most = fmaxf(most, s[j][2 * h + e]);
        most = fmaxf(top[h], quad_max(most) * scale);
        // A row that has seen no key yet has `most` at the mask's own value: nothing counts.
        float base_value = most <= -1e30f ? 0.f : most;
        if (!fresh) {
          float shrink = exp2_fast(top[h] - most);
          sum[h] *= shrink;
#pragma unroll
          for (int j = 0; j < DIM / 8; ++j) {
            out[j][2 * h] *= shrink;
            out[j][2 * h + 1] *= shrink;
          }
        }
        top[h] = most;
#pragma unroll
        for (int j = 0; j < 8; ++j)
#pragma unroll
          for (int e = 0; e < 2; ++e) {
            float& v = s[j][2 * h + e];
            v = exp2_fast(fmaf(v, scale, -base_value));
            sum[h] += v;
          }
      }
      Product::weigh(out, s, vs, keys);
      if (last) {
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          float factor = 1.f / quad_sum(sum[h]);
          T* to = (T*)p.context + (u64)(now.start + query[h]) * p.context_stride + now.head * p.head_dim;
          Product::store(to, out, h, factor, query[h] < now.length, p.head_dim);
        }
      }
    }
    fresh = last;
    __syncthreads();
  }
}

// Any format and any head up to 256 wide: a warp per query, keys by lanes, then columns by lanes.
template <class T> DEVICE void attention_plain(const AttentionArgs& p) {
  __shared__ float queries[4][256];
  int warp = threadIdx.x / 32, lane = threadIdx.x % 32, head = blockIdx.y;
  if (blockIdx.x / 16 >= p.batch->items) return;
  uint4 item = ((const uint4*)part(p.batch, p.batch->work))[blockIdx.x / 16];
  u32 start = item.x;
  int length = item.y, query = item.z + blockIdx.x % 16 * 4 + warp;
  if (query >= length) return;
  int width = p.heads * p.head_dim;
  const T* base = (const T*)p.qkv + (u64)start * p.stride + head * p.head_dim;
  for (int d = lane; d < p.head_dim; d += 32) queries[warp][d] = load1(base + (u64)query * p.stride + d);
  __syncwarp();
  int low = p.window < 0 ? 0 : max(0, query - p.window);
  int high = p.window < 0 ? length : min(length, query + p.window + 1);
  float out[8] = {}, top = -1e30f, sum = 0.f;
  for (int k0 = low; k0 < high; k0 += 32) {
    int key = k0 + lane;
    float score = -1e30f;
    if (key < high) {
      const T* k = base + (u64)key * p.stride + width;
      float dot = 0.f;
      for (int d = 0; d < p.head_dim; ++d) dot += queries[warp][d] * load1(k + d);
      score = dot * p.scale;
      if (p.relative) score += p.relative[(u64)head * (2 * p.positions - 1) + key - query + p.positions - 1];
    }
    float most = fmaxf(top, warp_max(score));
    float shrink = expf(top - most), weight = key < high ? expf(score - most) : 0.f;
    top = most;
    sum = sum * shrink + warp_sum(weight);
#pragma unroll
    for (int i = 0; i < 8; ++i) out[i] *= shrink;
    int count = min(32, high - k0);
    for (int j = 0; j < count; ++j) {
      float share = __shfl_sync(0xffffffffu, weight, j);
      const T* v = base + (u64)(k0 + j) * p.stride + 2 * width;
#pragma unroll
      for (int i = 0; i < 8; ++i)
        if (lane + 32 * i < p.head_dim) out[i] += share * load1(v + lane + 32 * i);
    }
  }
  T* to = (T*)p.context + (u64)(start + query) * p.context_stride + head * p.head_dim;
#pragma unroll
  for (int i = 0; i < 8; ++i)
    if (lane + 32 * i < p.head_dim) store1(to + lane + 32 * i, out[i] / sum);
}
